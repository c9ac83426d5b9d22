"""Decode image files to uint8 pixels; all code that reads images uses this decoder.

JPEG is decoded by libjpeg-turbo through simplejpeg, other formats by Pillow; both release the
interpreter lock. Pixels of 16 bits keep the upper eight, transparent parts show a background, and
the first of several images in a file is used. Colour profiles are ignored, as in torchvision, and
so is EXIF orientation unless it is switched on. The orientation tag of TIFF is always followed.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from ml_collections import ConfigDict
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from siman_jax.data.dataset import DamagedImage
from siman_jax.data.formats import FORMATS

MAX_PIXELS = 2**26
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and of TIFF
_WHITE_IS_ZERO = 0

# MAX_PIXELS is a stricter limit than Pillow's.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class PixelRules:
    """Choices in decoding that a file leaves open.

    Attributes:
      channels: 3 for RGB, 1 for luma.
      background: grey level behind transparent parts, from 0 (black) to 255 (white).
      exif_orientation: whether to turn images as their EXIF data say.
    """

    channels: int
    background: int = 0
    exif_orientation: bool = False


def pixel_rules(data: ConfigDict) -> PixelRules:
    """Return the rules that `data` names, with `channels`, `background` and `exif_orientation`."""
    return PixelRules(data.channels, data.background, data.exif_orientation)


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Header(NamedTuple):
    """The header of an image file.

    Attributes:
      height, width: in pixels, as stored.
      jpeg: whether it is a JPEG that simplejpeg decodes; Pillow decodes CMYK and other rare kinds.
      orientation: how to turn the stored pixels, a number of EXIF: 1 not at all, 5 to 8 transposed.
    """

    height: int
    width: int
    jpeg: bool
    orientation: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the turned image."""
        return (self.height, self.width) if self.orientation < 5 else (self.width, self.height)

    def stored(self, box: Box) -> Box:
        """Convert a box of the turned image to a box of the stored pixels."""
        top, left, rows, columns = box
        height, width = self.shape
        if self.orientation in _UPSIDE_DOWN:
            top = height - top - rows
        if self.orientation in _MIRRORED:
            left = width - left - columns
        if self.orientation < 5:
            return Box(top, left, rows, columns)
        return Box(left, top, columns, rows)

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        """Turn stored pixels `[height, width, channels]` of the whole image or a box."""
        if self.orientation == 1:
            return pixels
        if self.orientation >= 5:
            pixels = pixels.swapaxes(0, 1)
        if self.orientation in _UPSIDE_DOWN:
            pixels = pixels[::-1]
        if self.orientation in _MIRRORED:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)


_UPSIDE_DOWN, _MIRRORED = {3, 4, 7, 8}, {2, 3, 6, 7}  # for 5 to 8, after transposing


@contextmanager
def _library_errors() -> Iterator[None]:
    """Convert any error that the libraries raise on bad bytes to DamagedImage."""
    try:
        yield
    except DamagedImage:
        raise
    except UnidentifiedImageError as error:  # its text contains a memory address
        raise DamagedImage(f"cannot be decoded: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise DamagedImage(f"cannot be decoded: {error}") from error


@_library_errors()
def read_header(data: bytes, rules: PixelRules) -> Header:
    """Read the header of an image, and check its size before memory is allocated.

    Raises:
      DamagedImage: the header cannot be read, or has more than `MAX_PIXELS` pixels.
    """
    header = _jpeg_header(data)
    if header is None or rules.exif_orientation:
        with _open(data) as image:
            header = header or Header(image.height, image.width, jpeg=False)
            _check_size(header)
            if rules.exif_orientation and image.format != "TIFF":  # Pillow turns TIFF itself
                orientation = image.getexif().get(_ORIENTATION)
                if isinstance(orientation, int) and 1 <= orientation <= 8:
                    header = header._replace(orientation=orientation)
    _check_size(header)
    return header


def _check_size(header: Header) -> None:
    if header.height * header.width > MAX_PIXELS:
        size = f"{header.width}x{header.height}"
        raise DamagedImage(f"is {size} pixels; at most {MAX_PIXELS} are decoded")


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=tuple(FORMATS))


def _jpeg_header(data: bytes) -> Header | None:
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    return Header(height, width, jpeg=True) if space in ("Gray", "YCbCr", "RGB") else None


