"""Native convolutions of real numbers with few input channels, such as a network's first layer."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.native.dispatch import available, differentiable
from siman_jax.native.library import REAL_FORWARD, REAL_KERNEL_GRADIENT, call

# Filters must fill whole vectors; with more channels XLA is faster.
_FILTERS, _MOST_CHANNELS = 16, 8


def real_conv(
    x: Array,
    kernel: Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """Compute `lax.conv_general_dilated`, natively where that is faster.

    It has the same signature, so that `flax.linen.Conv` accepts it. XLA computes the gradient of
    `x`.
    """

    def reference(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision,
        )  # fmt: skip

    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    plain = (
        x.ndim == 4
        and numbers == lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        and not isinstance(padding, str)
        and min(pixels for side in padding for pixels in side) >= 0
        and len(set(window_strides)) == 1
        and set(lhs_dilation or (1,)) == {1}
        and set(rhs_dilation or (1,)) == {1}
        and feature_group_count == 1
        and kernel.shape[2] <= _MOST_CHANNELS
        and kernel.shape[3] % _FILTERS == 0
    )
    result = jax.eval_shape(reference, x, kernel)
    empty = min(*x.shape, *kernel.shape, *result.shape) == 0
    if not plain or empty or not available(x, kernel):
        return reference(x, kernel)

    (top, _), (left, _) = padding
    attributes = {"stride": int(window_strides[0]), "top": int(top), "left": int(left)}

    def forward(x: Array, kernel: Array) -> Any:
        return call(REAL_FORWARD, result, x, kernel, **attributes), ()

    def backward(arrays: Any, kept: tuple, g: Array) -> Any:
        del kept
        x, kernel = arrays
        (dx,) = jax.vjp(lambda x: reference(x, kernel), x)[1](g)
        shape = jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
        return dx, call(REAL_KERNEL_GRADIENT, shape, x, g, **attributes)

    return differentiable(reference, forward, backward)(x, kernel)
