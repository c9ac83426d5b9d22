"""Decoding: random boxes, both transforms compared with Pillow, and all kinds of damage."""

import io
import math
import random
from contextlib import suppress

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode, photograph
from PIL import Image

from siman_jax.data import decode, pixels
from siman_jax.data.dataset import DamagedImage
from siman_jax.data.decode import evaluation_image, random_box, training_image
from siman_jax.data.pixels import PixelRules

BILINEAR = Image.Resampling.BILINEAR
AREA = (0.08, 1.25)


def train(data, seed=0, size=64, channels=3, area=AREA, flip=False, **rules):
    rng = np.random.default_rng(seed)
    options = {"size": size, "rules": PixelRules(channels, **rules), "flip": flip}
    return training_image(data, rng, min_area=area[0], max_area=area[1], **options)


def evaluate(data, size=40, resize=50, channels=3, **rules):
    return evaluation_image(data, rules=PixelRules(channels, **rules), size=size, resize=resize)


def difference(one, other):
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other.astype(int)).mean()


# Boxes


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (64, 64), (30, 41)])
@pytest.mark.parametrize("area", [AREA, (0.5, 0.6)])
def test_boxes_lie_inside_and_within_the_ranges(height, width, area):
    rng = np.random.default_rng(0)
    for _ in range(500):
        box = random_box(rng, height, width, area=area, aspect=(3 / 4, 4 / 3))
        assert min(box.top, box.left) >= 0
        assert box.top + box.height <= height
        assert box.left + box.width <= width
        half_a_pixel = (box.height + box.width) / 2
        assert box.height * box.width >= area[0] * height * width - half_a_pixel
        assert box.height * box.width <= area[1] * height * width + half_a_pixel
        assert (box.width + 0.5) / (box.height - 0.5) > 3 / 4
        assert (box.width - 0.5) / (box.height + 0.5) < 4 / 3


def published_box(rng, height, width):
    """The published procedure, step by step, with another generator."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if columns <= width and rows <= height:
            return rng.randint(0, height - rows), rng.randint(0, width - columns), rows, columns
    return 0, 0, height, width


def test_boxes_are_distributed_as_published():
    n, shape = 4000, (300, 400)
    generator, other = np.random.default_rng(0), random.Random(0)
    ours = np.array([random_box(generator, *shape) for _ in range(n)])
    published = np.array([published_box(other, *shape) for _ in range(n)])
    for one, two in zip(ours.T, published.T, strict=True):
        levels = np.arange(400)
        gap = np.searchsorted(np.sort(one), levels, "right") - np.searchsorted(
            np.sort(two), levels, "right"
        )
        assert np.abs(gap).max() / n < 0.05  # Kolmogorov-Smirnov test at 1e-4


def test_every_place_is_as_likely_as_any_other():
    rng = np.random.default_rng(0)
    counts = np.zeros((7, 7), int)
    for _ in range(49 * 100):
        box = random_box(rng, 12, 12, area=(0.25, 0.25), aspect=(1, 1))
        assert box[2:] == (6, 6)
        counts[box[:2]] += 1
    assert counts.min() > 60
    assert counts.max() < 140


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 1000, (0, 493, 10, 13)),
        (1000, 10, (493, 0, 13, 10)),
        (1, 1, (0, 0, 1, 1)),
        (30, 40, (0, 0, 30, 40)),
    ],
)
def test_where_nothing_fits_the_box_is_central(height, width, expected):
    rng = np.random.default_rng(0)
    assert random_box(rng, height, width, area=(1.1, 1.25)) == expected


# Training


def with_pillow(image, size, seed, factor=1):
    """Crop and scale the box with Pillow; its edges are multiples of `factor`."""
    top, left, height, width = random_box(
        np.random.default_rng(seed), image.height, image.width, area=AREA
    )
    edges = (left, top, left + width, top + height)
    cut = image.crop([factor * round(edge / factor) for edge in edges])
    return np.asarray(cut.resize((size, size), BILINEAR))


@pytest.mark.parametrize("size", [32, 64, 100, 200])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_training_pixels_are_those_of_pillow_within_half_a_level(size, options):
    """At full resolution, because boxes are at most twice as large as the result."""
    data = encode(photograph(120, 160), quality=95, **options)
    image = Image.open(io.BytesIO(data))
    differences = []
    for seed in range(20):
        box = random_box(np.random.default_rng(seed), 120, 160)
        if min(box.height, box.width) < 2 * size:
            differences.append(difference(train(data, seed, size), with_pillow(image, size, seed)))
    assert len(differences) >= 5
    assert np.mean(differences) < 0.4
    assert np.max(differences) < 0.5


@pytest.mark.parametrize(
    ("height", "width"), [(45, 59), (58, 58), (100, 76), (300, 300), (700, 600)]
)
def test_scaling_antialiases_by_any_factor(height, width):
    """Noise shows aliasing best. The box fits nowhere, so it is all of the image."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((30, 30), BILINEAR))
    aliased = cv2.resize(pixels, (30, 30), interpolation=cv2.INTER_LINEAR)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    scaled = train(file.getvalue(), size=30, area=(1.1, 1.25))
    assert difference(scaled, expected) < difference(aliased, expected) / 4