@_library_errors()
def decode(
    data: bytes, header: Header, rules: PixelRules, *, factor: int = 1, rows: int | None = None
) -> np.ndarray:
    """Decode the stored pixels of an image, or of its upper part.

    Args:
      data: the file's bytes.
      header: the file's header.
      rules: how to decode; the image is not turned, see `Header.turned`.
      factor: 1, 2, 4 or 8; decode at 1/factor of the resolution.
      rows: number of rows needed, at full resolution; rows below may be missing in the result.

    Returns:
      uint8 `[height, width, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded, end too early, or hold pixels of unknown range.
    """
    if not header.jpeg:
        return _decode_with_pillow(data, header, rules, factor)
    # One more decoded row: the colours of the last row are interpolated from it.
    end = header.height if rows is None else rows + factor
    shortened, end = _end_below(data, end, header.height, header.width)
    height, width = -(-end // factor), -(-header.width // factor)
    pixels = np.empty((height, width, rules.channels), np.uint8)
    try:
        simplejpeg.decode_jpeg(
            shortened,
            "RGB" if rules.channels == 3 else "GRAY",
            min_height=height,
            min_width=width,
            buffer=pixels,
        )
    except ValueError as error:
        if "Invalid SOS parameters" in str(error):  # a harmless fault in files of some phones
            return _decode_with_pillow(data, header, rules, factor)
        # The message names the first fault. Surplus bytes after the last row are harmless; before
        # the first row they stop the decoder at once.
        surplus = "extraneous bytes before marker" + (" 0xd9" if shortened is data else "")
        if surplus not in str(error):
            raise
        simplejpeg.decode_jpeg_header(shortened)  # raises if the fault is before the first row
    return pixels


def _end_below(data: bytes, rows: int, height: int, width: int) -> tuple[bytes, int]:
    """Write a smaller number of rows into the header of a JPEG, so that the decoder stops there.

    Only baseline JPEG stores rows from top to bottom; other kinds are returned unchanged.

    Returns:
      The data, and the number of rows in their header.
    """
    stated = b"\x08" + height.to_bytes(2) + width.to_bytes(2)  # the 8 is the bits of a sample
    start = data.find(stated)
    if rows >= height or data[max(start - 4, 0) : start - 2] != b"\xff\xc0":
        return data, height
    return data.replace(stated, b"\x08" + rows.to_bytes(2) + width.to_bytes(2), 1), rows


def _decode_with_pillow(data: bytes, header: Header, rules: PixelRules, factor: int) -> np.ndarray:
    """Decode any format at 1/factor of the resolution."""
    with _open(data) as file:
        file.load()
        image = _eight_bits(file, data, rules.background)
        if image.has_transparency_data:
            image = _over(rules.background, image)
        elif image.mode != "L":
            image = image.convert("RGB")
        if image.size != (header.width, header.height):
            raise DamagedImage(
                f"is {image.size} pixels, but its header says {header.width, header.height}"
            )
        image = image.convert("RGB" if rules.channels == 3 else "L").reduce(factor)
    return np.asarray(image).reshape(image.height, image.width, rules.channels)


def _over(background: int, image: Image.Image) -> Image.Image:
    """Put a transparent image on a grey background."""
    behind = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _eight_bits(image: Image.Image, data: bytes, background: int) -> Image.Image:
    """Scale grey pixels of 9 to 16 bits to 8 bits; return other loaded images unchanged.

    Pillow would clip instead, and does not scale the transparent grey level of a PNG.

    Raises:
      DamagedImage: pixels are floats or have 32 bits, or a transparent colour has 16.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values, bits = np.asarray(image), 16
        if isinstance(image, TiffImageFile):
            bits = image.tag_v2[_BITS_PER_SAMPLE][0]
            if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
                values = 2**bits - 1 - values
        levels = (values >> (bits - 8)).astype(np.uint8)
        if key is not None:
            levels[values == key] = background
        return Image.fromarray(levels)
    if image.mode in ("I", "F"):
        raise DamagedImage(f"holds {image.mode} pixels, whose range is not known")
    if image.format == "PNG" and key is not None:
        bits = data[24]
        white = 2**bits - 1
        if image.mode in ("1", "L"):
            image.info["transparency"] = (key & white) * 255 // white
        elif image.mode == "RGB" and bits == 16:
            raise DamagedImage(
                "has a transparent colour of 16 bits, which 8 bits cannot tell from similar ones"
            )
    return image
