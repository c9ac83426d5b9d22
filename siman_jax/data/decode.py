"""From the bytes of an image file to a network's image, for training, evaluation and prediction."""

import math
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, ImageOps

from siman_jax.data.dataset import DamagedImage
from siman_jax.data.pixels import MAX_PIXELS, Box, Header, PixelRules, decode, read_header

_SOFTENED = 1.3  # up to this scale the filter would change little

cv2.setNumThreads(0)  # loaders work on many images at a time, so that each needs one core only


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
    rules: PixelRules,
    size: int,
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
      rules: for what the file leaves open.
      size: height and width of the result.
      min_area: least area of the box, as a share of the image's.
      max_area: greatest area of the box.
      flip: whether to mirror.
      out: where to write the result, if not to a new array.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded, or end too early.
    """
    header = read_header(data, rules)
    box = random_box(rng, *header.shape, area=(min_area, max_area))
    top, left, rows, columns = header.stored(box)
    factor = next((f for f in (8, 4, 2) if min(rows, columns) >= f * size), 1)
    pixels = decode(data, header, rules, factor=factor, rows=top + rows)
    vertical, horizontal = (
        slice(round(start / factor), round((start + length) / factor))
        for start, length in ((top, rows), (left, columns))
    )
    if out is None:
        out = np.empty((size, size, rules.channels), np.uint8)
    _resize(header.turned(pixels[vertical, horizontal]), out)
    if flip and rng.random() < 0.5:
        cv2.flip(out, 1, dst=out)
    return out


def evaluation_image(
    data: bytes, *, rules: PixelRules, size: int, resize: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode an image, scale its shorter side to `resize`, and take the central square.

    Pixel for pixel what torchvision's Resize(resize) and CenterCrop(size) make of a Pillow image.

    Args:
      data: the file's bytes.
      rules: for what the file leaves open.
      size: height and width of the result, at most `resize`.
      resize: what the shorter side becomes.
      out: where to write the result, if not to a new array.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded, or end too early, or would be huge once scaled.
    """
    header = read_header(data, rules)
    height, width = header.shape
    scaled = (resize * width // min(height, width), resize * height // min(height, width))
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise DamagedImage(
            f"is {width}x{height} pixels, which would be {scaled[0]}x{scaled[1]} once the shorter"
            f" side is {resize}; at most {MAX_PIXELS} pixels are scaled"
        )
    image = _whole(data, header, rules).resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in scaled)
    image = image.crop((left, top, left + size, top + size))
    if out is None:
        out = np.empty((size, size, rules.channels), np.uint8)
    out[:] = np.asarray(image).reshape(out.shape)
    return out


class WrongSize(ValueError):  # noqa: N818
    """An image has another size than the network's; the message names both."""


def whole_image(data: bytes, *, rules: PixelRules, size: int, resize: bool) -> np.ndarray:
    """Decode all of an image, as small data sets take images.

    Args:
      data: the file's bytes.
      rules: for what the file leaves open.
      size: height and width of the result.
      resize: scale and crop an image of another size to fit.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      WrongSize: it has another size, and `resize` is False.
      DamagedImage: the data cannot be decoded, or end too early.
    """
    header = read_header(data, rules)
    height, width = header.shape
    if not resize and (height, width) != (size, size):
        raise WrongSize(f"is {width}x{height} pixels, expected {size}x{size}")
    image = _whole(data, header, rules)
    if resize:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.array(image).reshape(size, size, rules.channels)


def _whole(data: bytes, header: Header, rules: PixelRules) -> Image.Image:
    """Decode and turn an image; luma is made of the colours, as Pillow makes it."""
    image = Image.fromarray(header.turned(decode(data, header, replace(rules, channels=3))))
    return image if rules.channels == 3 else image.convert("L")


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