def test_the_state_of_the_generator_alone_decides():
    data = encode(photograph(120, 160))
    np.testing.assert_array_equal(train(data, 3, flip=True), train(data, 3, flip=True))
    assert difference(train(data, 3), train(data, 4)) > 5
    rng, twin = np.random.default_rng(3), np.random.default_rng(3)
    options = {"size": 64, "min_area": 0.08, "max_area": 1.25, "flip": False}
    training_image(data, rng, rules=PixelRules(3), **options)
    random_box(twin, 120, 160)
    assert rng.bit_generator.state == twin.bit_generator.state


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [24, 100])  # smaller and larger than the boxes
def test_images_are_written_in_place(size, channels):
    data = encode(photograph(60, 80))
    for seed in range(8):
        batch = np.full((3, size, size, channels), 7, np.uint8)
        rng, options = np.random.default_rng(seed), {"size": size, "rules": PixelRules(channels)}
        image = training_image(
            data, rng, min_area=0.08, max_area=1.25, flip=True, out=batch[1], **options
        )
        assert np.shares_memory(image, batch)
        np.testing.assert_array_equal(batch[1], train(data, seed, size, channels, flip=True))
        evaluation_image(data, resize=size, out=batch[0], **options)
        np.testing.assert_array_equal(batch[0], evaluate(data, size, size, channels))
        assert (batch[2] == 7).all()


def test_half_are_mirrored():
    data = encode(photograph(60, 80))
    mirrored = 0
    for seed in range(100):
        plain, image = train(data, seed, 24), train(data, seed, 24, flip=True)
        if (image == plain[:, ::-1]).all():
            mirrored += 1
        else:
            np.testing.assert_array_equal(image, plain)
    assert 35 <= mirrored <= 65


