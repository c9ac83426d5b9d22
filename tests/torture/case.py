"""What all kinds of attempts have in common."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from siman_jax.data.dataset import DamagedImage
from siman_jax.errors import UsageError

# What may be raised by bytes that are damaged or odd: its message is meant to be read.
CLEAN = (UsageError, DamagedImage)


class Finding(Exception):  # noqa: N818, a result and no fault of the caller
    """The product did what it must not; the message says what."""


class Unavailable(Exception):  # noqa: N818
    """This machine cannot try such cases; the message says why."""


class Kind(Protocol):
    """One way to torture the product.

    It is made in a process of its own, with an empty folder, and tries cases there one by one.

    Attributes:
      seconds: the most that a case may take; beyond it is called a hang.
      lifetime: cases after which a new process goes on.
    """

    seconds: int
    lifetime: int

    def __init__(self, scratch: Path) -> None: ...

    def make(self, rng: np.random.Generator) -> bytes:
        """Make a case, which depends on `rng` alone."""

    def check(self, case: bytes) -> Mapping[str, int]:
        """Try a case.

        Returns:
          What happened, for the table: words, and how often each.

        Raises:
          Finding: the result is wrong without a word, or something is lost.
          Exception: any other is a finding too, of an unclean exception.
          Unavailable: it cannot be tried here.
        """


def random(name: str, seed: int, number: int) -> np.random.Generator:
    """The generator of one case."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed, number])


def choose(rng: np.random.Generator, options: Any) -> Any:
    """One of `options`, as it is."""
    return options[int(rng.integers(len(options)))]
