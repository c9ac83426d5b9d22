"""What there is in C++, for processors with a variant in `cpp/variants.h`.

It is built with the package where there is a compiler, and nothing depends on it: XLA's own code
in `kernels` gives the same integers on every machine.
"""

import ctypes
import functools
import logging
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import count, takewhile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_CONV, _RESIDUAL = "siman_binary_conv", "siman_residual_logits"
# Filters that the fewest and the most vector registers of any variant hold together.
_LANES, _BLOCK = 16, 64


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
    words, corner_sums = whole_lanes(words), whole_lanes(corner_sums)
    sizes = ((padded[1] - taps_down) // strides + 1, (padded[2] - taps_across) // strides + 1)
    y, _ = jax.ffi.ffi_call(
        _CONV,
        (
            jax.ShapeDtypeStruct((batch, *sizes, words.shape[-1]), jnp.int32),
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


def residual_logits(
    images: Array,
    weights: Sequence[Array],
    *,
    classes: int,
    centred: bool,
    pooled: bool,
    real_shortcuts: bool,
    strides: Sequence[int],
    channels: Sequence[int],
    variant: str | None = None,
) -> Array:
    """Run a residual network of two-shortcut blocks, as one call.

    Args:
      images: float32 `[batch, height, width, in]`.
      weights: of the stem its kernel, gain and offset; of each unit the words and corner sums of
        its `kernels.PackedKernel`, then gain, offset and slope, and where its shape changes and
        shortcuts are real, their kernel, gain and offset; of the classifier gain and offset of its
        batch norm, kernel and bias. All have `whole_lanes` of channels, and kernels and words are
        in `blocks`. What is not words or sums is float32.
      classes: number of logits.
      centred: bits are signs about a sample's mean, not about 0.
      pooled: the stem is 7x7 and ends with maxima of 3x3 in steps of 2; otherwise 3x3.
      real_shortcuts: where the shape changes, the shortcut is a real 1x1 convolution and a batch
        norm; otherwise it has zeros around the channels.
      strides: of the stem and the units.
      channels: of the images, the stem and the units.
      variant: one of `variants()`; the first of them if None.

    Returns:
      float32 `[batch, classes]`. Integers are exact, but real sums have an order of their own.
    """
    images, *weights = (
        jnp.asarray(x, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for x in (images, *weights)
    )
    logits = jax.ffi.ffi_call(
        _RESIDUAL,
        jax.ShapeDtypeStruct((images.shape[0], weights[-1].shape[0]), jnp.float32),
        vmap_method="sequential",
    )(
        images,
        *weights,
        variant=indices()[variant or variants()[0]],
        centred=centred,
        pooled=pooled,
        real_shortcuts=real_shortcuts,
        strides=np.array(strides, np.int64),
        channels=np.array(channels, np.int64),
    )
    return logits[:, :classes]


def blocks(kernel: Array) -> Array:
    """Lay a kernel `[..., out]` out in blocks of filters, each in one piece: `[size]`.

    >>> blocks(jnp.arange(160).reshape(2, 80))[jnp.array([0, 63, 64, 128])]
    Array([  0,  63,  80,  64], dtype=int32)
    """
    rows = kernel.reshape(-1, kernel.shape[-1])
    starts = range(0, rows.shape[1], _BLOCK)
    return jnp.concatenate([rows[:, start : start + _BLOCK].ravel() for start in starts])


def whole_lanes(x: Array, axis: int = -1) -> Array:
    """Pad an axis, of channels, with zeros to a multiple of what vector registers hold.

    >>> whole_lanes(jnp.zeros((3, 20))).shape
    (3, 32)
    """
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % _LANES)
    return jnp.pad(x, padding)


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
    for target in (_CONV, _RESIDUAL):
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), "cpu")
    return library


def _warn(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "%s. Packed networks run by XLA: the same integers, more slowly.", reason
    )
