"""Batches on the devices, and the protocol of the classes that provide them."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from jax import Array


class Batch(NamedTuple):
    """Examples on the devices.

    Attributes:
      images: uint8 `[n, height, width, channels]`.
      labels: int32 `[n]`; examples with a negative label do not count.
    """

    images: Array
    labels: Array


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
