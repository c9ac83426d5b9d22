"""SiMaN, sign-to-magnitude network binarization: its projection, kernels and activations.

Pure functions on kernels `[..., out]` and activations `[batch, ..., channels]`. A function whose
gradient is an estimator rather than a derivative is a `jax.custom_vjp`, with the backward beside
its forward. All keep the floating dtype of their input.

Source: Lin et al., "SiMaN: Sign-to-Magnitude Network Binarization", arXiv 2102.07981 (TPAMI
2023). At zero, `sign` is +1 here, since a bit has only two values.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.errors import choose
from siman_jax.native.dispatch import available, by_platform
from siman_jax.native.weights import magnitude_code, projection
from siman_jax.rules import kernels_together
from siman_jax.rules.magnitude_bits import BIT_RULES, half_half_bits
from siman_jax.rules.order_statistics import interpolated, quantile_ranks
from siman_jax.rules.precision import wide
from siman_jax.rules.standardize import (
    VARIANCE_EPSILON,
    filter_axes,
    group_size,
    mean_and_deviation,
    moments_about_first,
    moments_about_mean,
)


def project(kernel: Array, percent: Array | float) -> Array:
    """Centre each filter, then clip magnitudes to the layer's own percentiles.

        w <- w - mean(w)                                     per filter
        |w| <- clip(|w|, P_percent, P_(100 - percent))       signs kept

    The percentiles interpolate linearly over |w| of the whole layer. Training applies this to
    the stored kernel before each step; it lies outside the gradient.

    Args:
      kernel: `[..., out]`, any floating dtype.
      percent: scalar in [0, 50].

    Returns:
      The projected kernel, of the shape and dtype of `kernel`.
    """

    def by_xla(kernel: Array, ranks: Array, weights: Array) -> Array:
        centred = kernel - jnp.mean(kernel, filter_axes(kernel), keepdims=True)
        magnitude = jnp.abs(centred).astype(wide(kernel.dtype))
        low, high = interpolated(magnitude, ranks, weights)
        return jnp.sign(centred) * jnp.clip(magnitude, low, high).astype(kernel.dtype)

    fraction = jnp.asarray(percent, wide(kernel.dtype)) / 100
    ranks, weights = quantile_ranks(kernel.size, jnp.stack([fraction, 1 - fraction]))
    run = projection(by_xla) if available(kernel) and kernel.size else by_xla
    return run(kernel, ranks, weights)


class Chosen(NamedTuple):
    """Bits of a kernel, with the statistics that its gradient needs, so both are computed once.

    Attributes:
      bits: bool, shape of the kernel.
      mean, deviation: used to standardize each filter, `[1, ..., out]`.
    """

    bits: Array
    mean: Array
    deviation: Array


def project_and_choose(
    kernels: Sequence[Array], percent: Array | float
) -> tuple[list[Array], list[Chosen]]:
    """Apply `project` to all kernels of a network, and choose their bits by half-half.

    On accelerators all are computed together, which takes far fewer kernel launches.

    Args:
      kernels: `[..., out]`, all of one floating dtype.
      percent: as for `project`.

    Returns:
      The projected kernels; and their bits, for `siman_kernel`.
    """
    if not kernels:
        return [], []
    accumulate = wide(kernels[0].dtype)

    def one_by_one(kernels: list[Array], percent: Array) -> tuple[list[Array], list[Chosen]]:
        projected = [project(kernel, percent) for kernel in kernels]
        return projected, [_choose_half_half(kernel) for kernel in projected]

    def together(kernels: list[Array], percent: Array) -> tuple[list[Array], list[Chosen]]:
        projected, *chosen = kernels_together.project_and_choose(
            kernels, percent, accumulate, VARIANCE_EPSILON
        )
        return projected, [Chosen(*parts) for parts in zip(*chosen, strict=True)]

    return by_platform(one_by_one, together)(list(kernels), jnp.asarray(percent, accumulate))


def _choose_half_half(kernel: Array) -> Chosen:
    mean, deviation = mean_and_deviation(kernel, filter_axes(kernel), VARIANCE_EPSILON)
    return Chosen(half_half_bits((kernel - mean) / deviation) > 0, mean, deviation)


@jax.custom_vjp
def _magnitude_code(kernel: Array, chosen: Chosen) -> Array:
    return jnp.where(chosen.bits, 1, -1).astype(kernel.dtype)


def _magnitude_code_fwd(kernel: Array, chosen: Chosen) -> tuple[Array, tuple[Array, Array, Array]]:
    return _magnitude_code(kernel, chosen), (kernel, chosen.mean, chosen.deviation)


def _magnitude_code_bwd(residuals: tuple[Array, Array, Array], g: Array) -> tuple[Array, None]:
    kernel, mean, deviation = residuals
    axes = filter_axes(kernel)
    u = (kernel - mean) / deviation
    n = group_size(kernel, axes)
    du = g * jnp.sign(u)
    # The constants are inside, since compilers for accelerators compute with a sum on its own.
    first = jnp.sum(du * (1 / n), axes, keepdims=True)
    second = jnp.sum(du * u * (1 / (n - 1)), axes, keepdims=True)
    return (du - first - u * second) / deviation, None


_magnitude_code.defvjp(_magnitude_code_fwd, _magnitude_code_bwd)


def siman_kernel(kernel: Array, rule: str = "half_half", bits: Chosen | None = None) -> Array:
    """Binarize a kernel by magnitude: standardize, choose bits b, return 2b - 1.

        forward:   u = standardize(w) per filter,  b = rule(u),  2b - 1
        backward:  dL/du = g * sign(u)  (straight through to |u|; sign(0) = 0 here, the
                   derivative of |u|), then the true derivative of standardize:
                   dw = (du - mean(du) - u sum(du u) / (n - 1)) / sqrt(var(w) + epsilon)

    Args:
      kernel: `[..., out]`, any floating dtype, at least two weights per filter.
      rule: `"half_half"` or `"angle_optimal"`, a key of `BIT_RULES`.
      bits: b, if `project_and_choose` has already chosen them.

    Returns:
      Array of the shape and dtype of `kernel`, in {-1, +1}.

    Raises:
      UsageError: no rule has that name.

    Source: arXiv 2102.07981.
    """
    choose(BIT_RULES, rule, "bit rule")

    def by_xla(kernel: Array, *given: Array) -> Array:
        if given:
            return _magnitude_code(kernel, Chosen(*given))
        fixed = lax.stop_gradient(kernel)
        mean, deviation = mean_and_deviation(fixed, filter_axes(kernel), VARIANCE_EPSILON)
        bits = BIT_RULES[rule]((fixed - mean) / deviation) > 0
        return _magnitude_code(kernel, Chosen(bits, mean, deviation))

    given = () if bits is None else tuple(bits)
    if rule == "half_half" and available(kernel) and kernel.size > kernel.shape[-1]:
        return magnitude_code(by_xla, VARIANCE_EPSILON)(kernel, *given)
    return by_xla(kernel, *given)


@jax.custom_vjp
def siman_activation(x: Array) -> Array:
    """Binarize activations by their sign about each sample's mean.

        forward:   u = standardize(x) per sample,  +1 where u >= 0, else -1
        backward:  du = g * max(0, 2 - 2|u|), then the true derivative of standardize:
                   dx = (du - mean(du) - u sum(du u) / (n - 1)) / sqrt(var(x) + epsilon)

    Sums are float32, or float64 if x is.

    Args:
      x: `[batch, ..., channels]`, any floating dtype, at least two numbers per sample.

    Returns:
      Array of the shape and dtype of `x`, in {-1, +1}.

    Source: arXiv 2102.07981; the estimator is `approx_sign`.
    """
    return _siman_activation_fwd(x)[0]


def _siman_activation_fwd(x: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    group_size(x, tuple(range(1, x.ndim)))  # raises ValueError for single numbers
    mean, variance = by_platform(moments_about_first, moments_about_mean)(x)
    return jnp.where(x.astype(mean.dtype) >= mean, 1, -1).astype(x.dtype), (x, mean, variance)


def _siman_activation_bwd(residuals: tuple[Array, Array, Array], g: Array) -> tuple[Array]:
    x, mean, variance = residuals
    axes = tuple(range(1, x.ndim))
    n = group_size(x, axes)
    r = lax.rsqrt(variance + VARIANCE_EPSILON)
    u = (x.astype(mean.dtype) - mean) * r
    du = g.astype(mean.dtype) * jnp.maximum(2 - 2 * jnp.abs(u), 0)
    first = jnp.sum(du * (1 / n), axes, keepdims=True)
    second = jnp.sum(du * u * (1 / (n - 1)), axes, keepdims=True)
    return ((r * (du - first - u * second)).astype(x.dtype),)


siman_activation.defvjp(_siman_activation_fwd, _siman_activation_bwd)