@pytest.fixture
def decoded(monkeypatch):
    """A list of the shapes that the JPEG decoder is asked for."""
    shapes = []
    decode_jpeg = simplejpeg.decode_jpeg

    def record(*arguments, buffer, **options):
        shapes.append(buffer.shape)
        return decode_jpeg(*arguments, buffer=buffer, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", record)
    return shapes


@pytest.mark.parametrize(("size", "factor"), [(301, 1), (300, 2), (150, 4), (75, 8), (40, 8)])
def test_large_boxes_are_decoded_at_less_resolution(decoded, size, factor):
    image = photograph(600, 800)
    data = encode(image, quality=95)
    whole = train(data, size=size, area=(1.1, 1.25))  # never fits, so the box is the whole image
    assert decoded == [(600 // factor, 800 // factor, 3)]
    assert difference(whole, np.asarray(image.resize((size, size), BILINEAR))) < 1.5


def test_scaled_boxes_lie_where_they_should(decoded):
    data = encode(photograph(600, 800), quality=95)
    image = Image.open(io.BytesIO(data))
    for seed in range(20):
        box = random_box(np.random.default_rng(seed), 600, 800)
        factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(box[2:]) >= f * 64)
        assert difference(train(data, seed), with_pillow(image, 64, seed, factor)) < 1.3
    assert len({width for _, width, _ in decoded}) >= 3


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"subsampling": 0}, True),
        ({"subsampling": 2}, True),
        ({"restart_marker_blocks": 3}, True),
        ({"exif": b"Exif\0\0" + b"\xff\xc0\0\x11" * 99}, True),
        ({"progressive": True}, False),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rows_below_the_box_are_not_decoded(decoded, monkeypatch, mode, options, stops):
    image = photograph(240, 320).convert(mode)
    data = encode(image, **options)
    seeds = range(12)
    images = [train(data, seed) for seed in seeds]
    heights = [height * 320 // width for height, width, _ in decoded]
    assert (min(heights) < 180) == stops

    def decode_all(data, header, rules, *, factor=1, rows=None):
        return pixels.decode(data, header, rules, factor=factor)

    monkeypatch.setattr(decode, "decode", decode_all)
    for seed, expected in zip(seeds, images, strict=True):
        np.testing.assert_array_equal(train(data, seed), expected)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_last_row_of_the_box_is_whole(subsampling, factor):
    """The colours of the last row are interpolated from the next row."""
    image = np.asarray(photograph(120, 80))
    data = simplejpeg.encode_jpeg(image, 90, "RGB", subsampling)
    rules = PixelRules(3)
    header = pixels.read_header(data, rules)
    whole = pixels.decode(data, header, rules, factor=factor)
    for rows in range(1, 120):
        kept = -(-rows // factor)
        part = pixels.decode(data, header, rules, factor=factor, rows=rows)
        np.testing.assert_array_equal(part[:kept], whole[:kept])


# Evaluation


def torchvision_says(image, size, resize, channels):
    """Resize and CenterCrop as defined in torchvision, for a Pillow image."""
    image = image.convert("RGB")
    if channels == 1:
        image = image.convert("L")
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(resize * long / short)
    shape = (resize, new_long) if width <= height else (new_long, resize)
    image = image.resize(shape, BILINEAR)
    top, left = round((shape[1] - size) / 2.0), round((shape[0] - size) / 2.0)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, channels)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("height", "width", "size", "resize"),
    [
        (123, 171, 40, 51),
        (171, 123, 41, 50),
        (64, 64, 64, 64),
        (33, 400, 48, 48),
        (50, 51, 224, 256),
    ],
)
def test_evaluation_is_pixel_for_pixel_torchvision(height, width, size, resize, channels):
    data = encode(photograph(height, width))
    image = evaluate(data, size, resize, channels)
    expected = torchvision_says(Image.open(io.BytesIO(data)), size, resize, channels)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8
    assert image.flags.writeable


