"""Kernels of the sign-based methods that SiMaN is compared with.

Each function maps a latent kernel `[..., out]` to the kernel that multiplies, of the same shape
and floating dtype: `s * sign(.)` with one positive s per filter, and sign(0) = +1. The gradients
given here include the scale s. RBNN is in a file of its own, `rbnn`; BNN's kernel is
`estimators.ste_sign`.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.rules.estimators import approx_sign, identity_sign, ste_sign, tanh_sign
from siman_jax.rules.standardize import VARIANCE_EPSILON, filter_axes, standardize


def _mean_magnitude(kernel: Array) -> Array:
    """Compute mean |w| of each filter, `[1, ..., out]`."""
    return jnp.mean(jnp.abs(kernel), filter_axes(kernel), keepdims=True)


@jax.custom_vjp
def xnor_net_kernel(kernel: Array) -> Array:
    """Binarize by sign, scaled by the mean magnitude of each filter.

        forward:   s sign(w),   s = mean|w| per filter, of n weights
        backward:  g * (1/n + s 1[|w| <= 1])

    The backward is the paper's. From the derivative of s it keeps only the term of the weight
    itself, 1/n.

    Args:
      kernel: `[..., out]`.

    Source: arXiv 1603.05279, section 3.1. The paper's scaling of activations is left out, as in
    most later work: a batch norm follows, and packed kernels would not benefit.
    """
    return _mean_magnitude(kernel) * ste_sign(kernel)


def _xnor_net_kernel_fwd(kernel: Array) -> tuple[Array, Array]:
    return xnor_net_kernel(kernel), kernel


def _xnor_net_kernel_bwd(kernel: Array, g: Array) -> tuple[Array]:
    n = math.prod(kernel.shape[:-1])
    inside = (jnp.abs(kernel) <= 1).astype(g.dtype)
    return (g * (1 / n + _mean_magnitude(kernel) * inside),)


xnor_net_kernel.defvjp(_xnor_net_kernel_fwd, _xnor_net_kernel_bwd)


@jax.custom_vjp
def dorefa_kernel(kernel: Array) -> Array:
    """Binarize by sign, scaled by the mean magnitude of the whole layer.

        forward:   s sign(w),   s = mean|w| of the layer
        backward:  g

    Args:
      kernel: `[..., out]`.

    Source: DoReFa-Net at 1 bit, arXiv 1606.06160. The paper's activations are 0 and 1; here they
    are -1 and +1 as in every other rule, so that all networks pack alike.
    """
    return jnp.mean(jnp.abs(kernel)) * ste_sign(kernel)


def _dorefa_kernel_fwd(kernel: Array) -> tuple[Array, None]:
    return dorefa_kernel(kernel), None


def _dorefa_kernel_bwd(_: None, g: Array) -> tuple[Array]:
    return (g,)


dorefa_kernel.defvjp(_dorefa_kernel_fwd, _dorefa_kernel_bwd)


def bi_real_kernel(kernel: Array) -> Array:
    """Binarize by sign, scaled by each filter's mean magnitude, which is treated as a constant.

        forward:   s sign(w),   s = mean|w| per filter
        backward:  g * s 1[|w| <= 1]

    Args:
      kernel: `[..., out]`.

    Source: Bi-Real Net, arXiv 1808.00278.
    """
    return lax.stop_gradient(_mean_magnitude(kernel)) * ste_sign(kernel)


def ir_net_kernel(kernel: Array, sharpness: Array | float) -> Array:
    """Binarize by the sign of the standardized kernel, scaled by a power of two.

        forward:   s sign(u),   u = (w - mean(w)) / std(w) per filter,
                   s = 2^round(log2(mean|u|)) per filter, a constant
        backward:  dL/du = g * s k t (1 - tanh^2(t u)),   k = max(1/t, 1),
                   then the true derivative of standardize

    Args:
      kernel: `[..., out]`, at least two weights per filter; if all are equal, u = 0 and s = 1.
      sharpness: t, a scalar.

    Source: IR-Net, arXiv 1909.10788; as the authors' program computes it.
    """
    u = standardize(kernel, filter_axes(kernel), epsilon=0)
    mean = lax.stop_gradient(_mean_magnitude(u))
    exponent = jnp.round(jnp.log2(jnp.where(mean > 0, mean, 1))).astype(jnp.int32)
    # Set the exponent directly, since exp2 may be inexact.
    return jnp.ldexp(jnp.ones_like(mean), exponent) * tanh_sign(u, sharpness)


def recu_kernel(kernel: Array, tau: Array | float) -> Array:
    """Binarize by sign, after clipping the tails, where weights hardly ever change their sign.

        forward:   sign(clip(u, -Q, Q)),   u = 2 sqrt(2) standardize(w) per filter,
                   Q = -mean|u| ln(2 - 2 tau), a constant, with the mean over the layer
        backward:  dL/du = g * 1[|u| <= Q],  then the true derivative of standardize

    Q is the tau-quantile of a Laplacian with that mean magnitude.

    Args:
      kernel: `[..., out]`, at least two weights per filter.
      tau: in (0.5, 1), a scalar.

    Source: ReCU, arXiv 2103.12369; as the authors' program computes it.
    """
    u = 2 * math.sqrt(2) * standardize(kernel, filter_axes(kernel))
    spread = -jnp.log(2 - 2 * jnp.asarray(tau, u.dtype))
    limit = lax.stop_gradient(jnp.mean(jnp.abs(u))) * spread
    return identity_sign(jnp.clip(u, -limit, limit))


def recu_activation(x: Array) -> Array:
    """Binarize activations by sign, with an estimator that sees them scaled to variance 1.

        forward:   sign(a)
        backward:  that of approx_sign at a / sqrt(var(a) + 1e-5), the variance per sample, then
                   the true derivative of the quotient

    The activations are not centred.

    Args:
      x: `[batch, ..., channels]`.

    Source: arXiv 2103.12369.
    """
    variance = jnp.var(x, range(1, x.ndim), ddof=1, keepdims=True)
    return approx_sign(x / jnp.sqrt(variance + VARIANCE_EPSILON))


def tau_at(progress: Array, first: float, last: float) -> Array:
    """Compute ReCU's tau at a point of training.

        tau = A exp(progress) + B,   with tau(0) = first and tau(1) = last

    Args:
      progress: epochs done over all epochs, 0 to 1.
      first: tau at 0; the paper uses 0.85.
      last: tau at 1; the paper uses 0.99.

    Source: arXiv 2103.12369.

    >>> tau_at(jnp.array([0.0, 1.0]), 0.85, 0.99)
    Array([0.85, 0.99], dtype=float32)
    """
    a = (last - first) / (math.e - 1)
    return a * jnp.exp(progress) + (first - a)
