"""Batch norm, activation and max pooling as one operation with its own derivative.

    out = max of each window of activation((y - mean(y)) / sqrt(var(y) + epsilon) * gamma + beta)

For each channel, all that is applied to y rises with it, or falls if gamma is negative. So y itself
is pooled, and only the maxima (or minima) are normalized: the result is the same bit for bit. The
normalized array is as large as y and never stored, in neither direction.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.models.batch_norm import Affine, Moments, Norm, per_channel


@dataclass(frozen=True)
class Pool:
    """The windows of a max pooling, as `nn.max_pool` takes them.

    Attributes:
      window_shape: height and width of a window, in pixels.
      strides: pixels from one window to the next, down and across.
      padding: pixels added before and after, down and across.
    """

    window_shape: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    def __call__(self, x: Array) -> Array:
        """Compute the maximum of each window: `[batch, rows, columns, channels]`."""
        return nn.max_pool(x, self.window_shape, self.strides, self.padding)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def pooled_batch_norm(
    norm: Norm, pool: Pool, y: Array, affine: Affine, near: Array
) -> tuple[Array, Moments]:
    """Normalize `[batch, height, width, channels]` by its own statistics, activate and pool.

    Of several pixels of a window that give its maximum, the one with the largest y gets the
    gradient (the smallest if gamma is negative), and of equal ones the first.

    Args:
      norm: the settings; the activation must not fall anywhere, as PReLU may.
      pool: the windows.
      y: floating.
      affine: parameters, without slopes and shortcut.
      near: as for `batch_norm`.

    Returns:
      The result `[batch, rows, columns, channels]`, and the statistics, which have no derivative.
    """
    return _pooled_batch_norm_fwd(norm, pool, y, affine, near)[0]


def _pooled_batch_norm_fwd(
    norm: Norm, pool: Pool, y: Array, affine: Affine, near: Array
) -> tuple[Any, Any]:
    moments = norm.moments(y, None, near)
    sign = _sign(affine, y)
    best = sign * pool(sign * y)
    return (norm.apply(best, None, moments, affine), moments), (y, best, affine, near, moments)


def _pooled_batch_norm_bwd(
    norm: Norm, pool: Pool, residuals: Any, g: tuple[Array, Moments]
) -> tuple:
    y, best, affine, near, moments = residuals
    # Only the pixels that were chosen have a cotangent, so all sums are over windows.
    sums = norm.sums(g[0], best, None, moments, affine)
    _, pullback = jax.vjp(pool, _sign(affine, y) * y)
    (dz,) = pullback(sums.dz.reshape(best.shape).astype(y.dtype))
    gradients = norm.from_sums(sums._replace(dz=dz), y, None, moments, affine)
    return gradients.y.astype(y.dtype), gradients.affine, jnp.zeros_like(near)


pooled_batch_norm.defvjp(_pooled_batch_norm_fwd, _pooled_batch_norm_bwd)


def _sign(affine: Affine, y: Array) -> Array:
    return per_channel(jnp.where(affine.gamma < 0, -1, 1), y)
