"""Vectors of +-1 as bits in 32-bit words.

Bit 1 stands for +1 and bit 0 for -1. Element i of a vector is bit i % 32 of word i // 32, counted
from the least significant bit. If the last word is not full, its remaining bits are 0; they are
equal in any two vectors, so a dot product ignores them. The words do not hold the length of the
vector.
"""

import jax.numpy as jnp
from jax import Array, lax

from siman_jax.program.operations import WORD_BITS, word_count


def pack(bits: Array) -> Array:
    """Pack the last axis into words.

    Args:
      bits: bool `[..., length]`, True for +1; any length above 0.

    Returns:
      uint32 `[..., ceil(length / 32)]`.

    >>> pack(jnp.array([True, False, True, True]))
    Array([13], dtype=uint32)
    >>> pack(jnp.arange(40) >= 31)
    Array([2147483648,        255], dtype=uint32)
    """
    length = bits.shape[-1]
    words = word_count(length)
    spare = words * WORD_BITS - length
    padded = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, spare)])
    grouped = padded.reshape(*bits.shape[:-1], words, WORD_BITS).astype(jnp.uint32)
    # Each bit has a place of its own, so the sum sets all of them.
    return jnp.sum(lax.shift_left(grouped, _places(grouped.ndim)), axis=-1, dtype=jnp.uint32)


def unpack(words: Array, length: int) -> Array:
    """Return the bits that `pack` packed.

    Args:
      words: uint32 `[..., ceil(length / 32)]`.
      length: number of bits.

    Returns:
      bool `[..., length]`.

    Raises:
      ValueError: the number of words does not fit `length`.

    >>> unpack(jnp.array([13], jnp.uint32), 5)
    Array([ True, False,  True,  True, False], dtype=bool)
    """
    _check_length(words, length)
    shifted = lax.shift_right_logical(
        jnp.broadcast_to(words[..., None], (*words.shape, WORD_BITS)), _places(words.ndim + 1)
    )
    bits = (shifted & jnp.uint32(1)).astype(bool)
    return bits.reshape(*words.shape[:-1], -1)[..., :length]


def dot(a: Array, b: Array, length: int) -> Array:
    """Compute the dot product of two vectors of +-1.

        a . b = N - 2 popcount(a xor b)

    Args:
      a: uint32 `[..., words]`.
      b: uint32, of the same shape.
      length: N, the number of elements.

    Returns:
      int32 `[...]`, exact.

    Raises:
      ValueError: the shapes differ, or the number of words does not fit `length`.

    >>> a, b = pack(jnp.array([[True, True, False], [True, False, False]]))
    >>> dot(a, b, 3)
    Array(1, dtype=int32)
    """
    if a.shape != b.shape:
        raise ValueError(f"the vectors have shapes {a.shape} and {b.shape}; expected the same.")
    _check_length(a, length)
    unequal = jnp.sum(lax.population_count(a ^ b), axis=-1, dtype=jnp.uint32)
    return length - 2 * unequal.astype(jnp.int32)


def signs(bits: Array, dtype: jnp.dtype) -> Array:
    """Return +1 where `bits` is True, else -1.

    >>> signs(jnp.array([True, False]), jnp.dtype("float32"))
    Array([ 1., -1.], dtype=float32)
    """
    return 2 * bits.astype(dtype) - 1


def _check_length(words: Array, length: int) -> None:
    if words.shape[-1] != word_count(length):
        raise ValueError(
            f"there are {words.shape[-1]} words for {length} bits; expected {word_count(length)}."
        )


def _places(ndim: int) -> Array:
    """Return 0 to 31 along the last of `ndim` axes."""
    return jnp.arange(WORD_BITS, dtype=jnp.uint32).reshape((1,) * (ndim - 1) + (WORD_BITS,))
