"""All readers, in memory, streamed and for prediction, give the same pixels."""

import importlib
import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode, photograph
from PIL import Image, ImageOps

from siman_jax.configs import image_folder, imagenet
from siman_jax.data import frames, load_dataset, pixels
from siman_jax.data.dataset import DamagedImage
from siman_jax.data.decode import WrongSize, evaluation_image, training_image, whole_image
from siman_jax.data.image_files import read_pixels
from siman_jax.data.pipeline import Share, evaluation_batches, training_batches
from siman_jax.data.pixels import PixelRules
from siman_jax.data.stream import EvaluationStream
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError

SIZE = 4


@pytest.fixture(autouse=True)
def nothing_said():
    """Let each test see warnings that are logged once per process."""
    importlib.reload(frames)


def root_with(folder, data):
    """Make a folder with one class and one image, the same for training and test."""
    for split in ("train", "test"):
        (folder / split / "only").mkdir(parents=True)
        (folder / split / "only" / "image.png").write_bytes(data)
    return folder


def configs(root, size=SIZE, **fields):
    """Configs for images in memory and for streamed images."""
    resident, streamed = image_folder.get_config(), imagenet.get_config()
    streamed.data.update(source="image_folder", test_split="test", shorter_side=size, flip=False)
    streamed.data.update(min_area=1.1, max_area=1.25)  # never fits, so the box is the whole image
    for config in (resident, streamed):
        config.batch_size = 1
        config.data.update(root=str(root), num_classes=1, image_size=size, **fields)
        if config.data.channels == 1:
            config.data.update(mean=(0.5,), std=(0.5,))
    resident.data.cache_dir = ""
    return resident, streamed


def every_way(folder, data, size=SIZE, **fields):
    """Pixels of each reader: in memory, streamed for evaluation and training, and prediction."""
    root = root_with(folder, data)
    resident, streamed = configs(root, size, **fields)
    records = load_dataset(streamed.data)
    test = evaluation_batches(records.test, streamed.data, Share(0, 1), 1)[0]
    train = training_batches(
        records.train,
        streamed.data,
        Share(0, 1),
        0,
        batch_size=streamed.batch_size,
        epochs=streamed.epochs,
        seed=streamed.seed,
    )[0]
    assert test.damage == train.damage == ()
    rules, file = pixels.pixel_rules(resident.data), str(root / "test" / "only" / "image.png")
    return {
        "memory": load_dataset(resident.data).test.images[0],
        "evaluation": test.images[0],
        "training": train.images[0],
        **{
            f"prediction, {side}": read_pixels(
                file, rules, size=size, shorter_side=side, resize=False
            )
            for side in (None, size)
        },
    }


