"""Decode an image file to a network's input, for training, evaluation and prediction."""

import math
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, ImageOps

from siman_jax.data.dataset import DamagedImage
from siman_jax.data.pixels import MAX_PIXELS, Box, Header, PixelRules, decode, read_header

_SOFTENED = 1.3  # smoothing changes little below this scale

cv2.setNumThreads(0)  # loaders decode many images in parallel, so one thread per image is enough


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float] = (0.08, 1.25),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a random box inside an image: area and position uniform, aspect ratio log-uniform.

    A box that does not fit is drawn again, up to ten times; an area above 1 never fits. After that
    the largest central box with an allowed aspect ratio is taken.

    Args:
      rng: random generator, advanced by the draws.
      height: height of the image.
      width: width of the image.
      area: smallest and largest area, as fractions of the image's area.
      aspect: smallest and largest width / height.
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
    """Decode a random box of an image, scale it to a square, and mirror it with probability 1/2.

    A JPEG is decoded only down to the end of the box, and at 1/2, 1/4 or 1/8 of the resolution if
    the box keeps at least `size` pixels each way; its edges are then rounded to whole pixels.
    Scaling antialiases like Pillow's bilinear filter.

    Args:
      data: the file's bytes.
      rng: random generator, advanced by the draws; nothing else is random.
      rules: how to decode.
      size: height and width of the result.
      min_area: smallest area of the box, as a fraction of the image's area.
      max_area: largest area of the box.
      flip: whether to mirror.
      out: array for the result; default: a new one.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded or end too early.
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

    The pixels equal those of torchvision's Resize(resize) and CenterCrop(size) on a Pillow image.

    Args:
      data: the file's bytes.
      rules: how to decode.
      size: height and width of the result, at most `resize`.
      resize: length of the shorter side after scaling.
      out: array for the result; default: a new one.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: the data cannot be decoded or end too early, or the scaled image would be huge.
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
    """An image has another size than the network's input; the message gives both."""


def whole_image(data: bytes, *, rules: PixelRules, size: int, resize: bool) -> np.ndarray:
    """Decode a whole image, for data sets of small images.

    Args:
      data: the file's bytes.
      rules: how to decode.
      size: height and width of the result.
      resize: whether to scale and crop images of another size.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      WrongSize: the image has another size, and `resize` is False.
      DamagedImage: the data cannot be decoded or end too early.
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
    """Decode and turn an image; Pillow converts colours to luma if one channel is asked for."""
    image = Image.fromarray(header.turned(decode(data, header, replace(rules, channels=3))))
    return image if rules.channels == 3 else image.convert("L")


def _resize(pixels: np.ndarray, out: np.ndarray) -> None:
    """Scale to a square like Pillow's bilinear filter, a triangle two result pixels wide.

    OpenCV's interpolation is a triangle two source pixels wide. A Gaussian blur before it adds the
    missing variance. Much larger images are first averaged by a whole factor.
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
    """Number of taps and standard deviation of the Gaussian, for OpenCV."""
    variance = (scale**2 - 1) / 6  # scale**2 / 6 in all, of which interpolation adds 1 / 6
    if scale <= _SOFTENED:
        return 1, 1.0
    if variance > 0.5:
        return 5, math.sqrt(variance)
    outer = variance / (2 - 2 * variance)  # gives taps (outer, 1, outer) exactly this variance
    return 3, math.sqrt(-0.5 / math.log(outer))
