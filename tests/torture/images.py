"""Image files with damaged bytes, by every way in: training, evaluation and whole images."""

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from siman_jax.data.dataset import DamagedImage
from siman_jax.data.decode import WrongSize, evaluation_image, training_image, whole_image
from siman_jax.data.frames import has_more_frames
from siman_jax.data.pixels import PixelRules

from .case import Finding, choose
from .damage import damaged_bytes

_SIZE = 16
_ALL_RULES = [
    PixelRules(3),
    PixelRules(1, background=255),
    PixelRules(3, background=128, exif_orientation=True),
]


class Images:
    seconds = 120
    lifetime = 20_000

    def __init__(self, scratch: Path) -> None:
        del scratch

    def make(self, rng: np.random.Generator) -> bytes:
        rules = int(rng.integers(len(_ALL_RULES)))
        return bytes([rules]) + damaged_bytes(rng, choose(rng, samples()))

    def check(self, case: bytes) -> Mapping[str, int]:
        rules, data = _ALL_RULES[case[0]], case[1:]
        counts = {"refused": 0, "decoded": 0}
        for way in (_trained, _evaluated, _whole):
            _fill_freed_memory(0x55)
            first = _try(way, data, rules)
            _fill_freed_memory(0xAA)
            second = _try(way, data, rules)
            if first != second:
                raise Finding(
                    f"{way.__name__}: the same bytes give {_word(first)}, then "
                    f"{_word(second)}: what is not decoded is not filled"
                )
            counts["refused" if isinstance(first, str) else "decoded"] += 1
        assert has_more_frames(data) in (True, False)
        return counts


def _word(result: bytes | str) -> str:
    return result if isinstance(result, str) else f"pixels {result[:8].hex()}..."


def _try(way, data: bytes, rules: PixelRules) -> bytes | str:
    try:
        pixels = way(data, rules)
    except (DamagedImage, WrongSize) as error:
        if not str(error) or len(str(error)) > 5000:
            raise Finding(f"a message of {len(str(error))} characters") from error
        return str(error)
    if pixels.shape != (_SIZE, _SIZE, rules.channels) or pixels.dtype != np.uint8:
        raise Finding(f"{way.__name__} gives {pixels.dtype}{pixels.shape}")
    return pixels.tobytes()


def _trained(data: bytes, rules: PixelRules) -> np.ndarray:
    rng = np.random.default_rng(len(data))
    return training_image(
        data, rng, rules=rules, size=_SIZE, min_area=0.08, max_area=1.25, flip=True
    )


def _evaluated(data: bytes, rules: PixelRules) -> np.ndarray:
    return evaluation_image(data, rules=rules, size=_SIZE, resize=20)


def _whole(data: bytes, rules: PixelRules) -> np.ndarray:
    return whole_image(data, rules=rules, size=_SIZE, resize=True)


def _fill_freed_memory(value: int) -> None:
    """Leave bytes in memory that the next arrays of these sizes take over."""
    held = [np.full(1 << power, value, np.uint8) for power in range(6, 15)]
    held += [np.full(height * width * 3, value, np.uint8) for height, width in ((40, 56), (23, 30))]
    del held


@cache
def samples() -> list[bytes]:
    """Small files of every format that is read, in their kinds."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    colour = small.resize((56, 40), Image.Resampling.BICUBIC)
    tiny = small.resize((16, 16), Image.Resampling.BICUBIC)
    grey, wide = colour.convert("L"), Image.fromarray(rng.integers(0, 2**16, (23, 30), np.uint16))
    seen = colour.copy()
    seen.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        _encoded(colour, "JPEG", quality=90),
        _encoded(colour, "JPEG", quality=60, subsampling=0, exif=exif),
        _encoded(colour, "JPEG", progressive=True),
        _encoded(grey, "JPEG"),
        _encoded(colour.convert("CMYK"), "JPEG"),
        _encoded(tiny, "JPEG"),
        *(_encoded(image, "PNG") for image in (colour, grey, wide, seen, tiny)),
        _encoded(colour.quantize(7), "PNG", transparency=2),
        _encoded(colour.convert("1"), "PNG"),
        *(_encoded(image, "BMP") for image in (colour, grey, colour.quantize(7))),
        _encoded(colour.quantize(16), "GIF", transparency=1),
        _encoded(tiny.quantize(16), "GIF", save_all=True, append_images=[grey.convert("P")]),
        *(_encoded(image, "PPM") for image in (colour, grey, wide)),
        b"P3 3 2 255 " + b" ".join(b"%d" % (i * 14) for i in range(18)),
        *(
            _encoded(image, "TIFF", compression=compression)
            for image, compression in (
                (colour, None),
                (colour, "tiff_lzw"),
                (grey, "tiff_adobe_deflate"),
                (wide, None),
                (colour, "jpeg"),
                (colour.convert("1"), "group4"),
            )
        ),
        _encoded(colour, "WEBP"),
        _encoded(seen, "WEBP", lossless=True),
        _encoded(tiny, "WEBP", save_all=True, append_images=[colour.resize((16, 16))]),
    ]
    return files


def _encoded(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()
