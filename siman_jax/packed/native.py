"""The convolution of bits in C++, for processors with a variant in `native.cc`.

It is built with the package where there is a compiler, and nothing depends on it: XLA's own code
in `kernels` gives the same integers on every machine.
"""

import ctypes
import functools
import logging
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import count, takewhile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

_TARGET = "siman_binary_conv"
# Filters that the fewest vector registers of any variant hold together.
_LANES = 16


@functools.cache
def variants() -> tuple[str, ...]:
    """Names of the variants that this machine can run, the fastest first; none if not built."""
    return tuple(indices())


def conv(
    bits: Array,
    words: Array,
    corner_sums: Array,
    *,
    strides: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
    variant: str | None = None,
) -> Array:
    """Do what `kernels.conv_by_popcount` does, by C++.

    Args:
      bits: bool `[batch, height, width, in]`.
      words: uint32, of a `kernels.PackedKernel`.
      corner_sums: int32, of the same.
      strides: step, the same both ways.
      padding: zeros before and after, for height and width.
      variant: one of `variants()`; the first of them if None.

    Returns:
      int32 `[batch, height', width', out]`, exact.
    """
    batch, height, width, _ = bits.shape
    taps_down, taps_across, words_per_pixel, out = words.shape
    (top, bottom), (left, right) = padding
    padded = (batch, height + top + bottom, width + left + right, words_per_pixel)
    spare = -out % _LANES
    if spare:
        words, corner_sums = (
            jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)]) for x in (words, corner_sums)
        )
    sizes = ((padded[1] - taps_down) // strides + 1, (padded[2] - taps_across) // strides + 1)
    y, _ = jax.ffi.ffi_call(
        _TARGET,
        (
            jax.ShapeDtypeStruct((batch, *sizes, out + spare), jnp.int32),
            jax.ShapeDtypeStruct(padded, jnp.uint32),  # where the call packs its input
        ),
        vmap_method="sequential",
    )(
        bits,
        words,
        corner_sums,
        variant=indices()[variant or variants()[0]],
        stride=strides,
        top=top,
        left=left,
    )
    return y[..., :out]


@functools.cache
def indices() -> dict[str, int]:
    """Place of each usable variant in the library, which this loads and registers."""
    try:
        library = _register()
    except (OSError, AttributeError, RuntimeError) as error:  # built for another system or JAX
        _warn(f"the native kernel cannot be used; install siman-jax again to build it ({error})")
        return {}
    if library is None:
        _warn("siman-jax was built without its native kernel, for want of a C++ compiler")
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
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(library.siman_binary_conv), "cpu")
    return library


def _warn(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "%s. Packed networks give the same results by XLA, wide ones more slowly.", reason
    )
