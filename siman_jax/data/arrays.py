"""Data sets made from arrays in memory."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from siman_jax.data.dataset import Dataset, Split
from siman_jax.data.defaults import images_in_memory
from siman_jax.errors import UsageError

# The name of the source when data are passed in from Python.
ARRAYS = "arrays"

Examples = tuple[ArrayLike, ArrayLike]


def dataset_of(train: Examples, test: Examples, classes: Sequence[str] | None = None) -> Dataset:
    """Make a data set from arrays.

    Args:
      train: uint8 images `[n, size, size, channels]`, with 1 or 3 channels, and labels `[n]`,
        whole numbers from 0.
      test: test images of the same size, and their labels.
      classes: name of each label; default "0", "1", ...

    Raises:
      UsageError: `train` or `test` is not a pair, an array has a wrong shape or dtype, or a label
        has no name.
    """
    splits = _split("train", train), _split("test", test)
    shapes = [split.images.shape[1:] for split in splits]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"training images are {shapes[0]} and test images {shapes[1]}; expected the same shape."
        )
    count = 1 + max(int(split.labels.max()) for split in splits)
    names = tuple(classes) if classes is not None else tuple(map(str, range(count)))
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"the class names are {names}; expected texts, such as ('no', 'yes').")
    if len(names) < count:
        raise UsageError(
            f"the largest label is {count - 1}, but there are {len(names)} class names; give"
            f" {count} of them."
        )
    return Dataset(*splits, names)


def _split(name: str, examples: Examples) -> Split:
    if not (isinstance(examples, tuple | list) and len(examples) == 2):
        raise UsageError(
            f"the {name} data are of type {type(examples).__name__}; expected a pair (images,"
            " labels), so data=((train_images, train_labels), (test_images, test_labels))."
        )
    images, labels = (np.asarray(part) for part in examples)
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2]:
        raise UsageError(
            f"{name} images are {images.dtype} {shape}; expected uint8 [n, size, size, channels]."
        )
    if shape[3] not in (1, 3):
        raise UsageError(f"{name} images are {shape}; expected 1 or 3 channels as the last axis.")
    if labels.shape != shape[:1] or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise UsageError(
            f"{name} labels are {labels.dtype} {labels.shape} for {shape[0]} images; expected a"
            " whole number for each image, and at least one image."
        )
    if labels.min() < 0:
        raise UsageError(f"a {name} label is {labels.min()}; expected whole numbers from 0.")
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def config_for(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """Copy a run's config and set the fields of `config.data` that the data set determines.

    These are the source, the sizes, the number of classes, and mean and standard deviation of the
    training images by channel. The others keep their values, and fields of image files are left
    out.
    """
    assert isinstance(dataset.train, Split)
    images = dataset.train.images
    _, size, _, channels = images.shape
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts[0].sum()
    std = np.sqrt(np.maximum(counts @ levels**2 / counts[0].sum() - mean**2, 0))
    data = images_in_memory()
    data.update({name: config.data[name] for name in data})
    data.update(
        source=ARRAYS,
        image_size=size,
        channels=channels,
        num_classes=len(dataset.classes),
        mean=tuple(round(float(x), 4) for x in mean),
        std=tuple(max(round(float(x), 4), 1e-4) for x in std),
    )
    copy = config.copy_and_resolve_references()
    copy.unlock()
    copy.data = data
    return copy


def load(config: ConfigDict) -> NoReturn:
    """Refuse to load: arrays can only be passed in from Python.

    Raises:
      UsageError: always.
    """
    del config
    raise UsageError(
        "this run was trained on arrays in memory; pass them again, with"
        " siman_jax.train(config, workdir, data=...)."
    )
