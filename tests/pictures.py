"""Pictures for tests, and files of them."""

import io

import cv2
import numpy as np
from PIL import Image


def photograph(height, width, seed=0):
    """Something with as much detail at each scale as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for step in (64, 32, 16, 8, 4, 2, 1):
        waves = rng.normal(0, step * 0.7, (height // step + 2, width // step + 2, 3))
        pixels += cv2.resize(waves, (width, height), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image, file_format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()
