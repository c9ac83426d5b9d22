"""Native max pooling for training."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.native.dispatch import available, differentiable
from siman_jax.native.library import MAX_POOL, MAX_POOL_GRADIENT, call

# The place of the maximum in a window is a byte, and one value is reserved.
_MOST_PIXELS = 255


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int],
    padding: Any = ((0, 0), (0, 0)),
) -> Array:
    """Compute `nn.max_pool`, natively if possible, with the same values and gradients.

    If several pixels of a window equal its maximum, the first one gets the gradient.

    Args:
      x: `[batch, height, width, channels]`.
      window_shape: height and width of a window, in pixels.
      strides: pixels from one window to the next, down and across.
      padding: pixels added before and after, down and across; or "VALID" or "SAME".

    Returns:
      `[batch, rows, columns, channels]`, dtype of `x`.

    >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (2, 2), (2, 2)).ravel()
    Array([3.], dtype=float32)
    """
    reference = partial(nn.max_pool, window_shape=window_shape, strides=strides, padding=padding)
    down, across = window_shape
    result = jax.eval_shape(reference, x)
    plain = (
        x.ndim == 4
        and min(*x.shape, *result.shape) > 0
        and down * across <= _MOST_PIXELS
        and not isinstance(padding, str)
        and min(pixels for side in padding for pixels in side) >= 0
    )
    if not (plain and available(x)):
        return reference(x)

    (top, _), (left, _) = padding
    attributes = {
        "down": int(down),
        "across": int(across),
        "row_stride": int(strides[0]),
        "column_stride": int(strides[1]),
        "top": int(top),
        "left": int(left),
    }

    def forward(x: Array) -> Any:
        which = jax.ShapeDtypeStruct(result.shape, jnp.uint8)
        return call(MAX_POOL, (result, which), x, **attributes)

    def backward(arrays: Any, which: Array, g: Array) -> tuple[Array]:
        (x,) = arrays
        shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return (call(MAX_POOL_GRADIENT, shape, g, which, **attributes),)

    return differentiable(reference, forward, backward)(x)