def png(depth, colour, rows, transparent=b""):
    """Make a PNG file from packed rows; Pillow cannot write all depths."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", SIZE, SIZE, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


def tiff(bits, data, white_is_zero):
    """Make a grey TIFF file from packed rows."""
    tags = [(256, SIZE), (257, SIZE), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 12 * 8 + 4), (278, SIZE), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def square(levels, dtype=np.uint8):
    """An image whose rows repeat the grey levels."""
    return np.resize(np.asarray(levels, dtype), (SIZE, SIZE))


SIXTEEN = square([3000, 0, 65535, 255, 256], np.uint16)
ALPHA = np.dstack([np.full((SIZE, SIZE), 200, np.uint8)] * 3 + [square([0, 255, 51])])
TWO_BITS = [bytes([0b00011011])] * SIZE  # 0, 85, 170, 255
TWELVE_BITS = [0, 3000, 4095, 16]


def over(background):
    """ALPHA on a grey background."""
    return background + ALPHA[..., 3] / 255 * (200.0 - background)


# Files, and their grey levels on black and on white.
ODD = {
    "16 bits": (encode(Image.fromarray(SIXTEEN), "PNG"), *[SIXTEEN >> 8] * 2),
    "16 bits, TIFF": (encode(Image.fromarray(SIXTEEN), "TIFF"), *[SIXTEEN >> 8] * 2),
    "16 bits, PGM": (
        b"P5 4 4 65535\n" + SIXTEEN.astype(">u2").tobytes(),
        *[SIXTEEN >> 8] * 2,
    ),
    "16 bits, white is 0": (
        tiff(16, SIXTEEN.tobytes(), white_is_zero=True),
        *[(65535 - SIXTEEN) >> 8] * 2,
    ),
    "12 bits": (
        tiff(12, bytes.fromhex("000bb8fff010") * SIZE, white_is_zero=False),
        *[square(TWELVE_BITS, int) >> 4] * 2,
    ),
    "16 bits, one transparent": (
        png(16, 0, [row.tobytes() for row in SIXTEEN.astype(">u2")], struct.pack(">H", 255)),
        np.where(SIXTEEN == 255, 0, SIXTEEN >> 8),
        np.where(SIXTEEN == 255, 255, SIXTEEN >> 8),
    ),
    "2 bits, one transparent": (
        png(2, 0, TWO_BITS, b"\0\x02"),
        square([0, 85, 0, 255]),
        square([0, 85, 255, 255]),
    ),
    "1 bit, one transparent": (
        png(1, 0, [b"\x50"] * SIZE, b"\0\1"),
        square([0, 0, 0, 0]),
        square([0, 255, 0, 255]),
    ),
    "alpha": (encode(Image.fromarray(ALPHA), "PNG"), over(0), over(255)),
    "alpha, WebP": (encode(Image.fromarray(ALPHA), "WEBP", lossless=True), over(0), over(255)),
    "alpha, grey": (encode(Image.fromarray(ALPHA).convert("LA"), "PNG"), over(0), over(255)),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("kind", ODD)
def test_odd_files_show_the_same_every_way(kind, background, channels, tmp_path):
    data, on_black, on_white = ODD[kind]
    expected = on_white if background else on_black
    found = every_way(tmp_path, data, channels=channels, background=background)
    for way, image in found.items():
        assert image.shape == (SIZE, SIZE, channels)
        difference = np.abs(image - expected[..., None].astype(float)).max()
        assert difference <= (0.5 if "alpha" in kind else 0), way
        np.testing.assert_array_equal(image, found["memory"])


@pytest.mark.parametrize(
    ("file_format", "transparency"), [("PNG", bytes(range(256))), ("PNG", 51), ("GIF", 51)]
)
def test_palettes_with_transparency(file_format, transparency, tmp_path):
    palette = Image.fromarray(ALPHA[..., 3]).convert("P")  # 0, 51, 255
    data = encode(palette, file_format, transparency=transparency)
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), float)
    alpha = rgba[..., 3:] / 255
    assert alpha.min() < 1
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for image in every_way(tmp_path, data, background=255).values():
        assert np.abs(image - expected).max() <= 0.5


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "JPEG", {"subsampling": 2}),
        ("RGB", "JPEG", {"subsampling": 0, "progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
    ],
)
@pytest.mark.parametrize(("size", "resize"), [(48, False), (20, True)])
def test_usual_images_in_memory_are_those_of_pillow_bit_for_bit(
    mode, file_format, options, channels, size, resize
):
    data = encode(photograph(48, 48).convert(mode), file_format, **options)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image if channels == 3 else image.convert("L")
    expected = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    found = whole_image(data, rules=PixelRules(channels), size=size, resize=resize)
    np.testing.assert_array_equal(found, np.asarray(expected).reshape(size, size, channels))


# Several frames


def animation(file_format):
    images = [Image.new("RGB", (SIZE, SIZE), (level,) * 3) for level in (250, 10)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    return encode(images[0], file_format, save_all=True, append_images=images[1:], **options)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken(file_format, tmp_path, caplog):
    for image in every_way(tmp_path, animation(file_format)).values():
        assert (image == 250).all()
    said = [text for text in caplog.messages if "holds several images" in text]
    assert len(said) == 1
    assert "the first is used" in said[0]


def test_the_stream_says_once_that_only_first_frames_are_taken(tmp_path, caplog):
    _, streamed = configs(root_with(tmp_path, animation("GIF")))
    streamed.data.workers = 0
    records = load_dataset(streamed.data).test
    for _ in range(2):
        list(EvaluationStream(records, make_mesh(1), streamed.data, 1))
    assert sum("only/image.png holds several images" in text for text in caplog.messages) == 1


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_orientation_is_followed_where_it_is_asked_for(orientation, file_format, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(40, 40), file_format, exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    for asked, expected in ((True, turned), (False, np.asarray(Image.open(io.BytesIO(data))))):
        found = every_way(tmp_path / str(asked), data, 40, exif_orientation=asked)
        for image in found.values():
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_images_are_those_of_the_image_as_shown(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photograph(90, 60)
    options = {"size": 16, "min_area": 0.08, "max_area": 1.25, "flip": True}
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(stored, "PNG", exif=exif))))
    for seed in range(10):
        images = [
            training_image(data, np.random.default_rng(seed), rules=rules, **options)
            for data, rules in (
                (encode(stored, "PNG", exif=exif), PixelRules(3, exif_orientation=True)),
                (encode(shown, "PNG"), PixelRules(3)),
            )
        ]
        # At 1/2 and 1/4 of the resolution, edges may move by a pixel.
        assert np.abs(np.subtract(*images, dtype=int)).mean() < 6
    wide = evaluation_image(
        encode(stored, "JPEG", exif=exif, subsampling=0),
        rules=PixelRules(3, exif_orientation=True),
        size=20,
        resize=30,
    )
    assert wide.shape == (20, 20, 3)


def test_a_jpeg_is_decoded_down_to_the_box_whichever_way_it_is_turned():
    """If the edges are at whole pixels, boxes are exactly those of the turned image."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(photograph(64, 48), exif=exif, subsampling=0)
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        options = {"size": 40, "min_area": 0.3, "max_area": 0.9, "flip": False}
        for seed in range(6):
            rules = PixelRules(3, exif_orientation=True)
            found = training_image(data, np.random.default_rng(seed), rules=rules, **options)
            expected = training_image(
                encode(shown, "PNG"), np.random.default_rng(seed), rules=PixelRules(3), **options
            )
            np.testing.assert_array_equal(found, expected)


