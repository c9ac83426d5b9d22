"""The native convolution of bits, for programs that JAX runs on a CPU."""

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.native import library

# The smallest number of filters that any variant computes together.
_LANES = 16


def conv(
    bits: Array,
    words: Array,
    corner_sums: Array,
    *,
    strides: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
    variant: str | None = None,
) -> Array:
    """Compute `kernels.conv_by_popcount` in C++.

    Args:
      bits: bool `[batch, height, width, in]`.
      words: uint32, of a `kernels.PackedKernel`.
      corner_sums: int32, of the same.
      strides: step, in both directions.
      padding: zeros before and after, for height and width.
      variant: one of `library.variants()`; the first of them if None.

    Returns:
      int32 `[batch, height', width', out]`, exact.
    """
    batch, height, width, _ = bits.shape
    taps_down, taps_across, words_per_pixel, out = words.shape
    (top, bottom), (left, right) = padding
    padded = (batch, height + top + bottom, width + left + right, words_per_pixel)
    words, corner_sums = _whole_lanes(words), _whole_lanes(corner_sums)
    sizes = ((padded[1] - taps_down) // strides + 1, (padded[2] - taps_across) // strides + 1)
    y, _ = jax.ffi.ffi_call(
        library.BINARY_CONV,
        (
            jax.ShapeDtypeStruct((batch, *sizes, words.shape[-1]), jnp.int32),
            jax.ShapeDtypeStruct(padded, jnp.uint32),  # work space for the packed input
        ),
        vmap_method="sequential",
    )(
        bits,
        words,
        corner_sums,
        variant=library.indices()[variant or library.variants()[0]],
        stride=strides,
        top=top,
        left=left,
    )
    return y[..., :out]


def _whole_lanes(x: Array) -> Array:
    """Pad the filters, the last axis, with zeros to a multiple of the lanes."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % _LANES)])
