"""Exact order statistics of magnitudes, without sorting.

Sorting is slow on accelerators and slower on CPUs. The bits of a non-negative float, read as an
unsigned integer, order as the floats do, so the k-th smallest is found by fixing its bits from the
highest down: one pass of counting for each bit, and no arithmetic that could round.
"""

import jax.numpy as jnp
from jax import Array, lax

_UNSIGNED = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def kth_smallest(x: Array, k: Array | int) -> Array:
    """The k-th smallest entry along the first axis, bit for bit what sorting gives.

    Args:
      x: non-negative floats `[n, ...]`, 16, 32 or 64 bits wide.
      k: rank from 0; an integer, or an array of them that broadcasts against `[1, ...]`.

    Returns:
      Array of the shape that `k` and `[1, ...]` broadcast to, and the dtype of `x`.

    >>> kth_smallest(jnp.array([3.0, 1.0, 2.0]), 1)
    Array([2.], dtype=float32)
    """
    width = jnp.finfo(x.dtype).bits
    keys = lax.bitcast_convert_type(x, _UNSIGNED[width])
    rank = jnp.asarray(k, jnp.int32)
    shape = jnp.broadcast_shapes(rank.shape, (1, *x.shape[1:]))

    def fix_bit(i: Array, found: Array) -> Array:
        # The sign bit is 0, so the first bit to fix is the one below it.
        bit = jnp.left_shift(jnp.ones((), keys.dtype), (width - 2 - i).astype(keys.dtype))
        candidate = found | bit
        below = jnp.sum(keys < candidate, axis=0, keepdims=True, dtype=jnp.int32)
        return jnp.where(below <= rank, candidate, found)

    found = lax.fori_loop(0, width - 1, fix_bit, jnp.zeros(shape, keys.dtype))
    return lax.bitcast_convert_type(found, x.dtype)


def quantiles(x: Array, q: Array) -> Array:
    """Quantiles of all of `x` with linear interpolation, as `jnp.quantile` gives them.

    Args:
      x: non-negative floats of any shape.
      q: `[m]` in [0, 1], dtype of `x`.

    Returns:
      `[m]`, dtype of `x`.
    """
    position = q * (x.size - 1)
    low, high = jnp.floor(position), jnp.ceil(position)
    ranks = jnp.stack([low, high]).astype(jnp.int32).reshape(1, -1)
    below, above = kth_smallest(x.reshape(-1, 1), ranks).reshape(2, -1)
    weight = position - low
    return below * (1 - weight) + above * weight
