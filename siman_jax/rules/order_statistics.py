"""Exact order statistics of magnitudes, without sorting.

Sorting is slow on accelerators and slower still on CPUs. The bits of non-negative floats, read as
unsigned integers, have the same order as the floats. So the k-th smallest is found by fixing its
bits from the highest down, and nothing is rounded. On a CPU the native library does this, or else
a loop with one counting pass per bit; on other devices `radix_selection` fixes several bits at a
time.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.native.dispatch import available, by_platform, on_cpu
from siman_jax.native.library import EXCEEDS_KTH, KTH_OF_ALL, call
from siman_jax.rules import radix_selection


def kth_smallest(x: Array, k: Array | int) -> Array:
    """Return the k-th smallest entry along the first axis, exactly as sorting would.

    Args:
      x: non-negative floats `[n, m]`, 16, 32 or 64 bits wide.
      k: rank from 0; an integer, or int32 `[1, m]`, or `[1, r]` where m is 1.

    Returns:
      Array `[1, m]` or `[1, r]`, dtype of `x`.

    Raises:
      ValueError: `x` is empty, or `k` is an integer outside the valid ranks.

    >>> kth_smallest(jnp.array([[3.0], [1.0], [2.0]]), 1)
    Array([[2.]], dtype=float32)
    """
    ranks = _ranks(x, k, least=0)
    ranks = jnp.broadcast_to(ranks, jnp.broadcast_shapes(ranks.shape, (1, x.shape[1])))

    def by_bisection(x: Array, k: Array) -> Array:
        keys, rank, found = _start(x, k)
        found = lax.fori_loop(0, _steps(x), lambda i, found: _fix_bit(i, found, keys, rank), found)
        return lax.bitcast_convert_type(found, x.dtype)

    def natively(x: Array, ranks: Array) -> Array:
        shape = jax.ShapeDtypeStruct((ranks.size,), x.dtype)
        return call(KTH_OF_ALL, shape, x.ravel(), ranks.ravel()).reshape(ranks.shape)

    known = available(x) and x.shape[1] == 1
    function = on_cpu(natively, by_bisection) if known else by_bisection
    return by_platform(function, radix_selection.kth_smallest)(x, ranks)


def exceeds_kth_smallest(x: Array, k: Array | int) -> Array:
    """Tell where `x` is larger than its k-th smallest entry along the first axis.

    The comparison is part of the loop that selects, so that both read the same copy of `x`.
    Otherwise XLA may compute `x` a second time and round it differently; an entry could then
    exceed a threshold that equals it. Implementations without a loop use a barrier instead.

    Args:
      x: non-negative floats `[n, m]`, 16, 32 or 64 bits wide.
      k: rank from 0: an integer, or int32 `[1, m]`; -1 compares with zero.

    Returns:
      bool, shape of `x`.

    Raises:
      ValueError: as for `kth_smallest`.
    """

    def by_bisection(x: Array, k: Array) -> Array:
        keys, rank, found = _start(x, k)

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            found = _fix_bit(i, carry[0], keys, rank)
            return found, keys > found

        start = found, jnp.zeros(x.shape, jnp.bool_)
        return lax.fori_loop(0, _steps(x), step, start)[1]

    def natively(x: Array, ranks: Array) -> Array:
        shape = jax.ShapeDtypeStruct(x.shape, jnp.bool_)
        return call(EXCEEDS_KTH, shape, x, ranks.ravel())

    ranks = jnp.broadcast_to(_ranks(x, k, least=-1), (1, x.shape[1]))
    function = on_cpu(natively, by_bisection) if available(x) else by_bisection
    return by_platform(function, radix_selection.exceeds_kth_smallest)(x, ranks)


def _ranks(x: Array, k: Array | int, least: int) -> Array:
    """Return `k` as an array; a Python integer is checked."""
    count = x.shape[0] if x.ndim else 0
    if not count or (isinstance(k, int) and not least <= k < count):
        raise ValueError(
            f"there is no rank {k} of {count} numbers; expected {least} to {count - 1}."
        )
    return jnp.asarray(k, jnp.int32)


def _start(x: Array, k: Array | int) -> tuple[Array, Array, Array]:
    """Return the keys of `x`, the rank, and the key to find with all bits still 0."""
    keys = radix_selection.as_keys(x)
    rank = jnp.asarray(k, jnp.int32)
    shape = jnp.broadcast_shapes(rank.shape, (1, *x.shape[1:]))
    return keys, rank, jnp.zeros(shape, keys.dtype)


def _steps(x: Array) -> int:
    return jnp.finfo(x.dtype).bits - 1  # the sign bit is 0


def _fix_bit(i: Array | int, found: Array, keys: Array, rank: Array) -> Array:
    # With JAX_DISABLE_JIT set, the loop's index is an int.
    shift = (jnp.iinfo(keys.dtype).bits - 2 - jnp.asarray(i)).astype(keys.dtype)
    candidate = found | jnp.left_shift(jnp.ones((), keys.dtype), shift)
    below = jnp.sum(keys < candidate, axis=0, keepdims=True, dtype=jnp.int32)
    return jnp.where(below <= rank, candidate, found)


def quantiles(x: Array, q: Array) -> Array:
    """Compute quantiles of all of `x` with linear interpolation, as `jnp.quantile` does.

    Args:
      x: non-negative floats of any shape.
      q: `[m]` in [0, 1], dtype of `x`.

    Returns:
      `[m]`, dtype of `x`.
    """
    ranks, weights = quantile_ranks(x.size, q)
    return interpolated(x, ranks, weights)


def quantile_ranks(size: int, q: Array) -> tuple[Array, Array]:
    """Find the ranks that each quantile of `size` numbers lies between.

    Args:
      size: how many numbers there are.
      q: `[m]` in [0, 1].

    Returns:
      int32 ranks `[2 * m]`, first those below and then those above; and the weight of the upper
      one for each quantile, `[m]` in [0, 1), dtype of `q`.
    """
    position = q * (size - 1)
    low, high = jnp.floor(position), jnp.ceil(position)
    return jnp.concatenate([low, high]).astype(jnp.int32), position - low


def interpolated(x: Array, ranks: Array, weights: Array) -> Array:
    """Interpolate quantiles `[m]` of all of `x`, non-negative floats, at given ranks.

    Args:
      x: non-negative floats of any shape.
      ranks: from `quantile_ranks`.
      weights: from `quantile_ranks`.
    """

    def by_rank(x: Array, ranks: Array, weights: Array) -> Array:
        below, above = kth_smallest(x.reshape(-1, 1), ranks.reshape(1, -1)).reshape(2, -1)
        return below * (1 - weights) + above * weights

    x = x.reshape(-1, x.shape[-1])
    return by_platform(by_rank, radix_selection.interpolated)(x, ranks, weights)