# Refusals

FLOATS = encode(Image.fromarray(np.ones((SIZE, SIZE), np.float32)), "TIFF")
WORDS = encode(Image.fromarray(np.ones((SIZE, SIZE), np.int32)), "TIFF")
REFUSED = {
    "floats": (FLOATS, "F pixels, whose range is not known"),
    "32 bits": (WORDS, "I pixels, whose range is not known"),
    "PFM": (b"Pf 4 4 -1.0\n" + bytes(64), "F pixels, whose range is not known"),
    "a transparent colour of 16 bits": (
        png(16, 2, [bytes(6 * SIZE)] * SIZE, bytes(6)),
        "has a transparent colour of 16 bits",
    ),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n",
        "cannot be decoded: it is none of JPEG, PNG",
    ),
    "an icon": (encode(Image.new("RGB", (SIZE, SIZE)), "ICO"), "it is none of JPEG"),
    "huge": (b"P5 9000 9000 255\n", "is 9000x9000 pixels; at most"),
    "a strip": (
        encode(Image.new("L", (65000, 1)), "JPEG"),
        r"(expected 4x4|is 65000x1 pixels, which would be 166400000x2560)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_shown_is_refused_every_way(kind, tmp_path):
    data, reason = REFUSED[kind]
    rules = PixelRules(3)
    with pytest.raises((DamagedImage, WrongSize), match=reason):
        whole_image(data, rules=rules, size=SIZE, resize=False)
    with pytest.raises(DamagedImage, match=reason):
        evaluation_image(data, rules=rules, size=SIZE, resize=2560)
    resident, streamed = configs(root_with(tmp_path, data))
    with pytest.raises(UsageError, match=reason):
        load_dataset(resident.data)
    streamed.data.shorter_side = 2560
    records = load_dataset(streamed.data).test
    (line,) = evaluation_batches(records, streamed.data, Share(0, 1), 1)[0].damage
    file = str(tmp_path / "test" / "only" / "image.png")
    assert file in line
    for side in (None, 2560):
        with pytest.raises(DamagedImage, match=reason):
            read_pixels(file, rules, size=SIZE, shorter_side=side, resize=False)


PHOTOGRAPH = photograph(20, 20)
TRANSPARENT = Image.merge("RGBA", [*PHOTOGRAPH.split(), PHOTOGRAPH.convert("L")])
FORMATS = {
    "PNG": encode(TRANSPARENT, "PNG"),
    "PNG, 16 bits": encode(Image.fromarray(np.resize(SIXTEEN, (20, 20))), "PNG"),
    "animated PNG": encode(PHOTOGRAPH, "PNG", save_all=True, append_images=[TRANSPARENT]),
    "GIF": encode(PHOTOGRAPH, "GIF", save_all=True, append_images=[TRANSPARENT]),
    "WebP": encode(TRANSPARENT, "WEBP"),
    "TIFF": encode(PHOTOGRAPH, "TIFF", tiffinfo={0x0112: 6}),
    "TIFF, LZW": encode(TRANSPARENT, "TIFF", compression="tiff_lzw"),
    "BMP": encode(PHOTOGRAPH, "BMP"),
    "PPM": encode(PHOTOGRAPH, "PPM"),
}


def whole(data, **rules):
    return whole_image(data, rules=PixelRules(3, **rules), size=20, resize=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_is_damaged_or_lacks_no_pixel(kind):
    data = FORMATS[kind]
    expected = whole(data)
    refused = 0
    for length in range(0, len(data), 11):
        try:
            np.testing.assert_array_equal(whole(data[:length]), expected)
        except DamagedImage:
            refused += 1
    assert refused > 5


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(FORMATS)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=6),
    turned=st.booleans(),
)
def test_altered_bytes_give_pixels_or_damage(kind, edits, turned):
    data = bytearray(FORMATS[kind])
    for place, new in edits:
        start = int(place**3 * len(data))  # headers are at the start
        data[start : start + 2] = new
    data = bytes(data)
    with suppress(DamagedImage):
        assert whole(data, exif_orientation=turned).shape == (20, 20, 3)
        assert isinstance(frames.has_more_frames(data), bool)


@pytest.mark.parametrize("error", [RuntimeError, struct.error, RecursionError, MemoryError])
def test_damage_is_named_whatever_a_library_raises(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error("odd")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    resident, _ = configs(root_with(tmp_path, encode(Image.new("RGB", (SIZE, SIZE)))))
    with pytest.raises(UsageError, match=r"image.png: cannot be decoded: odd"):
        load_dataset(resident.data)


def test_a_background_that_is_no_level_is_refused(tmp_path):
    resident, _ = configs(root_with(tmp_path, ODD["alpha"][0]), background=256)
    with pytest.raises(UsageError, match=r"background is 256; it must be a whole number from 0"):
        load_dataset(resident.data)
