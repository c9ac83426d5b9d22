"""Metadata, checks and reading of the model file, which all versions share; NumPy alone."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from siman_jax.errors import UsageError
from siman_jax.paths import read_file

T = TypeVar("T")

FORMAT = "siman-jax packed network"
# The meaning of the bits. A file with another layout has to say so.
LAYOUT = {
    "word_bits": "32",
    "bit_order": "little-endian, input channel i is bit i % 32 of word i // 32",
    "polarity": "bit 1 is +1, bit 0 is -1",
}
# The limit bounds the work that a wrong file can cause.
_MOST_BYTES = 2**30


def check_metadata(metadata: Mapping[str, str], version: str, content: set[str]) -> None:
    """Check that a file's metadata are those of a version, with these entries and no others.

    Raises:
      UsageError: they are not.
    """
    for name, expected in {"format": FORMAT, "version": version, **LAYOUT}.items():
        if metadata.get(name) != expected:
            raise UsageError(f"its {name} is {metadata.get(name)!r}; expected {expected!r}.")
    missing = content - metadata.keys()
    if missing:
        raise UsageError(f"its metadata lack {', '.join(sorted(missing))}.")
    unknown = metadata.keys() - content - LAYOUT.keys() - {"format", "version"}
    if unknown:  # for example a misspelled digest, which would not be checked
        raise UsageError(f"its metadata hold {sorted(unknown)[0]!r}, which is unknown.")


def read_decoded(path: str | Path, decode: Callable[[bytes], T]) -> T:
    """Read a model file and decode its bytes.

    Raises:
      UsageError: the file is missing or cannot be read, or `decode` refuses it.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected a model file.")
    if not path.exists():
        raise UsageError(f"there is no file {path}.")
    try:
        return decode(read_file(path, _MOST_BYTES))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UsageError as error:
        raise UsageError(f"{path} is not a usable model file: {error}") from error


def as_json(value: Any) -> str:
    """Encode a value as JSON; equal values give equal texts."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def as_stored(name: str, weight: Any, float_dtype: Any) -> np.ndarray:
    """Return a weight as files hold it: words as they are, numbers in `float_dtype`.

    Raises:
      UsageError: a number is not finite, or too large for `float_dtype`.
    """
    array = np.asarray(weight)
    if array.dtype != np.uint32:
        with np.errstate(over="ignore"):  # reported by the check below
            array = array.astype(float_dtype)
    check_finite(name, array)
    return array


def check_finite(name: str, array: np.ndarray) -> None:
    """Check that an array of floats holds only finite ones.

    Raises:
      UsageError: it does not.
    """
    if array.dtype != np.uint32 and not np.isfinite(array).all():
        raise UsageError(f"{name!r} holds a value that is not finite in {array.dtype}.")
