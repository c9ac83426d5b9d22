"""Order statistics of many columns at once, by a few passes over their digits and no loop.

The bits of non-negative floats, read as integers, have the same order as the floats. So the k-th
smallest of a column is found digit by digit, from the highest down. For every value that the digit
may have, one pass counts how many keys are smaller; these counts determine the digit. A digit has
four bits, so a float32 takes eight passes. Nothing is rounded: the result is exactly that of
sorting.

The columns of several arrays may be joined, since on an accelerator a pass over all of them costs
about as much as one over the largest.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_DIGIT_BITS = 4
_INTEGERS = {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}


def as_keys(x: Array) -> Array:
    """Reinterpret non-negative floats of 16, 32 or 64 bits as integers of equal order."""
    return lax.bitcast_convert_type(x, _INTEGERS[jnp.finfo(x.dtype).bits])


def kth_smallest(x: Array, ranks: Array) -> Array:
    """Return the k-th smallest entry of each column.

    Args:
      x: non-negative floats `[n, m]`.
      ranks: k from 0, int32 `[1, m]`; or `[1, r]` if m is 1.

    Returns:
      Shape of `ranks`, dtype of `x`.
    """
    keys = keys_of(x)
    if ranks.shape[1] == x.shape[1]:
        (found,) = _select(keys, [ranks[0]], _Columns())
    else:
        found = jnp.concatenate(_select(keys, list(ranks.T), _Columns()))
    return lax.bitcast_convert_type(found[None], x.dtype)


def exceeds_kth_smallest(x: Array, ranks: Array) -> Array:
    """Tell where an entry is larger than the k-th smallest of its column.

    Args:
      x: non-negative floats `[n, m]`.
      ranks: k from 0, int32 `[1, m]`; -1 compares with zero.

    Returns:
      bool, shape of `x`.
    """
    return exceed_in_columns(keys_of(x), ranks[0])


def interpolated(x: Array, ranks: Array, weights: Array) -> Array:
    """Interpolate quantiles `[r]` of all of `x` `[n, m]`; see `order_statistics.interpolated`."""
    below = [rank[None] for rank in ranks[: len(weights)]]
    ends = neighbours_in_groups(keys_of(x), below, [x.shape[1]])
    return jnp.concatenate(
        [between(a, b, weight[None]) for a, b, weight in zip(*ends, weights, strict=True)]
    )


def between(below: Array, after: Array, weight: Array) -> Array:
    """Interpolate from keys to those of the next rank, which are ignored if the weight is 0."""
    low, high = (lax.bitcast_convert_type(key, weight.dtype) for key in (below, after))
    return jnp.where(weight == 0, low, low * (1 - weight) + high * weight)


def exceed_in_columns(keys: Array, rank: Array) -> Array:
    """Tell where a key is larger than the k-th smallest of its column: bool, shape of `keys`.

    Args:
      keys: `[n, m]`, behind a barrier as in `keys_of`.
      rank: k from 0, int32 `[m]`.
    """
    (found,) = _select(keys, [rank], _Columns())
    return keys > found[None]


def neighbours_in_groups(
    keys: Array, rank: list[Array], columns: Sequence[int]
) -> tuple[list[Array], list[Array]]:
    """Find the k-th smallest keys of groups of adjacent columns, and the next larger ones.

    Args:
      keys: as for `exceed_in_columns`.
      rank: a list of k from 0, int32 `[groups]` each.
      columns: how many columns each group has.

    Returns:
      The k-th smallest keys and those of the next rank, lists of the shapes of `rank`.
    """
    groups = _Groups(columns)
    found = _select(keys, rank, groups)
    own = groups.spread(found)
    larger = [jnp.where(keys > key[None], keys, largest(keys)) for key in own]
    reached = [(keys <= key[None]).astype(jnp.int32) for key in own]
    kinds = [_least(keys)] * len(own) + [_SUM] * len(own)
    ends = groups.gather(_reduce(larger + reached, kinds, axis=0), kinds)
    larger, reached = ends[: len(own)], ends[len(own) :]
    after = [
        jnp.where(count > k + 1, key, more)
        for count, k, key, more in zip(reached, rank, found, larger, strict=True)
    ]
    return found, after


class _Reduction(NamedTuple):
    """A function that combines numbers, and the number to start from."""

    combine: Callable[[Array, Array], Array]
    start: np.number


_SUM = _Reduction(jnp.add, np.int32(0))


def _least(keys: Array) -> _Reduction:
    return _Reduction(jnp.minimum, largest(keys))


class _Columns:
    """Selection from each column on its own."""

    def spread(self, values: list[Array]) -> list[Array]:
        """Return one value per column, `[m]`."""
        return values

    def gather(self, values: list[Array], kinds: Sequence[_Reduction]) -> list[Array]:
        """Return the columns' values."""
        del kinds
        return values


class _Groups:
    """Selection from groups of adjacent columns.

    Args:
      sizes: how many columns each group has.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._of = np.repeat(np.arange(len(sizes)), sizes)[None] == np.arange(len(sizes))[:, None]

    def spread(self, values: list[Array]) -> list[Array]:
        """Repeat the values of groups `[g]`, which are not negative, for their columns `[m]`."""
        zero = values[0].dtype.type(0)
        own = [jnp.where(self._of, value[:, None], zero) for value in values]
        return _reduce(own, [_Reduction(jnp.maximum, zero)] * len(own), axis=0)

    def gather(self, values: list[Array], kinds: Sequence[_Reduction]) -> list[Array]:
        """Reduce the columns' values `[m]` to those of each group, `[g]`."""
        own = [
            jnp.where(self._of, value[None], kind.start)
            for value, kind in zip(values, kinds, strict=True)
        ]
        return _reduce(own, kinds, axis=1)


def keys_of(x: Array) -> Array:
    """Return the keys of `x` behind a barrier, so that all passes read the same copy.

    Without it, the compiler may compute `x` again for each pass and round it differently; an entry
    could then exceed a threshold that equals it.
    """
    return lax.optimization_barrier(as_keys(x))


def join(xs: Sequence[Array], padding: np.number) -> Array:
    """Join the columns of all arrays to `[longest, columns]`."""
    longest = max(len(x) for x in xs)
    full = [jnp.concatenate([x, jnp.full((longest - len(x), x.shape[1]), padding)]) for x in xs]
    return jnp.concatenate(full, axis=1)


def apart(joined: Array, like: Sequence[Array]) -> list[Array]:
    """Invert `join`: return an array `[n, m]` for each one that was joined."""
    edges = pairwise(accumulate((x.shape[1] for x in like), initial=0))
    return [joined[: len(x), start:stop] for x, (start, stop) in zip(like, edges, strict=True)]


def largest(keys: Array) -> np.signedinteger:
    """Return the largest integer of the keys' dtype, which is above every number's key."""
    return keys.dtype.type(np.iinfo(keys.dtype).max)


def _select(keys: Array, ranks: list[Array], groups: "_Columns | _Groups") -> list[Array]:
    """Find the keys of the given ranks.

    Args:
      keys: `[n, m]`.
      ranks: k from 0, int32 `[g]` each.
      groups: the columns that are selected from together.

    Returns:
      For each of `ranks`, keys of its shape.
    """
    bits = jnp.iinfo(keys.dtype).bits
    found = [jnp.zeros(rank.shape, keys.dtype) for rank in ranks]
    # The sign bit is 0, which leaves 15, 31 or 63 bits: the first digit has only 3.
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        highest = 2 ** (3 if shift == bits - _DIGIT_BITS else _DIGIT_BITS)
        steps = [keys.dtype.type(digit << shift) for digit in range(1, highest)]
        # The difference is compared with constants: a threshold for each column and each value of
        # the digit would have to be computed before the pass.
        above = [keys - own[None] for own in groups.spread(found)]
        smaller = [(x < step).astype(jnp.int32) for x in above for step in steps]
        kinds = [_SUM] * len(smaller)
        below = groups.gather(_reduce(smaller, kinds, axis=0), kinds)
        for i, rank in enumerate(ranks):
            counts = below[i * len(steps) : (i + 1) * len(steps)]
            digit = sum(
                ((count <= rank).astype(keys.dtype) for count in counts[1:]),
                (counts[0] <= rank).astype(keys.dtype),
            )
            found[i] = found[i] | digit << keys.dtype.type(shift)
    return found


def _reduce(arrays: list[Array], kinds: Sequence[_Reduction], axis: int) -> list[Array]:
    """Reduce all arrays along an axis in one pass.

    A TPU's compiler fuses a reduction of many arrays with what computes them. A GPU's compiler
    stores the arrays first, or needs more memory on the chip than there is; but it fuses a
    reduction of one array that is stacked from them.
    """

    def of_many(*arrays: Array) -> list[Array]:
        def combine(a: list[Array], b: list[Array]) -> list[Array]:
            return [kind.combine(x, y) for kind, x, y in zip(kinds, a, b, strict=True)]

        return list(lax.reduce(list(arrays), [kind.start for kind in kinds], combine, (axis,)))

    def of_one(*arrays: Array) -> list[Array]:
        reduced = list(arrays)
        for kind in dict.fromkeys(kinds):
            own = [i for i in range(len(arrays)) if kinds[i] == kind]
            stacked = jnp.stack([arrays[i] for i in own])
            results = lax.reduce(stacked, kind.start, kind.combine, (axis + 1,))
            for i, result in zip(own, results, strict=True):
                reduced[i] = result
        return reduced

    return lax.platform_dependent(*arrays, cuda=of_one, rocm=of_one, default=of_many)
