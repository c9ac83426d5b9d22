"""Loads the library in C++ and registers its functions with XLA."""

import ctypes
import functools
import logging
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import count, takewhile
from pathlib import Path

import jax

# Functions that XLA calls, by the names of their handlers.
BINARY_CONV = "siman_binary_conv"
RESIDUAL_LOGITS = "siman_residual_logits"
_TARGETS = (BINARY_CONV, RESIDUAL_LOGITS)


@functools.cache
def variants() -> tuple[str, ...]:
    """Names of the variants that this machine can run, the fastest first; none if not built."""
    return tuple(indices())


@functools.cache
def indices() -> dict[str, int]:
    """Place of each usable variant in the library, which this loads and registers."""
    try:
        library = _register()
    except (OSError, AttributeError, RuntimeError) as error:  # built for another system or JAX
        _warn(f"the native library cannot be used; install siman-jax again to build it ({error})")
        return {}
    if library is None:
        _warn("siman-jax was built without its native library, for want of a C++ compiler")
        return {}
    library.siman_variant_name.restype = ctypes.c_char_p
    names = takewhile(lambda name: name is not None, map(library.siman_variant_name, count()))
    return {
        name.decode(): index
        for index, name in enumerate(names)
        if library.siman_variant_supported(index)
    }


def _register() -> ctypes.CDLL | None:
    paths = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    for target in _TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), "cpu")
    return library


def _warn(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "%s. Packed inference and training run by XLA instead: the same integers, more slowly.",
        reason,
    )
