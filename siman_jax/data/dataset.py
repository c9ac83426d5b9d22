"""A data set: two splits, in memory or encoded, and the names of the classes."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from siman_jax.errors import UsageError
from siman_jax.outside import describe


@dataclass(frozen=True)
class Split:
    """Decoded images in memory, with their labels.

    Attributes:
      images: uint8 `[n, height, width, channels]`.
      labels: int32 `[n]`, indices of classes.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def evenly_divided(split: Split, n: int) -> tuple[Split, Split]:
    """Divide a split into `n` evenly spaced examples and the others, both in their order.

    If the split is sorted by class, the classes stay balanced.
    """
    taken = np.zeros(len(split), bool)
    taken[np.arange(n) * len(split) // n] = True
    taken_part, others = (Split(split.images[rows], split.labels[rows]) for rows in (taken, ~taken))
    return taken_part, others


class Record(NamedTuple):
    """One encoded image.

    Attributes:
      data: bytes of the image file.
      label: index of the class.
      name: name of the image for messages.
    """

    data: bytes
    label: int
    name: str


class DamagedImage(ValueError):  # noqa: N818
    """An image cannot be decoded completely; the message says why."""


class Records(Protocol):
    """Encoded images, read one by one in any order.

    Instances must be picklable and must not change when a record is read, because several
    processes read at once.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Record:
        """The image with number `index`, from 0."""


def steps_in_epoch(split: Split | Records, batch_size: int) -> int:
    """Number of full batches in a split; the remaining examples are left out of an epoch."""
    return len(split) // batch_size


@dataclass(frozen=True)
class CheckedRecords:
    """Records from outside the package, which are checked as they are read.

    Attributes:
      records: the records.
      classes: how many classes there are.
      source: name of the function that they come from, "PACKAGE.MODULE:FUNCTION".
    """

    records: Records
    classes: int
    source: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        """Read a record.

        Raises:
          OSError: it cannot be read, so its image counts as damaged.
          DamagedImage: likewise.
          UsageError: reading it fails in another way, it is not a record, or its label is not that
            of a class.
        """
        try:
            record = self.records[index]
        except (OSError, DamagedImage, UsageError):
            raise
        except Exception as error:
            raise UsageError(
                f"reading image {index} of {self.source} failed: {describe(error, self.source)}."
                " Fix the class that reads it."
            ) from error
        if not _is_record(record):
            raise UsageError(
                f"image {index} of {self.source} is of type {type(record).__name__}; expected"
                " Record(data, label, name): bytes, a whole number and a text."
            )
        if not 0 <= record.label < self.classes:
            raise UsageError(
                f"{record.name} has the label {record.label}; expected 0 to {self.classes - 1}, the"
                f" last of {self.classes} classes."
            )
        return record._replace(label=int(record.label))


def _is_record(record: object) -> bool:
    return (
        isinstance(record, Record)
        and isinstance(record.data, bytes)
        and isinstance(record.label, int | np.integer)
        and isinstance(record.name, str)
    )


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split, and the names of the classes.

    Attributes:
      train: examples to train on.
      test: examples to evaluate on.
      classes: name of each label, in order.
    """

    train: Split | Records
    test: Split | Records
    classes: tuple[str, ...]
