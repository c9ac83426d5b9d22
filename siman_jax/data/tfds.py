"""Any image classification set of TensorFlow Datasets, read without TensorFlow.

Preparing the files once needs TensorFlow and the network; reading them needs neither.
"""

import importlib.util
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset, Split
from siman_jax.errors import UsageError


def load(config: ConfigDict) -> Dataset:
    """Load the splits "train" and "test" of a prepared data set, preparing it if possible.

    Args:
      config: with `name`, such as "cifar10", and `tfds_dir`, the folder of prepared data sets
        ("" for TFDS's default, ~/tensorflow_datasets).

    Raises:
      UsageError: the data are not prepared and cannot be prepared here; the message gives the
        commands that help.
    """
    import tensorflow_datasets as tfds

    folder = config.tfds_dir or None
    try:
        # Array records allow random access without TensorFlow.
        builder = tfds.builder(config.name, data_dir=folder, file_format="array_record")
    except Exception as error:  # an unknown name, or files of another format
        raise UsageError(
            f"{config.name} cannot be read from {folder or 'the folder of prepared data sets'}:"
            f" {error}\nIf it was prepared in another file format than array_record, name an empty"
            " folder with --config.data.tfds_dir and prepare it there."
        ) from error
    if not builder.is_prepared():
        _prepare(builder)
    try:
        train, test = (_read(builder.as_data_source(split)) for split in ("train", "test"))
    except (ValueError, KeyError) as error:  # no such split, or images of several sizes
        raise UsageError(
            f"{builder.info.full_name} cannot be used: {error}. A data set needs the splits train"
            " and test, and labelled images of one size."
        ) from error
    return Dataset(train, test, tuple(builder.info.features["label"].names))


def _prepare(builder: Any) -> None:
    name, folder = builder.info.full_name, builder.data_dir_root
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            f"{name} is not prepared in {folder}, and preparing it needs TensorFlow, once. Run\n"
            "  pip install 'siman-jax[prepare]'     (from a clone: pip install -e '.[prepare]')\n"
            "and start again; or prepare it on another machine with\n"
            f"  {_prepare_command(builder)}\n"
            f"and copy its {builder.name} folder to {folder}. Nothing here needs TensorFlow after."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UsageError(
            f"{name} could not be downloaded or prepared in {folder}: {error}\n"
            "If this machine has no network, prepare it on one that has, with\n"
            f"  {_prepare_command(builder)}\n"
            f"and copy its {builder.name} folder to {folder}."
        ) from error


def _prepare_command(builder: Any) -> str:
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{builder.name}', file_format='array_record').download_and_prepare()\""
    )


def _read(source: Any) -> Split:
    examples = [source[index] for index in range(len(source))]
    return Split(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )
