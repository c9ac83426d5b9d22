"""Load and check the data of a config."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from siman_jax.data import arrays, digits, image_folder, tfds
from siman_jax.data.dataset import CheckedRecords, Dataset, Records, Split, evenly_divided
from siman_jax.data.defaults import are_files
from siman_jax.data.memory import decode_dataset
from siman_jax.errors import UsageError, choose
from siman_jax.outside import call_function, find_function, is_outside

SOURCES: dict[str, Callable[[ConfigDict], Dataset]] = {
    "digits": digits.load,
    "tfds": tfds.load,
    "image_folder": image_folder.load,
    arrays.ARRAYS: arrays.load,
}

CLASS_NAMES: dict[str, Callable[[ConfigDict], tuple[str, ...]]] = {
    "digits": digits.class_names,
    "tfds": tfds.class_names,
    "image_folder": image_folder.class_names,
    arrays.ARRAYS: arrays.load,
}


def load_dataset(config: ConfigDict, given: Dataset | None = None) -> Dataset:
    """Load the data set that `config` describes, and check that it matches the config.

    Args:
      config: `config.data`. `source` is a key of `SOURCES`, or PACKAGE.MODULE:FUNCTION, a function
        from this config to a data set.
      given: the data set, if the source is `arrays`.

    Returns:
      The data set. Both splits are of type `Split` if `config.resident`, otherwise `Records`.

    Raises:
      UsageError: the source is unknown, cannot load the data, or gives other images or classes
        than `config` says.
    """
    load = _source(config.source)
    if config.channels not in (1, 3):
        raise UsageError(f"--config.data.channels is {config.channels}; it must be 1 or 3.")
    numbers = (*config.mean, *config.std)
    if (
        not len(config.mean) == len(config.std) == config.channels
        or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        or min(config.std) <= 0
    ):
        raise UsageError(
            f"--config.data.mean is {config.mean} and --config.data.std {config.std}; each must"
            f" have one number for each of the {config.channels} channels, such as"
            f" {','.join(['0.5'] * config.channels)}, and std must be above 0."
        )
    dataset = load(config) if given is None else given
    if len(dataset.classes) != num_classes(config):
        raise UsageError(
            f"the data set has {len(dataset.classes)} classes, but --config.data.num_classes is"
            f" {config.num_classes}."
        )
    if isinstance(dataset.train, Split) and not config.resident:
        raise UsageError(
            f"the data source {config.source!r} always loads into memory; set"
            " --config.data.resident=True."
        )
    if not (isinstance(dataset.train, Split) and isinstance(dataset.test, Split)):
        if not are_files(config):
            raise UsageError(
                f"the data source {config.source!r} gives encoded images, but the config lacks"
                " fields for them; make config.data with siman_jax.data.defaults.image_files()."
            )
        _check_background(config.background)
        if is_outside(config.source):
            dataset = _checked(dataset, config.source)
        if config.resident:
            dataset = decode_dataset(dataset, config)
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        if isinstance(split, Split):
            _check_split(name, split, config, len(dataset.classes))
    dataset = replace(dataset, train=_in_int32(dataset.train), test=_in_int32(dataset.test))
    if config.validation_examples:
        train = _in_memory(dataset.train, "validation_examples", config.validation_examples)
        held_out, others = evenly_divided(train, config.validation_examples)
        dataset = replace(dataset, train=others, test=held_out)
    if config.train_examples:
        train = _in_memory(dataset.train, "train_examples", config.train_examples)
        dataset = replace(dataset, train=evenly_divided(train, config.train_examples)[0])
    return dataset


def _source(name: str) -> Callable[[ConfigDict], Dataset]:
    if is_outside(name):
        return partial(_load_outside, find_function(name, "data.source", SOURCES), name)
    return choose(SOURCES, name, "data source")


def _load_outside(function: Callable[..., object], name: str, config: ConfigDict) -> Dataset:
    """Call a source outside the package, and check that it gives two splits and names."""
    dataset = call_function(function, name, config)
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"{name} gave {type(dataset).__name__}; expected a function from a config to a"
            " siman_jax.data.dataset.Dataset."
        )
    classes = dataset.classes
    if not isinstance(classes, list | tuple) or not all(isinstance(x, str) for x in classes):
        raise UsageError(
            f"{name} gave the classes {classes!r}; expected their names, such as ('no', 'yes')."
        )
    for split, part in (("training", dataset.train), ("test", dataset.test)):
        _check_type(f"the {split} split that {name} gave", part)
    return replace(dataset, classes=tuple(classes))


def _check_type(what: str, split: object) -> None:
    if isinstance(split, Split):
        if not (isinstance(split.images, np.ndarray) and isinstance(split.labels, np.ndarray)):
            raise UsageError(
                f"{what} has images of type {type(split.images).__name__} and labels of type"
                f" {type(split.labels).__name__}; expected NumPy arrays."
            )
    elif not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        raise UsageError(
            f"{what} is of type {type(split).__name__}; expected a siman_jax.data.dataset.Split, or"
            " an object with len and [index] that gives Record(data, label, name)."
        )


def _in_memory(split: Split | Records, field: str, wanted: int) -> Split:
    """Check that `wanted` examples can be taken from the training split, as `field` says."""
    if not isinstance(split, Split):
        raise UsageError(
            f"--config.data.{field} works only for data in memory; set it to 0, or set"
            " --config.data.resident=True."
        )
    most = len(split) - (field == "validation_examples")  # one is left to train on
    if not 0 < wanted <= most:
        raise UsageError(
            f"--config.data.{field} is {wanted}; it must be 0 or at most {most}, because there are"
            f" {len(split)} training examples."
        )
    return split


def _check_background(level: int) -> None:
    if not (type(level) is int and 0 <= level <= 255):
        raise UsageError(
            f"--config.data.background is {level}; it must be a whole number from 0 (black) to 255"
            " (white)."
        )


def _checked(dataset: Dataset, name: str) -> Dataset:
    """Return the data set of a source, with records that are checked where they are read."""
    train, test = (
        part if isinstance(part, Split) else CheckedRecords(part, len(dataset.classes), name)
        for part in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test)


def _check_split(name: str, split: Split, config: ConfigDict, classes: int) -> None:
    expected = (config.image_size, config.image_size, config.channels)
    images, labels = split.images, split.labels
    if images.shape[1:] != expected:
        raise UsageError(
            f"{name} images are {images.shape[1:]} (height, width, channels), but the config says"
            f" {expected}; change --config.data.image_size and --config.data.channels."
        )
    if images.dtype != np.uint8:
        raise UsageError(f"{name} images are {images.dtype}; expected uint8, from 0 to 255.")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(labels):
        raise UsageError(
            f"{name} labels are {labels.dtype} {labels.shape} for {len(images)} images; expected a"
            " whole number for each image, and at least one image."
        )
    if not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"{name} labels are from {labels.min()} to {labels.max()}; expected 0 to"
            f" {classes - 1}, the last of {classes} classes."
        )


def _in_int32(split: Split | Records) -> Split | Records:
    """Convert the labels of a split in memory to int32; a batch is padded with the label -1."""
    if not isinstance(split, Split):
        return split
    return Split(split.images, split.labels.astype(np.int32, copy=False))


def num_classes(config: ConfigDict) -> int:
    """Return `config.num_classes`, or if it is 0 the number of class folders in `config.root`."""
    if config.num_classes:
        return config.num_classes
    if config.source != "image_folder":
        raise UsageError("--config.data.num_classes is 0; set it to the number of classes.")
    return len(image_folder.class_names(config))


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels; no image is read.

    Raises:
      UsageError: the source is unknown, or cannot name its classes, for example because its folder
        does not exist.
    """
    if is_outside(config.source):
        return _source(config.source)(config).classes
    return choose(CLASS_NAMES, config.source, "data source")(config)
