"""From the bytes of an image file to uint8 pixels of all of it, as small data sets take images."""

import io

import numpy as np
from PIL import Image, ImageOps


class WrongSize(ValueError):  # noqa: N818
    """An image has another size than the network's; the message names both."""


def whole_image(data: bytes, *, size: int, channels: int, resize: bool) -> np.ndarray:
    """Decode an image.

    Args:
      data: the file's bytes.
      size: height and width of the result.
      channels: 3 for RGB, 1 for luma.
      resize: scale and crop an image of another size to fit.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      WrongSize: it has another size, and `resize` is False.
      OSError, ValueError, SyntaxError, DecompressionBombError: Pillow cannot read it.
    """
    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGB" if channels == 3 else "L")
    if resize:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if image.size != (size, size):
        raise WrongSize(f"is {image.width}x{image.height} pixels, expected {size}x{size}")
    return np.asarray(image).reshape(size, size, channels)
