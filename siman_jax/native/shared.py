"""Loads the native library; needs neither JAX nor NumPy."""

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def path() -> Path | None:
    """Return where the library is; None if it was not built."""
    paths = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def load() -> ctypes.CDLL | None:
    """Load the library; None, with a warning, if it was not built or cannot be loaded."""
    found = path()
    if found is None:
        warn(
            "siman-jax was built without its native library: there was no C++ compiler, or it"
            " failed; pip install -v shows why"
        )
        return None
    try:
        return ctypes.CDLL(str(found))
    except OSError as error:  # built for another system
        warn(f"the native library cannot be used; install siman-jax again to build it ({error})")
        return None


def warn(reason: str) -> None:
    """Say why the library is not used."""
    import logging  # late: a model loads sooner without it

    logging.getLogger(__name__).warning(
        "%s. Packed inference and training run by XLA instead, with the same integers but slower.",
        reason,
    )
