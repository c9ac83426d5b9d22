"""Mean, variance and standardization: per filter for kernels, per sample for activations.

A *filter* is everything that feeds one output channel: all axes of a kernel but the last, so
`[height, width, in, out]` for a convolution and `[in, out]` for a dense layer. Activations are
`[batch, ..., channels]`. Variances are unbiased: divided by n - 1.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from siman_jax.rules.precision import wide

VARIANCE_EPSILON = 1e-5


def filter_axes(kernel: Array) -> tuple[int, ...]:
    """Return the axes of one filter: all but the last."""
    return tuple(range(kernel.ndim - 1))


def group_size(x: Array, axes: Sequence[int]) -> int:
    """Return how many numbers share one mean and one variance.

    Raises:
      ValueError: there are fewer than two, which have no variance.
    """
    n = math.prod(x.shape[axis] for axis in axes)
    if n < 2:
        raise ValueError(
            f"standardize needs at least two numbers per group, but axes {tuple(axes)} of shape"
            f" {x.shape} hold {n}."
        )
    return n


def standardize(x: Array, axes: Sequence[int], epsilon: float = VARIANCE_EPSILON) -> Array:
    """Shift and scale `x` to mean 0 and variance 1 over `axes`.

        u = (x - mean(x)) / sqrt(var(x) + epsilon),   var divided by n - 1

    The gradient is the true derivative, through mean and variance. Numbers that are all equal
    become 0, even if epsilon is 0.

    Args:
      x: floating array of any shape.
      axes: the axes that share one mean and one variance, n numbers together.
      epsilon: added to the variance; 0 for the plain quotient.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `axes` hold fewer than two numbers, which have no variance.

    >>> standardize(jnp.array([[1.0, 3.0]]), axes=(1,)).round(3)
    Array([[-0.707,  0.707]], dtype=float32)
    """
    mean, deviation = mean_and_deviation(x, axes, epsilon)
    return (x - mean) / deviation


def mean_and_deviation(x: Array, axes: Sequence[int], epsilon: float) -> tuple[Array, Array]:
    """Return the mean that `standardize` subtracts, and the deviation that it divides by."""
    n = group_size(x, axes)
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.sum(jnp.square(x - mean), axes, keepdims=True) / (n - 1)
    if epsilon == 0:
        # Done before the square root, whose derivative at 0 is infinite.
        variance = jnp.where(variance > 0, variance, 1)
    return mean, jnp.sqrt(variance + epsilon)


def moments_about_first(x: Array) -> tuple[Array, Array]:
    """Compute mean and variance (divided by n - 1) of each sample, in one pass over x.

    Squares are taken of distances from the sample's first number: otherwise the variance would
    lose digits where the mean is large compared to the deviation. For CPUs only: on other devices
    the pass would have to wait for that number, and could not be fused with what computes x.

    Args:
      x: `[batch, ..., channels]`, at least two numbers per sample.

    Returns:
      Mean and variance, `[batch, 1, ..., 1]`, float32, or float64 if x is.
    """
    axes = tuple(range(1, x.ndim))
    n = math.prod(x.shape[1:])
    numbers = x.astype(wide(x.dtype))
    near = numbers[(slice(None), *(slice(1) for _ in axes))]
    distance = numbers - near
    shift = jnp.mean(distance, axes, keepdims=True)
    squares = jnp.mean(jnp.square(distance), axes, keepdims=True)
    return near + shift, jnp.maximum(squares - jnp.square(shift), 0) * (n / (n - 1))


def moments_about_mean(x: Array) -> tuple[Array, Array]:
    """Compute the same as `moments_about_first`, so that a pass can be fused with what computes x.

    Numbers in bfloat16 take one pass over their squares: the digits lost where the mean is large
    are fewer than x itself lost when it was rounded. Others take two passes.
    """
    axes = tuple(range(1, x.ndim))
    n = math.prod(x.shape[1:])
    numbers = x.astype(wide(x.dtype))
    mean = jnp.mean(numbers, axes, keepdims=True)
    if x.dtype == jnp.bfloat16:
        squares = jnp.mean(jnp.square(numbers), axes, keepdims=True)
        return mean, jnp.maximum(squares - jnp.square(mean), 0) * (n / (n - 1))
    return mean, jnp.sum(jnp.square(numbers - mean), axes, keepdims=True) / (n - 1)
