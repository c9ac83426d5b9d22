"""Products of packed kernels: convolutions and matrix products of +-1, as exact integers.

Activations are `[batch, height, width, in]`, kernels `[height, width, in, out]` with `in` packed.
Padding adds zeros, which neither bit stands for: a padded tap contributes 0.

On a CPU `xor` and `population_count` are fastest, in C++ if that was built. Accelerators have a
matrix unit for bfloat16, which is faster still; its products of +-1 sum exactly in float32, up to
2^24 terms. `binary_conv` chooses between them.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.native import binary_conv as cpp
from siman_jax.native import library
from siman_jax.program.bits import pack, signs, unpack
from siman_jax.program.operations import word_count

Padding = tuple[tuple[int, int], tuple[int, int]]

# How many words are summed in one loop over the output. XLA's CPU backend unrolls them, and long
# bodies are slow if the output is small: at 7x7x512, 144 words in blocks of 12 to 16 take a third
# of the time of blocks of 36. Larger images have fewer words, and their speed hardly depends on it.
_BLOCK = 16

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NO_PADDING = ((0, 0), (0, 0))


class PackedKernel(NamedTuple):
    """A kernel of +-1, with the sums that correct for padding.

    Attributes:
      words: uint32 `[height, width, ceil(in / 32), out]`.
      corner_sums: int32 `[height + 1, width + 1, out]`; at `[y, x]` the sum of the kernel over
        its first y rows, first x columns and all input channels.
    """

    words: Array
    corner_sums: Array


@jax.jit
def pack_kernel(bits: Array) -> PackedKernel:
    """Pack a kernel's input channels.

    Args:
      bits: bool `[height, width, in, out]`, True for +1.

    >>> kernel = pack_kernel(jnp.array([True, True, False]).reshape(1, 1, 3, 1))
    >>> kernel.words.ravel(), kernel.corner_sums[1, 1]
    (Array([3], dtype=uint32), Array([1], dtype=int32))
    """
    words = jnp.moveaxis(pack(jnp.moveaxis(bits, 2, -1)), -1, 2)
    return PackedKernel(words, corner_sums(words, bits.shape[2]))


def corner_sums(words: Array, channels: int) -> Array:
    """Compute `PackedKernel.corner_sums` from words that hold `channels` input channels."""
    ones = jnp.sum(lax.population_count(words), axis=2, dtype=jnp.uint32).astype(jnp.int32)
    sums = 2 * ones - channels
    for axis in (0, 1):
        sums = jnp.cumsum(sums, axis=axis, dtype=jnp.int32)
    return jnp.pad(sums, ((1, 0), (1, 0), (0, 0)))


def unpack_kernel(words: Array, channels: int) -> Array:
    """Return the bits of a packed kernel: bool `[height, width, channels, out]`."""
    return jnp.moveaxis(unpack(jnp.moveaxis(words, 2, -1), channels), -1, 2)


@partial(jax.jit, static_argnames=("strides", "padding", "native"))
def binary_conv(
    bits: Array,
    kernel: PackedKernel,
    *,
    strides: int = 1,
    padding: Padding = _NO_PADDING,
    native: bool = True,
) -> Array:
    """Convolve activations of +-1 with a kernel of +-1.

    Args:
      bits: bool `[batch, height, width, in]`, True for +1.
      kernel: for the same `in`.
      strides: step, in both directions.
      padding: zeros before and after, for height and width.
      native: use C++ on a CPU if it was built; False for XLA everywhere.

    Returns:
      int32 `[batch, height', width', out]`, exact.

    Raises:
      ValueError: the shapes or dtypes of `bits` and `kernel` do not fit, a stride is below 1,
        padding is negative, or the kernel is larger than the padded input.
    """
    height, width, _, out = _checked(bits, kernel.words, strides, padding)
    sums = kernel.corner_sums
    if sums.dtype != jnp.int32 or sums.shape != (height + 1, width + 1, out):
        raise ValueError(
            f"the corner sums are {sums.dtype}{list(sums.shape)}; expected"
            f" int32{[height + 1, width + 1, out]}."
        )
    if bits.dtype != jnp.bool_:
        raise ValueError(f"the bits have dtype {bits.dtype}; expected bool.")
    on_cpu = conv_by_cpp if native and library.variants() else conv_by_popcount
    return lax.platform_dependent(
        bits,
        kernel,
        cpu=partial(on_cpu, strides=strides, padding=padding),
        default=partial(conv_by_matrix_unit, strides=strides, padding=padding),
    )


def weight_only_conv(
    x: Array, words: Array, *, strides: int = 1, padding: Padding = _NO_PADDING
) -> Array:
    """Convolve real activations with a kernel of +-1.

    The kernel takes 1 bit per weight in memory. It is unpacked to floats for the product, since
    multiplying by +-1 is as fast as adding.

    Args:
      x: floating `[batch, height, width, in]`.
      words: uint32 `[height, width, ceil(in / 32), out]`.
      strides: step, in both directions.
      padding: zeros before and after, for height and width.

    Returns:
      `[batch, height', width', out]`, dtype of `x`.

    Raises:
      ValueError: as for `binary_conv`.
    """
    _checked(x, words, strides, padding)
    return _float_conv(x, words, strides, padding, x.dtype)


def conv_by_matrix_unit(
    bits: Array, kernel: PackedKernel, *, strides: int, padding: Padding
) -> Array:
    """Compute `binary_conv` by a bfloat16 convolution with float32 sums."""
    x = signs(bits, jnp.dtype("bfloat16"))
    return _float_conv(x, kernel.words, strides, padding, jnp.float32).astype(jnp.int32)


def conv_by_cpp(bits: Array, kernel: PackedKernel, *, strides: int, padding: Padding) -> Array:
    """Compute `binary_conv` by the native library."""
    return cpp.conv(bits, kernel.words, kernel.corner_sums, strides=strides, padding=padding)


def conv_by_popcount(bits: Array, kernel: PackedKernel, *, strides: int, padding: Padding) -> Array:
    """Compute `binary_conv` by xor and population count.

    The sum loops over taps and words on the outside and output channels on the inside, which XLA's
    CPU backend compiles to vector instructions over output channels.
    """
    height, width, words, _ = kernel.words.shape
    x = jnp.pad(pack(bits), ((0, 0), *padding, (0, 0)))
    sizes = [
        (size + sum(pad) - taps) // strides + 1
        for size, pad, taps in zip(bits.shape[1:3], padding, (height, width), strict=True)
    ]
    terms = [
        (_seen_by_tap(x, row, column, sizes, strides)[..., word : word + 1], (row, column, word))
        for row in range(height)
        for column in range(width)
        for word in range(words)
    ]
    unequal = jnp.zeros((), jnp.uint32)
    for start in range(0, len(terms), _BLOCK):
        for seen, place in terms[start : start + _BLOCK]:
            other = lax.expand_dims(kernel.words[place], range(3))
            unequal = unequal + lax.population_count(seen ^ other)
        # Ends XLA's loop over the output.
        unequal = lax.optimization_barrier(unequal)
    taps = height * width * bits.shape[3]
    y = taps - 2 * unequal.astype(jnp.int32)
    border = _sums_over_padding(kernel.corner_sums, bits.shape[1:3], sizes, strides, padding)
    return y if border is None else y + border


def _checked(x: Array, words: Array, strides: int, padding: Padding) -> tuple[int, ...]:
    """Return the shape of a kernel's words, after checking that they fit the input `x`.

    Raises:
      ValueError: they do not fit, a stride is below 1, or padding is negative.
    """
    if x.ndim != 4 or words.ndim != 4 or words.dtype != jnp.uint32:
        raise ValueError(
            f"the input has shape {x.shape}, and the words are {words.dtype}{list(words.shape)};"
            " expected [batch, height, width, in] and uint32 [height, width, ceil(in / 32), out]."
        )
    if words.shape[2] != word_count(x.shape[3]):
        raise ValueError(
            f"the input has {x.shape[3]} channels, but the kernel has {words.shape[2]} words of 32;"
            f" expected {word_count(x.shape[3])}."
        )
    if strides < 1 or min(pixels for side in padding for pixels in side) < 0:
        raise ValueError(
            f"the strides are {strides} and the padding is {padding}; expected strides of 1 or"
            " more, and no negative padding."
        )
    padded = [size + sum(pad) for size, pad in zip(x.shape[1:3], padding, strict=True)]
    if any(taps > size for taps, size in zip(words.shape[:2], padded, strict=True)):
        raise ValueError(
            f"the kernel, {words.shape[:2]}, is larger than the padded input, {tuple(padded)}."
        )
    return words.shape


def _seen_by_tap(x: Array, row: int, column: int, sizes: Sequence[int], strides: int) -> Array:
    """Return the words that one tap of the kernel sees: `[batch, height', width', words]`."""
    rows = slice(row, row + (sizes[0] - 1) * strides + 1, strides)
    columns = slice(column, column + (sizes[1] - 1) * strides + 1, strides)
    return x[:, rows, columns]


def _sums_over_padding(
    corner_sums: Array, image: Sequence[int], sizes: Sequence[int], strides: int, padding: Padding
) -> Array | None:
    """Sum the kernel over the taps that see padding, at each place of the output.

    Padded words have all bits 0, which count as -1, so a padded tap subtracted its part of the
    kernel; these sums add it back. Only few places differ in the taps that see padding, and each
    such sum is computed once.

    Returns:
      int32 `[1, height', width', out]`, or None if no tap sees padding.
    """
    taps = corner_sums.shape[0] - 1, corner_sums.shape[1] - 1
    seen = [
        _taps_inside(image[axis], taps[axis], sizes[axis], strides, padding[axis])
        for axis in (0, 1)
    ]
    if all((seen[axis] == [0, taps[axis]]).all() for axis in (0, 1)):
        return None
    (rows, row_kind), (columns, column_kind) = (
        np.unique(axis, axis=0, return_inverse=True) for axis in seen
    )
    by_row = corner_sums[rows[:, 1]] - corner_sums[rows[:, 0]]
    inside = by_row[:, columns[:, 1]] - by_row[:, columns[:, 0]]
    kinds = corner_sums[-1, -1][None, None] - inside
    return kinds[row_kind.ravel()][:, column_kind.ravel()][None]


def _taps_inside(
    size: int, taps: int, out: int, stride: int, padding: tuple[int, int]
) -> np.ndarray:
    """Return the range of taps that see no padding, for each output of one axis: `[out, 2]`."""
    starts = np.arange(out) * stride - padding[0]
    return np.stack([np.clip(-starts, 0, taps), np.clip(size - starts, 0, taps)], axis=1)


def _float_conv(
    x: Array, words: Array, strides: int, padding: Padding, sums_in: DTypeLike
) -> Array:
    """Convolve `x` with the unpacked kernel: products in the dtype of `x`, sums in `sums_in`."""
    kernel = signs(unpack_kernel(words, x.shape[3]), x.dtype)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=_LAYOUT,
        preferred_element_type=sums_in,
    )
