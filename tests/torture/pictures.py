"""A small folder of images to train on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(root: Path) -> None:
    """Write 16 training and 8 validation images of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
                file = io.BytesIO()
                small.resize((14, 12), Image.Resampling.BICUBIC).save(file, "JPEG")
                (folder / f"{index:02}.jpg").write_bytes(file.getvalue())
