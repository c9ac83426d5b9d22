"""Sign functions with estimated gradients, for activations and kernels.

Every function returns +1 where x >= 0, else -1, in the shape and floating dtype of `x`. Zero
counts as positive, since a bit has only two values. The true derivative is 0 almost everywhere;
the functions differ in the estimate that replaces it.

Some estimators sharpen during training: `sharpness` is the t of their papers, a scalar that
`sharpness_at` schedules.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

SWISH_BETA = 5.0


def _sign(x: Array) -> Array:
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


@jax.custom_vjp
def approx_sign(x: Array) -> Array:
    """Binarize to -1 and +1, with the gradient of a piecewise quadratic.

        forward:   +1 where x >= 0, else -1
        backward:  g * max(0, 2 - 2|x|)

    Args:
      x: floating array of any shape.

    Returns:
      Array of the shape and dtype of `x`, in {-1, +1}.

    Source: Bi-Real Net, arXiv 1808.00278.

    >>> jax.grad(lambda x: approx_sign(x).sum())(jnp.array([-2.0, -0.25, 0.0]))
    Array([0. , 1.5, 2. ], dtype=float32)
    """
    return _sign(x)


def _approx_sign_fwd(x: Array) -> tuple[Array, Array]:
    return _sign(x), x


def _approx_sign_bwd(x: Array, g: Array) -> tuple[Array]:
    return (g * jnp.maximum(2 - 2 * jnp.abs(x), 0),)


approx_sign.defvjp(_approx_sign_fwd, _approx_sign_bwd)


@jax.custom_vjp
def ste_sign(x: Array) -> Array:
    """Binarize with the straight-through estimator.

        backward:  g * 1[|x| <= 1]

    The paper also clips latent weights to [-1, 1] after each update; this project does not.

    Source: BNN, arXiv 1602.02830.

    >>> jax.grad(lambda x: ste_sign(x).sum())(jnp.array([-2.0, -1.0, 0.0]))
    Array([0., 1., 1.], dtype=float32)
    """
    return _sign(x)


def _ste_sign_fwd(x: Array) -> tuple[Array, Array]:
    return _sign(x), x


def _ste_sign_bwd(x: Array, g: Array) -> tuple[Array]:
    return (jnp.where(jnp.abs(x) <= 1, g, 0),)


ste_sign.defvjp(_ste_sign_fwd, _ste_sign_bwd)


@jax.custom_vjp
def identity_sign(x: Array) -> Array:
    """Binarize with the gradient of the identity.

        backward:  g

    Source: ReCU, arXiv 2103.12369.
    """
    return _sign(x)


def _identity_sign_fwd(x: Array) -> tuple[Array, None]:
    return _sign(x), None


def _identity_sign_bwd(_: None, g: Array) -> tuple[Array]:
    return (g,)


identity_sign.defvjp(_identity_sign_fwd, _identity_sign_bwd)


@jax.custom_vjp
def swish_sign(x: Array) -> Array:
    """Binarize with the derivative of the SignSwish function.

        backward:  g * beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)),   beta = 5

    The gradient is beta at 0 and negative far from 0.

    Source: BNN+, arXiv 1812.11800.

    >>> jax.grad(swish_sign)(0.0)
    Array(5., dtype=float32)
    """
    return _sign(x)


def _swish_sign_fwd(x: Array) -> tuple[Array, Array]:
    return _sign(x), x


def _swish_sign_bwd(x: Array, g: Array) -> tuple[Array]:
    y = SWISH_BETA * x
    # cosh would overflow, so use 1 / (1 + cosh y) = (1 - tanh^2(y / 2)) / 2.
    tanh = jnp.tanh(y / 2)
    return (g * SWISH_BETA * (2 - y * tanh) * (1 - jnp.square(tanh)) / 2,)


swish_sign.defvjp(_swish_sign_fwd, _swish_sign_bwd)


@jax.custom_vjp
def tanh_sign(x: Array, sharpness: Array | float) -> Array:
    """Binarize with the derivative of a tanh that sharpens into a step.

        backward:  g * k t (1 - tanh^2(t x)),   k = max(1/t, 1)

    Args:
      x: floating array of any shape.
      sharpness: t > 0, a scalar without gradient.

    Source: IR-Net, arXiv 1909.10788.

    >>> jax.grad(tanh_sign)(0.0, 4.0)
    Array(4., dtype=float32)
    """
    del sharpness
    return _sign(x)


def _tanh_sign_fwd(x: Array, sharpness: Array | float) -> tuple[Array, tuple]:
    return _sign(x), (x, sharpness)


def _tanh_sign_bwd(residuals: tuple, g: Array) -> tuple[Array, None]:
    x, sharpness = residuals
    t = jnp.asarray(sharpness, x.dtype)
    return g * jnp.maximum(t, 1) * (1 - jnp.square(jnp.tanh(t * x))), None


tanh_sign.defvjp(_tanh_sign_fwd, _tanh_sign_bwd)


@jax.custom_vjp
def triangle_sign(x: Array, sharpness: Array | float, gain: Array | float) -> Array:
    """Binarize with a triangular gradient, which narrows as `sharpness` grows.

        backward:  g * k max(0, sqrt(2) t - t^2 |x|)

    Args:
      x: floating array of any shape.
      sharpness: t > 0, a scalar without gradient.
      gain: k, a scalar without gradient.

    Source: RBNN, arXiv 2009.13055.

    >>> jax.grad(triangle_sign)(0.0, 0.5, 2.0).round(4)
    Array(1.4142, dtype=float32)
    """
    del sharpness, gain
    return _sign(x)


def _triangle_sign_fwd(
    x: Array, sharpness: Array | float, gain: Array | float
) -> tuple[Array, tuple]:
    return _sign(x), (x, sharpness, gain)


def _triangle_sign_bwd(residuals: tuple, g: Array) -> tuple[Array, None, None]:
    x, sharpness, gain = residuals
    t, k = jnp.asarray(sharpness, x.dtype), jnp.asarray(gain, x.dtype)
    return g * k * jnp.maximum(math.sqrt(2) * t - jnp.square(t) * jnp.abs(x), 0), None, None


triangle_sign.defvjp(_triangle_sign_fwd, _triangle_sign_bwd)


def sharpness_at(progress: Array, first: float, last: float) -> Array:
    """Compute the sharpness t at a point of training: from `first` to `last`, geometrically.

        t = 10^(log10(first) + (log10(last) - log10(first)) * progress)

    Args:
      progress: epochs done over all epochs, 0 to 1.
      first: t at 0; the papers use 1e-2 (RBNN), 1e-3 (IR-Net, ResNet-20) or 1e-1 (IR-Net, other
        networks).
      last: t at 1; both papers use 10.

    Source: arXiv 1909.10788 and 2009.13055.

    >>> sharpness_at(jnp.array([0.0, 0.5, 1.0]), 0.1, 10.0)
    Array([ 0.1,  1. , 10. ], dtype=float32)
    """
    start, stop = math.log10(first), math.log10(last)
    return jnp.power(10.0, start + (stop - start) * progress)
