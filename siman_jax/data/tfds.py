"""Image classification data sets of TensorFlow Datasets, read without TensorFlow.

Preparing the files, once, needs TensorFlow and the network; reading them needs neither.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset, Record
from siman_jax.errors import UsageError


@dataclass(frozen=True)
class TfdsRecords:
    """A split of a prepared data set, with encoded images.

    Attributes:
      source: TFDS's data source, set up to skip decoding.
      name: name of the data set and the split.
    """

    source: Any
    name: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        example = self.source[index]
        file_name = example.get("file_name", b"")
        name = file_name.decode() if file_name else f"example {index}"
        return Record(example["image"], int(example["label"]), f"{self.name}, {name}")


def load(config: ConfigDict) -> Dataset:
    """Open two splits of a data set; prepare it first if needed and possible.

    Args:
      config: with `name`, such as "cifar10"; `train_split` and `test_split`; and `tfds_dir`, the
        folder of prepared data sets ("": TFDS's default, ~/tensorflow_datasets).

    Raises:
      UsageError: the data set is not prepared and cannot be prepared here; the message gives the
        commands that prepare it.
    """
    import tensorflow_datasets as tfds

    builder = _builder(config)
    if not builder.is_prepared():
        _prepare(builder)
    names = (config.train_split, config.test_split)
    for split in names:
        if split not in builder.info.splits:
            raise UsageError(
                f"{builder.info.full_name} has no split {split!r}, only"
                f" {sorted(builder.info.splits)}; change --config.data.train_split or"
                " --config.data.test_split."
            )
    features = dict(builder.info.features.items())
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(name), kind) for name, kind in kinds.items()):
        raise UsageError(
            f"{builder.info.full_name} has the features {features}; expected the features image and"
            " label, an image and its class. Choose another data set."
        )
    decoders = {"image": tfds.decode.SkipDecoding()}
    train, test = (
        TfdsRecords(
            builder.as_data_source(split, decoders=decoders), f"{builder.info.full_name} {split}"
        )
        for split in names
    )
    return Dataset(train, test, tuple(features["label"].names))


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the classes; the data set need not be prepared.

    Raises:
      UsageError: the data set is unknown, or its classes have no names.
    """
    features = _builder(config).info.features or {}
    names = getattr(features.get("label"), "names", None)
    if names is None:
        raise UsageError(f"the classes of {config.name} have no names; choose another data set.")
    return tuple(names)


def _builder(config: ConfigDict) -> Any:
    import tensorflow_datasets as tfds

    folder = config.tfds_dir or None
    try:
        # Array records can be read in any order without TensorFlow.
        return tfds.builder(config.name, data_dir=folder, file_format="array_record")
    except Exception as error:  # an unknown name, or files of another format
        raise UsageError(
            f"{config.name} cannot be read from {folder or 'the folder of prepared data sets'}:"
            f" {error}\nIf it was prepared in a file format other than array_record, prepare it"
            " again in an empty folder, named by --config.data.tfds_dir."
        ) from error


def _prepare(builder: Any) -> None:
    name, folder = builder.info.full_name, builder.data_dir_root
    if jax.process_count() > 1:
        raise UsageError(
            f"{name} is not prepared in {folder}, and {jax.process_count()} processes cannot"
            f" prepare it at once. Prepare it first, with\n  {_prepare_command(builder)}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            f"{name} is not prepared in {folder}; preparing it, once, needs TensorFlow. Run\n"
            "  pip install 'siman-jax[prepare]'     (from a clone: pip install -e '.[prepare]')\n"
            "and start again; or prepare it on another machine with\n"
            f"  {_prepare_command(builder)}\n"
            f"and copy its {builder.name} folder to {folder}."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UsageError(
            f"{name} could not be downloaded or prepared in {folder}: {error}\n"
            "If this machine has no network, prepare it on another machine with\n"
            f"  {_prepare_command(builder)}\n"
            f"and copy its {builder.name} folder to {folder}."
        ) from error


def _prepare_command(builder: Any) -> str:
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{builder.name}', file_format='array_record').download_and_prepare()\""
    )
