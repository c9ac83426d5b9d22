"""Projection and half-half bits of all binary kernels of a network at once, for accelerators.

On an accelerator a computation over one layer's kernel takes about as long as one over all layers'
kernels. So the filters of all layers become the columns of one matrix, the shorter ones padded at
the end, and `radix_selection` finds medians and percentiles in it. Where that would be much
padding, there are several matrices.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.rules import radix_selection

# Numbers of padding in a matrix: 8 MB in float32, which the memory on a chip holds.
_MOST_PADDING = 2**21


def project_and_choose(
    kernels: Sequence[Array], percent: Array, accumulate: DTypeLike, epsilon: float
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Apply `siman.project` to each kernel, and choose the larger half of each filter.

    Args:
      kernels: `[..., out]`, at least one, all of one floating dtype.
      percent: scalar in [0, 50].
      accumulate: dtype of sums and percentiles.
      epsilon: added to a filter's variance to standardize it.

    Returns:
      The projected kernels; their bits, bool of the same shapes; and the mean and deviation used
      to standardize each filter, `[1, ..., out]` for each kernel.
    """
    found: dict[int, tuple[Array, ...]] = {}
    for own in divided([(kernel.size // kernel.shape[-1], kernel.shape[-1]) for kernel in kernels]):
        lists = _in_one_matrix([kernels[i] for i in own], percent, accumulate, epsilon)
        found.update(zip(own, zip(*lists, strict=True), strict=True))
    projected, bits, mean, deviation = zip(*(found[i] for i in range(len(kernels))), strict=True)
    return list(projected), list(bits), list(mean), list(deviation)


def divided(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Divide kernels of given lengths and columns among matrices with little padding: indices."""
    parts, padding = list[list[int]](), 0
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i][0], reverse=True):
        length, columns = sizes[i]
        if parts:
            padding += (sizes[parts[-1][0]][0] - length) * columns
        if not parts or padding > _MOST_PADDING:
            parts.append([])
            padding = 0
        parts[-1].append(i)
    return parts


def _in_one_matrix(
    kernels: Sequence[Array], percent: Array, accumulate: DTypeLike, epsilon: float
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Do what `project_and_choose` does for kernels of similar lengths."""
    dtype = kernels[0].dtype
    flat = [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]
    columns = [x.shape[1] for x in flat]
    lengths = np.repeat([len(x) for x in flat], columns)
    w = radix_selection.join(flat, dtype.type(0))
    inside = lax.broadcasted_iota(jnp.int32, w.shape, 0) < lengths[None].astype(np.int32)

    def centre(x: Array) -> tuple[Array, Array]:
        mean = jnp.sum(x, axis=0) / lengths.astype(dtype)
        return jnp.where(inside, x - mean[None], dtype.type(0)), mean

    def keys_of(magnitude: Array) -> Array:
        keys = radix_selection.as_keys(magnitude)
        return lax.optimization_barrier(jnp.where(inside, keys, radix_selection.largest(keys)))

    centred, _ = centre(w)
    magnitude = jnp.abs(centred).astype(accumulate)
    fraction = percent.astype(accumulate) / 100
    sizes = np.array([x.size for x in flat])
    positions = [q * (sizes - 1).astype(accumulate) for q in (fraction, 1 - fraction)]
    ends = radix_selection.neighbours_in_groups(
        keys_of(magnitude),
        [jnp.floor(position).astype(jnp.int32) for position in positions],
        columns,
    )
    layer = np.repeat(np.arange(len(flat)), columns)
    low, high = (
        radix_selection.between(below, after, position - jnp.floor(position))[layer][None]
        for below, after, position in zip(*ends, positions, strict=True)
    )
    projected = jnp.sign(centred) * jnp.clip(magnitude, low, high).astype(dtype)

    u, mean = centre(projected)
    variance = jnp.sum(jnp.square(u), axis=0) / (lengths - 1).astype(dtype)
    deviation = jnp.sqrt(variance + epsilon)
    u = u / deviation[None]
    rank = jnp.asarray((lengths - 1) // 2, jnp.int32)
    bits = radix_selection.exceed_in_columns(keys_of(jnp.abs(u)), rank)

    def like_kernels(joined: Array) -> list[Array]:
        parts = radix_selection.apart(joined, flat)
        return [part.reshape(kernel.shape) for part, kernel in zip(parts, kernels, strict=True)]

    def by_filter(joined: Array) -> list[Array]:
        edges = np.cumsum(columns)[:-1].tolist()
        parts = jnp.split(joined, edges)
        return [lax.expand_dims(x, range(k.ndim - 1)) for x, k in zip(parts, kernels, strict=True)]

    return like_kernels(projected), like_kernels(bits), by_filter(mean), by_filter(deviation)
