"""What feeds the training loop: batches on the devices, from memory or from a stream."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from jax import Array


class Batch(NamedTuple):
    """Examples on the devices.

    Attributes:
      images: uint8 `[n, height, width, channels]`.
      labels: int32 `[n]`; a negative one marks an example that does not count.
    """

    images: Array
    labels: Array


class Feed(Protocol):
    """Batches of training examples, a pure function of the step: so its position is the step.

    Attributes:
      steps_per_epoch: full batches in the training split.
      abstract: shapes and shardings of one call's inputs.
      steps_per_call: the most steps that one call takes.
    """

    steps_per_epoch: int
    abstract: Any
    steps_per_call: int

    def calls(self, step: int) -> Iterator[tuple[Any, int]]:
        """The calls of the compiled program that take `step` to the end of its epoch.

        Yields:
          Inputs on the devices, and how many steps to take with them.
        """

    def take(self, inputs: Any, step: Array) -> Batch:
        """The batch of `step`, augmented; part of the compiled program."""

    def close(self) -> None:
        """Stop what reads ahead."""
