"""What every data source gives: images and labels in memory, and the names of the classes."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
      images: uint8 `[n, height, width, channels]`.
      labels: int32 `[n]`, index of the class.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split and what their labels are called.

    Attributes:
      train: examples to learn from.
      test: examples to evaluate on.
      classes: name of each label, in order.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
