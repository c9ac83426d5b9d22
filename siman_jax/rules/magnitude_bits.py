"""Rules that choose bits from the magnitudes of a kernel's weights.

Source: Lin et al., "SiMaN: Sign-to-Magnitude Network Binarization", arXiv 2102.07981 (TPAMI
2023).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from siman_jax.rules.order_statistics import exceeds_kth_smallest
from siman_jax.rules.precision import wide
from siman_jax.rules.standardize import filter_axes


def half_half_bits(u: Array) -> Array:
    """Give 1 to the larger half of each filter's magnitudes.

        b = 1 where |u| > lower median of |u| in the filter, else 0

    Where a filter has an even number of weights and no ties at its median, the bits have an
    entropy of exactly 1 bit. Weights tied with the median get 0.

    Args:
      u: `[..., out]`, any floating dtype.

    Returns:
      Array of the shape and dtype of `u`, in {0, 1}.

    Source: arXiv 2102.07981.

    >>> half_half_bits(jnp.array([[-3.0], [1.0], [2.0], [-0.5]])).ravel()
    Array([1., 0., 1., 0.], dtype=float32)
    """
    magnitude = _magnitudes(u)
    bits = exceeds_kth_smallest(magnitude, (magnitude.shape[0] - 1) // 2)
    return bits.astype(u.dtype).reshape(u.shape)


class AngleOptimal(NamedTuple):
    """Bits of the smallest angle to |u|, with their share and cosine.

    Attributes:
      bits: in {0, 1}, shape and dtype of u.
      share: `[out]`, the share of ones in each filter.
      cosine: `[out]`, cos(|u|, bits) of each filter.
    """

    bits: Array
    share: Array
    cosine: Array


def angle_optimal_bits(u: Array) -> AngleOptimal:
    """Solve max cos(|u|, b) over b in {0, 1}^n exactly, for each filter.

        k = argmax_k (sum of the k largest |u|) / sqrt(k),   b = 1 on the k largest

    Sorting makes it O(n log n). An optimum never splits a tie: adding a weight of equal magnitude
    to an optimal choice always raises the cosine.

    Args:
      u: `[..., out]`, any floating dtype.

    Returns:
      `AngleOptimal(bits, share, cosine)`. A filter of zeros gets zeros and cosine 0.

    Source: arXiv 2102.07981.

    >>> angle_optimal_bits(jnp.array([[-3.0], [2.0], [0.1]])).bits.ravel()
    Array([1., 1., 0.], dtype=float32)
    """
    magnitude = _magnitudes(u)
    descending = jnp.sort(magnitude, axis=0, descending=True)
    k = jnp.arange(1, magnitude.shape[0] + 1, dtype=wide(u.dtype))
    sums = jnp.cumsum(descending.astype(k.dtype), axis=0)
    best = 1 + jnp.argmax(sums / jnp.sqrt(k)[:, None], axis=0, keepdims=True)
    chosen = exceeds_kth_smallest(magnitude, magnitude.shape[0] - 1 - best.astype(jnp.int32))
    bits = chosen.astype(u.dtype).reshape(u.shape)
    return AngleOptimal(bits, jnp.mean(bits, filter_axes(u)), cosine(u, bits))


def cosine(u: Array, bits: Array) -> Array:
    """Compute the cosine of the angle between |u| and `bits` in each filter.

        sum(|u| b) / (norm(u) norm(b)),   0 where either norm is 0

    Args:
      u: `[..., out]`, any floating dtype.
      bits: in {0, 1} (or in {-1, +1}, to measure a code), shape and dtype of `u`.

    Returns:
      `[out]`, dtype of `u`.
    """
    axes = filter_axes(u)
    product = jnp.sum(jnp.abs(u) * bits, axes)
    norms = jnp.sqrt(jnp.sum(jnp.square(u), axes) * jnp.sum(jnp.square(bits), axes))
    return jnp.where(norms > 0, product / jnp.where(norms > 0, norms, 1), 0)


BIT_RULES: dict[str, Callable[[Array], Array]] = {
    "half_half": half_half_bits,
    "angle_optimal": lambda u: angle_optimal_bits(u).bits,
}


def _magnitudes(u: Array) -> Array:
    """Reshape |u| to `[n, out]`."""
    return jnp.abs(u).reshape(-1, u.shape[-1])
