"""Batches on the devices, and the protocol of the classes that provide them."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class MixedLabels:
    """Labels of images that are mixtures of two, which the loss mixes likewise.

    Attributes:
      own: int32 `[n]`; examples with a negative label do not count.
      other: int32 `[n]`, labels of the images that were mixed in.
      share: float32 `[n]`, from 0 to 1, of `own`; 1 where one of the two is negative.
    """

    own: Array
    other: Array
    share: Array

    def leading(self) -> Array:
        """Return the labels with the larger share, int32 `[n]`."""
        return jnp.where(self.share >= 0.5, self.own, self.other)


Labels = Array | MixedLabels


class Batch(NamedTuple):
    """Examples on the devices.

    Attributes:
      images: `[n, height, width, channels]`, from 0 to 255: uint8, or float32 of some augmentation.
      labels: int32 `[n]`; examples with a negative label do not count. Or `MixedLabels`.
    """

    images: Array
    labels: Labels


class Feed(Protocol):
    """Batches of training examples; a batch depends on the step only, so the step is the position.

    Attributes:
      steps_per_epoch: full batches in the training split.
      abstract: shapes and shardings of the inputs of one call.
      steps_per_call: largest number of steps in one call.
    """

    steps_per_epoch: int
    abstract: Any
    steps_per_call: int

    def calls(self, step: int) -> Iterator[tuple[Any, int]]:
        """Iterate over the calls of the compiled program from `step` to the end of its epoch.

        Yields:
          Inputs on the devices, and the number of steps to take with them.
        """

    def take(self, inputs: Any, step: Array) -> Batch:
        """Return the augmented batch of `step`; part of the compiled program."""

    def close(self) -> None:
        """Stop reading ahead."""
