"""What a data source gives: two splits, in memory or encoded, and the names of the classes."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Split:
    """Images in memory and their labels.

    Attributes:
      images: uint8 `[n, height, width, channels]`.
      labels: int32 `[n]`, index of the class.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def evenly_spaced(split: Split, n: int) -> Split:
    """Keep `n` examples at equal distances, so that a split sorted by class keeps its balance."""
    rows = np.arange(n) * len(split) // n
    return Split(split.images[rows], split.labels[rows])


class Record(NamedTuple):
    """One image as it is stored.

    Attributes:
      data: the image file, encoded.
      label: index of the class.
      name: what to call the image in a message.
    """

    data: bytes
    label: int
    name: str


class DamagedImage(ValueError):  # noqa: N818
    """An image cannot be decoded, or not all of it; the message says why."""


class Records(Protocol):
    """Encoded images that can be read in any order, by several processes at once.

    Instances can be pickled; reading one record neither needs nor changes what others read.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Record:
        """Image number `index`, from 0."""


def steps_in_epoch(split: Split | Records, batch_size: int) -> int:
    """Full batches in a split; what is left over sits out the epoch."""
    return len(split) // batch_size


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split and what their labels are called.

    Attributes:
      train: examples to learn from.
      test: examples to evaluate on.
      classes: name of each label, in order.
    """

    train: Split | Records
    test: Split | Records
    classes: tuple[str, ...]
