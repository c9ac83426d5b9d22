"""Reads tests/golden: results of the authors' PyTorch program, in float64.

Weights, images and labels are not stored: both sides draw them by name, from NumPy.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"

# Names of the golden files, and of the networks here.
NETWORKS = {
    "resnet20": "cifar.resnet20_1w1a",
    "resnet18": "cifar.resnet18_1w1a",
    "vgg_small": "cifar.vgg_small_1w1a",
    "resnet18_imagenet": "imagenet.resnet18_1w1a",
}


@dataclass(frozen=True)
class Golden:
    """One network's settings, inputs and results.

    Attributes:
      name: of the golden files.
      settings: the JSON file.
      results: the NPZ file.
      arrays: the PyTorch state before the first step, by PyTorch names.
      images: float64 `[batch, height, width, 3]`.
      labels: int32 `[batch]`.
    """

    name: str
    settings: dict
    results: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    images: np.ndarray
    labels: np.ndarray


def load_golden(name: str) -> Golden:
    settings = json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as file:
        results = dict(file)
    seed, size = settings["seed"], settings["image"]
    rng = np.random.default_rng([seed, 1])
    images = rng.standard_normal((settings["batch"], 3, size, size)).transpose(0, 2, 3, 1)
    labels = rng.integers(0, settings["classes"], settings["batch"]).astype(np.int32)
    arrays = {n: _draw(seed, n, shape, kind) for n, shape, kind, _ in settings["tensors"]}
    return Golden(name, settings, results, arrays, images, labels)


def _draw(seed: int, name: str, shape: list[int], kind: str) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    match kind:
        case "weight":
            return rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        case "alpha":
            return 0.05 + 0.1 * rng.random(shape)
        case "scale":
            return 0.8 + 0.4 * rng.random(shape)
        case "bias":
            return 0.1 * rng.standard_normal(shape)
        case "var":
            return 0.5 + rng.random(shape)
        case "prelu":
            return 0.25 + 0.1 * rng.random(shape)
        case "bits":
            return rng.integers(0, 2, shape)
        case "zero":
            return np.zeros(shape)
    raise ValueError(kind)
