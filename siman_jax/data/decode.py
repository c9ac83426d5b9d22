"""From the bytes of an image file to uint8 pixels, for training and for evaluation.

JPEG is decoded by libjpeg-turbo through simplejpeg, all else by Pillow, both without the
interpreter lock. Colour profiles and EXIF orientation are ignored, as torchvision ignores them.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from siman_jax.data.dataset import DamagedImage

_MAX_PIXELS = 2**26
_SOFTENED = 1.3  # up to this scale the filter would change little
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # all read without other programs

cv2.setNumThreads(0)  # loaders work on many images at a time, so that each needs one core only


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float] = (0.08, 1.25),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a box inside an image: area and place uniform, aspect log-uniform.

    A box that does not fit is drawn again, and an area above 1 never fits; after ten draws the
    largest central box of an admissible aspect is taken.

    Args:
      rng: advanced by the draws.
      height: of the image.
      width: of the image.
      area: least and greatest area, as shares of the image's.
      aspect: least and greatest width / height.
    """
    for _ in range(10):
        share, slant, down, across = rng.random(4).tolist()
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = aspect[0] * (aspect[1] / aspect[0]) ** slant
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
            return Box(top, left, rows, columns)
    rows, columns = min(height, round(width / aspect[0])), min(width, round(height * aspect[1]))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def training_image(
    data: bytes,
    rng: np.random.Generator,
    *,
    size: int,
    channels: int,
    min_area: float,
    max_area: float,
    flip: bool,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decode a random box of an image, scale it to a square, and mirror it half of the time.

    A JPEG is decoded only down to the box, and at 1/2, 1/4 or 1/8 of the resolution where the box
    keeps at least `size` pixels each way; its edges move to whole pixels there. Scaling antialiases
    like Pillow's bilinear filter.

    Args:
      data: the file's bytes.
      rng: advanced by the draws; nothing else is random.
      size: height and width of the result.
      channels: 3 for RGB, 1 for luma.
      min_area: least area of the box, as a share of the image's.
      max_area: greatest area of the box.
      flip: whether to mirror.
      out: where to write the result, if not to a new array.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded, or end too early.
    """
    header = _read_header(data)
    area = min_area, max_area
    top, left, rows, columns = random_box(rng, header.height, header.width, area=area)
    factor = next((f for f in (8, 4, 2) if min(rows, columns) >= f * size), 1)
    pixels = _decode(data, header, channels, factor, top + rows)
    vertical, horizontal = (
        slice(round(start / factor), round((start + length) / factor))
        for start, length in ((top, rows), (left, columns))
    )
    if out is None:
        out = np.empty((size, size, channels), np.uint8)
    _resize(pixels[vertical, horizontal], out)
    if flip and rng.random() < 0.5:
        cv2.flip(out, 1, dst=out)
    return out


def evaluation_image(
    data: bytes, *, size: int, resize: int, channels: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode an image, scale its shorter side to `resize`, and take the central square.

    Pixel for pixel what torchvision's Resize(resize) and CenterCrop(size) make of a Pillow image.

    Args:
      data: the file's bytes.
      size: height and width of the result, at most `resize`.
      resize: what the shorter side becomes.
      channels: 3 for RGB, 1 for luma.
      out: where to write the result, if not to a new array.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded, or end too early.
    """
    header = _read_header(data)
    height, width, _ = header
    image = Image.fromarray(_decode(data, header, 3, 1, height))
    if channels == 1:
        image = image.convert("L")
    scaled = (resize * width // min(height, width), resize * height // min(height, width))
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in scaled)
    image = image.crop((left, top, left + size, top + size))
    if out is None:
        out = np.empty((size, size, channels), np.uint8)
    out[:] = np.asarray(image).reshape(out.shape)
    return out


@contextmanager
def _library_errors() -> Iterator[None]:
    """Turn whatever the libraries raise on bad bytes into DamagedImage."""
    try:
        yield
    except DamagedImage:
        raise
    except UnidentifiedImageError as error:  # its text has an address of memory
        raise DamagedImage(f"cannot be decoded: it is none of {', '.join(_FORMATS)}") from error
    except Exception as error:
        raise DamagedImage(f"cannot be decoded: {error}") from error


class _Header(NamedTuple):
    """What the start of a file says.

    Attributes:
      height: in pixels.
      width: in pixels.
      jpeg: whether it is a usual JPEG; CMYK and whatever else is odd is left to Pillow.
    """

    height: int
    width: int
    jpeg: bool


@_library_errors()
def _read_header(data: bytes) -> _Header:
    """Read the header, and refuse one so large before anything is allocated."""
    header = _jpeg_header(data)
    if header is None:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            header = _Header(image.height, image.width, jpeg=False)
    if header.height * header.width > _MAX_PIXELS:
        size = f"{header.height}x{header.width}"
        raise DamagedImage(f"is {size} pixels; at most {_MAX_PIXELS} are decoded")
    return header


def _jpeg_header(data: bytes) -> _Header | None:
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    return _Header(height, width, jpeg=True) if space in ("Gray", "YCbCr", "RGB") else None


@_library_errors()
def _decode(data: bytes, header: _Header, channels: int, factor: int, rows: int) -> np.ndarray:
    """Decode at 1/factor of the resolution; below the first `rows` rows, pixels may be missing."""
    if not header.jpeg:
        return _decode_with_pillow(data, channels, factor)
    # One decoded row more, since the colours of the last one are interpolated from it.
    shortened, rows = _end_below(data, rows + factor, header.height, header.width)
    height, width = -(-rows // factor), -(-header.width // factor)
    pixels = np.empty((height, width, channels), np.uint8)
    try:
        simplejpeg.decode_jpeg(
            shortened,
            "RGB" if channels == 3 else "GRAY",
            min_height=height,
            min_width=width,
            buffer=pixels,
        )
    except ValueError as error:
        # The message is of the first fault; this one lies behind the last row.
        surplus = "extraneous bytes before marker" + (" 0xd9" if shortened is data else "")
        if surplus not in str(error):
            raise
    return pixels


def _end_below(data: bytes, rows: int, height: int, width: int) -> tuple[bytes, int]:
    """Let the header of a JPEG state fewer rows, so that the decoder stops there.

    Only baseline JPEG stores rows from the top down; other kinds are returned as they are.

    Returns:
      The data, and the rows that their header states.
    """
    stated = b"\x08" + height.to_bytes(2) + width.to_bytes(2)  # after 8, the bits of a sample
    start = data.find(stated)
    if rows >= height or data[max(start - 4, 0) : start - 2] != b"\xff\xc0":
        return data, height
    return data.replace(stated, b"\x08" + rows.to_bytes(2) + width.to_bytes(2), 1), rows


def _decode_with_pillow(data: bytes, channels: int, factor: int) -> np.ndarray:
    """Decode any format at 1/factor of the resolution; transparency is dropped."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
        image: Image.Image = file
        if image.mode.startswith("I;16"):  # Pillow would clip instead of scaling
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise DamagedImage(f"holds {image.mode} pixels, whose range is not known")
        image.info.pop("transparency", None)
        image = image.convert("RGB" if channels == 3 else "L").reduce(factor)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _resize(pixels: np.ndarray, out: np.ndarray) -> None:
    """Scale to a square like Pillow's bilinear filter, a triangle as wide as two result pixels.

    A Gaussian adds to OpenCV's interpolation, a triangle two pixels wide, the variance that the
    wider triangle has. What is far larger is averaged by whole factors first.
    """
    size, (height, width) = len(out), pixels.shape[:2]
    if max(height, width) > 3 * size:
        height, width = (side // max(side // size, 1) for side in (height, width))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if max(height, width) > _SOFTENED * size:
        (columns, across), (rows, down) = _gaussian(width / size), _gaussian(height / size)
        pixels = cv2.GaussianBlur(
            pixels, (columns, rows), across, sigmaY=down, borderType=cv2.BORDER_REPLICATE
        )
    cv2.resize(pixels, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)


def _gaussian(scale: float) -> tuple[int, float]:
    """Number of taps, and the deviation that OpenCV is to draw them from."""
    variance = (scale**2 - 1) / 6  # scale**2 / 6 wanted, 1 / 6 by interpolation
    if scale <= _SOFTENED:
        return 1, 1.0
    if variance > 0.5:
        return 5, math.sqrt(variance)
    outer = variance / (2 - 2 * variance)  # three taps, 1 in the middle, have the variance exactly
    return 3, math.sqrt(-0.5 / math.log(outer))