KINDS = {
    "4:4:4": ("RGB", "JPEG", {"subsampling": 0}),
    "4:2:2": ("RGB", "JPEG", {"subsampling": 1}),
    "progressive": ("RGB", "JPEG", {"progressive": True}),
    "keep_rgb": ("RGB", "JPEG", {"keep_rgb": True}),
    "grey": ("L", "JPEG", {}),
    "cmyk": ("CMYK", "JPEG", {}),
    "png": ("RGB", "PNG", {}),
    "png grey": ("L", "PNG", {}),
    "png alpha": ("RGBA", "PNG", {}),
    "png grey alpha": ("LA", "PNG", {}),
    "png palette": ("P", "PNG", {}),
    "png bits": ("1", "PNG", {}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "webp": ("RGB", "WEBP", {}),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(kind, channels):
    mode, file_format, options = KINDS[kind]
    data = encode(photograph(200, 150).convert(mode, dither=0), file_format, **options)
    image = Image.open(io.BytesIO(data))
    expected = torchvision_says(image, 40, 50, channels)
    np.testing.assert_array_equal(evaluate(data, channels=channels), expected)
    # The whole image at 1/2: pixels have the same places for every reader.
    ours = train(data, size=70, channels=channels, area=(1.1, 1.25))
    converted = image.convert("RGB") if channels == 3 else image.convert("RGB").convert("L")
    expected = np.asarray(converted.resize((70, 70), BILINEAR)).reshape(70, 70, channels)
    assert difference(ours, expected) < 3


def test_orientation_in_exif_is_ignored():
    image = photograph(60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    turned, plain = encode(image, exif=exif), encode(image)
    assert turned != plain
    np.testing.assert_array_equal(evaluate(turned), evaluate(plain))
    np.testing.assert_array_equal(train(turned), train(plain))


# Damage

WHOLE = {
    "baseline": encode(photograph(60, 80)),
    "progressive": encode(photograph(60, 80), progressive=True),
    "cmyk": encode(photograph(60, 80).convert("CMYK")),
    "png": encode(photograph(60, 80), "PNG"),
}


@pytest.mark.parametrize("read", [train, evaluate])
@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_file_is_damaged_wherever_it_ends(read, kind):
    data = WHOLE[kind]
    read(data)
    end = {"cmyk": 2, "png": 22}.get(kind, 0)  # Pillow stops after the last pixel
    for length in [*range(0, 700, 7), *range(700, len(data) - end, 61), len(data) - end - 1]:
        with pytest.raises(DamagedImage, match="decoded"):
            read(data[:length])


def test_missing_data_in_the_middle_are_noticed():
    data = WHOLE["baseline"]
    with pytest.raises(DamagedImage, match="premature end"):
        evaluate(data[:-300] + data[-100:])


def test_surplus_data_at_the_end_are_no_damage():
    data = WHOLE["baseline"]
    for surplus in (data[:-2] + bytes(9) + data[-2:], data + bytes(9)):
        np.testing.assert_array_equal(evaluate(surplus), evaluate(data))
        np.testing.assert_array_equal(train(surplus), train(data))


def test_parameters_of_a_scan_that_no_decoder_needs_are_no_damage():
    data = WHOLE["baseline"]
    end = data.index(b"\xff\xda") + 14
    assert data[end - 3 : end] == bytes([0, 63, 0])
    odd = data[: end - 3] + bytes([0, 0, 0]) + data[end:]
    np.testing.assert_array_equal(evaluate(odd), evaluate(data))
    with pytest.raises(DamagedImage):
        evaluate(odd[:-200])


def test_surplus_data_elsewhere_are_damage():
    before, marker, after = WHOLE["progressive"].rpartition(b"\xff\xc4")
    with pytest.raises(DamagedImage, match="extraneous bytes before marker 0xc4"):
        evaluate(before + bytes(9) + marker + after)


def test_surplus_data_before_the_first_row_are_damage():
    """The decoder stops there, so the pixels would be uninitialized memory."""
    data = encode(photograph(40, 56), quality=90)
    for marker in (b"\xff\xc0", b"\xff\xda"):
        place = data.index(marker)
        surplus = data[:place] + bytes(60) + data[place:]
        for seed in range(20):  # also boxes that end above the last row
            with pytest.raises(DamagedImage, match="extraneous bytes before marker"):
                train(surplus, seed, size=16)


@pytest.mark.parametrize("read", [train, evaluate])
@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"text", bytes(1000), b"%!PS-Adobe-3.0"]
)
def test_what_is_no_image_is_damaged(read, data):
    with pytest.raises(DamagedImage, match="cannot be decoded: it is none of JPEG, PNG"):
        read(data)


@pytest.mark.parametrize("read", [train, evaluate])
@pytest.mark.parametrize("side", [9000, 65000])
def test_huge_headers_are_refused_before_anything_is_allocated(read, side, monkeypatch):
    jpeg, header = WHOLE["baseline"], bytes([8, 0, 60, 0, 80])
    assert header in jpeg
    huge = jpeg.replace(header, b"\x08" + 2 * side.to_bytes(2))
    pixels = io.BytesIO()
    Image.new("1", (side, 1)).save(pixels, "BMP")
    bmp = pixels.getvalue()[:22] + side.to_bytes(4, "little") + pixels.getvalue()[26:]
    monkeypatch.setattr(decode, "decode", None)  # every use fails
    for data in (huge, bmp):
        with pytest.raises(DamagedImage, match=r"pixels"):
            read(data)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=6),
)
def test_altered_bytes_give_pixels_or_damage(kind, edits):
    data = bytearray(WHOLE[kind])
    for place, new in edits:
        start = int(place**3 * len(data))  # headers are at the start
        data[start : start + 2] = new
    for read, size in ((train, 64), (evaluate, 40)):
        with suppress(DamagedImage):
            assert read(bytes(data)).shape == (size, size, 3)
