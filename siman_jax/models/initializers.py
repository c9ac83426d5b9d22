"""Initial values of parameters that Flax does not have."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Initializer = Callable[..., Array]

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform in +-1/sqrt(fan_in), PyTorch's default for a layer's weight.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> Initializer:
    """Build PyTorch's default for a bias: uniform in +-1/sqrt(fan_in) of the layer's kernel."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def mean_magnitude_of_uniform(kernel_shape: tuple[int, ...]) -> Initializer:
    """Build the authors' initial alpha: mean |w| of a default draw of the kernel, per filter.

    This is about 0.5 / sqrt(fan_in). The draw is made for alpha only; the kernel has its own.
    """

    def init(key: Array, _: tuple[int, ...]) -> Array:
        return mean_magnitude(fan_in_uniform(key, kernel_shape, jnp.float32))

    return init


def mean_magnitude(kernel: Array) -> Array:
    """Compute mean |w| of each filter, `[out]`, of a kernel `[..., out]`."""
    return jnp.mean(jnp.abs(kernel), range(kernel.ndim - 1))
