"""Exact order statistics of magnitudes, without sorting; on a CPU natively.

Sorting is slow on accelerators and slower on CPUs. The bits of a non-negative float, read as an
unsigned integer, order as the floats do, so the k-th smallest is found by fixing its bits from the
highest down, with no arithmetic that could round: on a CPU by a loop with one pass of counting for
each bit, elsewhere several bits at a time, by `radix_selection`.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.native.dispatch import available, by_platform, on_cpu
from siman_jax.native.library import EXCEEDS_KTH, KTH_OF_ALL, call
from siman_jax.rules import radix_selection


def kth_smallest(x: Array, k: Array | int) -> Array:
    """The k-th smallest entry along the first axis, bit for bit what sorting gives.

    Args:
      x: non-negative floats `[n, m]`, 16, 32 or 64 bits wide.
      k: rank from 0; an integer, or int32 `[1, m]`, or `[1, r]` where m is 1.

    Returns:
      Array `[1, m]` or `[1, r]`, dtype of `x`.

    Raises:
      ValueError: there is nothing to choose from, or `k` is an integer and no rank.

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
    """Where `x` is larger than its k-th smallest entry along the first axis.

    The comparison belongs to the loop that selects, so that both read the same copy of `x`. Left
    outside, XLA may compute `x` a second time, rounded differently, and an entry then exceeds a
    threshold that is its own value. Where there is no loop, a barrier does what the loop does here.

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
    """`k` as an array; checked where it is known before anything runs."""
    count = x.shape[0] if x.ndim else 0
    if not count or (isinstance(k, int) and not least <= k < count):
        raise ValueError(f"no rank {k} among {count} numbers; expected {least} to {count - 1}.")
    return jnp.asarray(k, jnp.int32)


def _start(x: Array, k: Array | int) -> tuple[Array, Array, Array]:
    """Bits of `x`, the rank, and the bits of the answer before any is fixed."""
    keys = radix_selection.as_keys(x)
    rank = jnp.asarray(k, jnp.int32)
    shape = jnp.broadcast_shapes(rank.shape, (1, *x.shape[1:]))
    return keys, rank, jnp.zeros(shape, keys.dtype)


def _steps(x: Array) -> int:
    return jnp.finfo(x.dtype).bits - 1  # the sign bit is 0


def _fix_bit(i: Array | int, found: Array, keys: Array, rank: Array) -> Array:
    # Where JAX_DISABLE_JIT is set, a loop's index is an int.
    shift = (jnp.iinfo(keys.dtype).bits - 2 - jnp.asarray(i)).astype(keys.dtype)
    candidate = found | jnp.left_shift(jnp.ones((), keys.dtype), shift)
    below = jnp.sum(keys < candidate, axis=0, keepdims=True, dtype=jnp.int32)
    return jnp.where(below <= rank, candidate, found)


def quantiles(x: Array, q: Array) -> Array:
    """Quantiles of all of `x` with linear interpolation, as `jnp.quantile` gives them.

    Args:
      x: non-negative floats of any shape.
      q: `[m]` in [0, 1], dtype of `x`.

    Returns:
      `[m]`, dtype of `x`.
    """
    ranks, weights = quantile_ranks(x.size, q)
    return interpolated(x, ranks, weights)


def quantile_ranks(size: int, q: Array) -> tuple[Array, Array]:
    """Between which of `size` numbers in order a quantile lies.

    Args:
      size: of the numbers.
      q: `[m]` in [0, 1].

    Returns:
      int32 ranks `[2 * m]`, those below and then those above; and how far from the one to the
      other each quantile is, `[m]` in [0, 1), dtype of `q`.
    """
    position = q * (size - 1)
    low, high = jnp.floor(position), jnp.ceil(position)
    return jnp.concatenate([low, high]).astype(jnp.int32), position - low


def interpolated(x: Array, ranks: Array, weights: Array) -> Array:
    """Quantiles of all of `x`, non-negative floats, from what `quantile_ranks` gives: `[m]`."""

    def by_rank(x: Array, ranks: Array, weights: Array) -> Array:
        below, above = kth_smallest(x.reshape(-1, 1), ranks.reshape(1, -1)).reshape(2, -1)
        return below * (1 - weights) + above * weights

    x = x.reshape(-1, x.shape[-1])
    return by_platform(by_rank, radix_selection.interpolated)(x, ranks, weights)
