"""Calls of the native library for packed inference: single convolutions, and whole networks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from siman_jax.native import library

# The smallest and the largest number of filters that any variant computes together.
_LANES, _BLOCK = 16, 64


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
    words, corner_sums = whole_lanes(words), whole_lanes(corner_sums)
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
    """Run a residual network of two-shortcut blocks in one call.

    A unit is one half of a block: a binary convolution, its batch norm, shortcut and PReLU.

    Args:
      images: float32 `[batch, height, width, in]`.
      weights: for the stem: kernel, gain and offset. For each unit: words and corner sums of its
        `kernels.PackedKernel`, then gain, offset and slope; if its shape changes and shortcuts are
        real, also the shortcut's kernel, gain and offset. For the classifier: gain and offset of
        its batch norm, kernel and bias. Channels are padded by `whole_lanes`, and kernels and
        words are laid out by `blocks`. Everything but words and corner sums is float32.
      classes: number of logits.
      centred: bits are signs about a sample's mean instead of 0.
      pooled: the stem is a 7x7 convolution and a 3x3 max pool with stride 2; otherwise a 3x3
        convolution.
      real_shortcuts: where the shape changes, the shortcut is a real 1x1 convolution and a batch
        norm; otherwise channels of zeros are added.
      strides: of the stem and the units.
      channels: of the images, the stem and the units.
      variant: one of `library.variants()`; the first of them if None.

    Returns:
      float32 `[batch, classes]`. Integers are exact; real sums are taken in another order than
      XLA's.
    """
    images, *weights = (
        jnp.asarray(x, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for x in (images, *weights)
    )
    logits = jax.ffi.ffi_call(
        library.RESIDUAL_LOGITS,
        jax.ShapeDtypeStruct((images.shape[0], weights[-1].shape[0]), jnp.float32),
        vmap_method="sequential",
    )(
        images,
        *weights,
        variant=library.indices()[variant or library.variants()[0]],
        centred=centred,
        pooled=pooled,
        real_shortcuts=real_shortcuts,
        strides=np.array(strides, np.int64),
        channels=np.array(channels, np.int64),
    )
    return logits[:, :classes]


def blocks(kernel: Array) -> Array:
    """Rearrange a kernel `[..., out]` into blocks of filters, each contiguous: `[size]`.

    >>> blocks(jnp.arange(160).reshape(2, 80))[jnp.array([0, 63, 64, 128])]
    Array([  0,  63,  80,  64], dtype=int32)
    """
    rows = kernel.reshape(-1, kernel.shape[-1])
    starts = range(0, rows.shape[1], _BLOCK)
    return jnp.concatenate([rows[:, start : start + _BLOCK].ravel() for start in starts])


def whole_lanes(x: Array, axis: int = -1) -> Array:
    """Pad an axis of channels with zeros to a multiple of the 16 lanes that C++ works on.

    >>> whole_lanes(jnp.zeros((3, 20))).shape
    (3, 32)
    """
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % _LANES)
    return jnp.pad(x, padding)
