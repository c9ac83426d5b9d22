"""Registers the functions of the native library with XLA."""

import ctypes
import functools
from itertools import count, takewhile
from typing import Any

import jax
import numpy as np
from jax import Array

from siman_jax.cores import usable_cores
from siman_jax.native.shared import load, warn

# Names of the functions that XLA calls.
BINARY_CONV = "siman_binary_conv"
NETWORK_CALL = "siman_network_call"
CONV_FORWARD, CONV_BACKWARD = "siman_conv_forward", "siman_conv_backward"
REAL_FORWARD, REAL_KERNEL_GRADIENT = "siman_real_forward", "siman_real_kernel_gradient"
EXCEEDS_KTH, KTH_OF_ALL = "siman_exceeds_kth", "siman_kth_of_all"
PROJECT = "siman_project"
MAGNITUDE_CODE = "siman_magnitude_code"
MAGNITUDE_CODE_GRADIENT = "siman_magnitude_code_gradient"
NORM_STATISTICS, NORM_SUMS = "siman_norm_statistics", "siman_norm_sums"
NORM_FORWARD, NORM_BACKWARD = "siman_norm_forward", "siman_norm_backward"
MAX_POOL, MAX_POOL_GRADIENT = "siman_max_pool", "siman_max_pool_gradient"
_TARGETS = (
    BINARY_CONV,
    NETWORK_CALL,
    CONV_FORWARD,
    CONV_BACKWARD,
    REAL_FORWARD,
    REAL_KERNEL_GRADIENT,
    EXCEEDS_KTH,
    KTH_OF_ALL,
    PROJECT,
    MAGNITUDE_CODE,
    MAGNITUDE_CODE_GRADIENT,
    NORM_STATISTICS,
    NORM_SUMS,
    NORM_FORWARD,
    NORM_BACKWARD,
    MAX_POOL,
    MAX_POOL_GRADIENT,
)


@functools.cache
def variants() -> tuple[str, ...]:
    """Return the instruction sets that this machine can run, the fastest first."""
    return tuple(indices())


@functools.cache
def indices() -> dict[str, int]:
    """Load the library, register its functions, and return the index of each usable variant."""
    library = load()
    if library is None:
        return {}
    try:
        for target in _TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), "cpu")
    except (AttributeError, RuntimeError) as error:  # built for another JAX
        warn(f"the native library cannot be used; install siman-jax again to build it ({error})")
        return {}
    library.siman_variant_name.restype = ctypes.c_char_p
    names = takewhile(lambda name: name is not None, map(library.siman_variant_name, count()))
    return {
        name.decode(): index
        for index, name in enumerate(names)
        if library.siman_variant_supported(index)
    }


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees; commands call this when they start.

    XLA allocates its temporaries again in every training step. Getting them from the system each
    time takes a quarter of a step. This affects only threads started later, so call it before the
    first computation. Without the library, or without glibc, it does nothing.
    """
    library = load()
    if library is not None:
        library.siman_keep_memory()


def describe(native: bool) -> str:
    """Describe how layers run on this CPU: library, instruction set and number of threads."""
    how = f"natively ({variants()[0]})" if native and variants() else "by XLA alone"
    return f"on a CPU, layers run {how}, on {len(usable_cores())} threads"


def call(target: str, result: Any, *operands: Array, **attributes: Any) -> Any:
    """Call a function of the library in its fastest variant.

    Args:
      target: name of the function.
      result: shape and dtype of the result, or a tuple of these.
      operands: its operands.
      **attributes: its attributes; a `variant` by its index replaces the fastest one.
    """
    given = {"variant": indices()[variants()[0]], **attributes}
    given = {name: np.int64(x) if type(x) is int else x for name, x in given.items()}
    return jax.ffi.ffi_call(target, result)(*operands, **given)
