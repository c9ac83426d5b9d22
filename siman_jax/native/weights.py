"""Native projection and binarization of latent kernels; `rules.siman` has the mathematics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from siman_jax.native.dispatch import Function, differentiable, on_cpu
from siman_jax.native.library import MAGNITUDE_CODE, MAGNITUDE_CODE_GRADIENT, PROJECT, call


def projection(reference: Function) -> Function:
    """Build a function of a kernel, ranks and weights that centres filters and clips magnitudes.

    Args:
      reference: the same function in `jax.numpy`, of a kernel `[..., out]`, four int32 ranks and
        two weights. Limit i is interpolated between the magnitudes of ranks i and 2 + i, with
        weight i for the latter.
    """

    def natively(kernel: Array, ranks: Array, weights: Array) -> Array:
        columns = kernel.reshape(-1, kernel.shape[-1])
        shape = jax.ShapeDtypeStruct(columns.shape, jnp.float32)
        return call(PROJECT, shape, columns, ranks, weights).reshape(kernel.shape)

    return on_cpu(natively, reference)


def magnitude_code(reference: Function, epsilon: float) -> Function:
    """Build a function of a kernel that gives +1 to the larger half of each filter, else -1.

    Args:
      reference: the same function in `jax.numpy`, of a kernel `[..., out]`.
      epsilon: added to the variance.

    Returns:
      Function of the kernel and optional bits, which only the reference uses.
    """

    def forward(kernel: Array, *bits: Array) -> Any:
        del bits
        columns = kernel.reshape(-1, kernel.shape[-1])
        shapes = (
            jax.ShapeDtypeStruct(columns.shape, jnp.float32),
            jax.ShapeDtypeStruct((2, columns.shape[1]), jnp.float32),
        )
        rank = (columns.shape[0] - 1) // 2
        code, moments = call(
            MAGNITUDE_CODE, shapes, columns, rank=rank, epsilon=np.float32(epsilon)
        )
        return code.reshape(kernel.shape), moments

    def backward(arrays: Any, moments: Array, g: Array) -> tuple[Array | None, ...]:
        kernel, *bits = arrays
        columns = kernel.reshape(-1, kernel.shape[-1])
        shape = jax.ShapeDtypeStruct(columns.shape, jnp.float32)
        gradient = call(MAGNITUDE_CODE_GRADIENT, shape, columns, moments, g.reshape(columns.shape))
        return gradient.reshape(kernel.shape), *[None for _ in bits]

    return differentiable(reference, forward, backward)
