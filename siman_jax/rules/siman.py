"""The mathematics of SiMaN, sign-to-magnitude network binarization.

Pure functions on kernels and activations. A *filter* is everything that feeds one output
channel: all axes of a kernel but the last, so `[height, width, in, out]` for a convolution and
`[in, out]` for a dense layer. Activations are `[batch, ..., channels]`.

Functions whose gradient is an estimator, not a derivative, carry it as a `jax.custom_vjp`
beside their forward. All of them keep the floating dtype they are given.

Source: Lin et al., "SiMaN: Sign-to-Magnitude Network Binarization", arXiv 2102.07981 (TPAMI
2023). At zero, `sign` is +1 here, since a bit has no third value.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.errors import choose
from siman_jax.native.dispatch import available, by_platform
from siman_jax.native.weights import magnitude_code, projection
from siman_jax.rules import kernels_together
from siman_jax.rules.order_statistics import exceeds_kth_smallest, interpolated, quantile_ranks

VARIANCE_EPSILON = 1e-5


def standardize(x: Array, axes: Sequence[int], epsilon: float = VARIANCE_EPSILON) -> Array:
    """Shift and scale `x` to mean 0 and variance 1 over `axes`.

        u = (x - mean(x)) / sqrt(var(x) + epsilon),   var divided by n - 1

    The backward is the true derivative, through mean and variance. Numbers that are all equal
    become 0, without an epsilon too.

    Args:
      x: floating array of any shape.
      axes: the axes that share one mean and one variance, n numbers together.
      epsilon: added to the variance; 0 for the plain quotient.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `axes` hold fewer than two numbers, so that they have no variance.

    >>> standardize(jnp.array([[1.0, 3.0]]), axes=(1,)).round(3)
    Array([[-0.707,  0.707]], dtype=float32)
    """
    mean, deviation = _moments(x, axes, epsilon)
    return (x - mean) / deviation


def _moments(x: Array, axes: Sequence[int], epsilon: float) -> tuple[Array, Array]:
    """What `standardize` subtracts, and what it divides by."""
    n = _group_size(x, axes)
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.sum(jnp.square(x - mean), axes, keepdims=True) / (n - 1)
    if epsilon == 0:
        # Before the root, whose derivative at 0 is infinite.
        variance = jnp.where(variance > 0, variance, 1)
    return mean, jnp.sqrt(variance + epsilon)


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
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


def _approx_sign_fwd(x: Array) -> tuple[Array, Array]:
    return approx_sign(x), x


def _approx_sign_bwd(x: Array, g: Array) -> tuple[Array]:
    return (g * jnp.maximum(2 - 2 * jnp.abs(x), 0),)


approx_sign.defvjp(_approx_sign_fwd, _approx_sign_bwd)


def half_half_bits(u: Array) -> Array:
    """Give 1 to the larger half of each filter's magnitudes.

        b = 1 where |u| > lower median of |u| in the filter, else 0

    One bit of entropy exactly, where a filter has an even number of weights and no tie at its
    median; weights tied with the median get 0.

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


class Chosen(NamedTuple):
    """Bits of a kernel, with what its derivative takes, so that it need not be computed again.

    Attributes:
      bits: bool, shape of the kernel.
      mean, deviation: that each filter is standardized by, `[1, ..., out]`.
    """

    bits: Array
    mean: Array
    deviation: Array


def project_and_choose(
    kernels: Sequence[Array], percent: Array | float
) -> tuple[list[Array], list[Chosen]]:
    """Apply `project` to all kernels of a network, and choose their bits by half-half.

    Elsewhere than on a CPU all are computed together, which takes far fewer launches.

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
    mean, deviation = _moments(kernel, filter_axes(kernel), VARIANCE_EPSILON)
    return Chosen(half_half_bits((kernel - mean) / deviation) > 0, mean, deviation)


class AngleOptimal(NamedTuple):
    """Bits of the smallest angle to |u|, with what they reached.

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
    """Cosine of the angle between |u| and `bits` in each filter.

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


@jax.custom_vjp
def _magnitude_code(kernel: Array, chosen: Chosen) -> Array:
    return jnp.where(chosen.bits, 1, -1).astype(kernel.dtype)


def _magnitude_code_fwd(kernel: Array, chosen: Chosen) -> tuple[Array, tuple[Array, Array, Array]]:
    return _magnitude_code(kernel, chosen), (kernel, chosen.mean, chosen.deviation)


def _magnitude_code_bwd(residuals: tuple[Array, Array, Array], g: Array) -> tuple[Array, None]:
    kernel, mean, deviation = residuals
    axes = filter_axes(kernel)
    u = (kernel - mean) / deviation
    n = _group_size(kernel, axes)
    du = g * jnp.sign(u)
    first = jnp.sum(du, axes, keepdims=True) / n
    second = jnp.sum(du * u, axes, keepdims=True) / (n - 1)
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
      bits: b, where they are chosen already, by `project_and_choose`.

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
        mean, deviation = _moments(fixed, filter_axes(kernel), VARIANCE_EPSILON)
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
    _group_size(x, tuple(range(1, x.ndim)))  # which checks it
    mean, variance = by_platform(moments_about_first, moments_about_mean)(x)
    return jnp.where(x.astype(mean.dtype) >= mean, 1, -1).astype(x.dtype), (x, mean, variance)


def moments_about_first(x: Array) -> tuple[Array, Array]:
    """Mean and variance (divided by n - 1) of each sample, in one pass over x.

    The squares are of distances from the sample's first number: without that, a mean that is large
    against the deviation would cost the variance its digits. For CPUs: elsewhere the pass would
    have to wait for that number, and could not be part of the program that computes x.

    Args:
      x: `[batch, ..., channels]`, at least two numbers per sample.

    Returns:
      Two arrays `[batch, 1, ..., 1]`, float32, or float64 if x is.
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
    """As `moments_about_first`, in two passes: the first one belongs to what computes x."""
    axes = tuple(range(1, x.ndim))
    numbers = x.astype(wide(x.dtype))
    mean = jnp.mean(numbers, axes, keepdims=True)
    squares = jnp.sum(jnp.square(numbers - mean), axes, keepdims=True)
    return mean, squares / (math.prod(x.shape[1:]) - 1)


def _siman_activation_bwd(residuals: tuple[Array, Array, Array], g: Array) -> tuple[Array]:
    x, mean, variance = residuals
    axes = tuple(range(1, x.ndim))
    n = _group_size(x, axes)
    r = lax.rsqrt(variance + VARIANCE_EPSILON)
    u = (x.astype(mean.dtype) - mean) * r
    du = g.astype(mean.dtype) * jnp.maximum(2 - 2 * jnp.abs(u), 0)
    first = jnp.sum(du, axes, keepdims=True) / n
    second = jnp.sum(du * u, axes, keepdims=True) / (n - 1)
    return ((r * (du - first - u * second)).astype(x.dtype),)


siman_activation.defvjp(_siman_activation_fwd, _siman_activation_bwd)


def identity(x: Array) -> Array:
    """Return `x`: the rule that leaves weights or activations real-valued."""
    return x


# Names the rules that leave weights or activations real-valued.
REAL = "real"


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The dtype to accumulate in: float32, or float64 if `dtype` is that."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)


def _group_size(x: Array, axes: Sequence[int]) -> int:
    """How many numbers share a mean and a variance, which takes two at least."""
    n = math.prod(x.shape[axis] for axis in axes)
    if n < 2:
        raise ValueError(
            f"standardize needs at least two numbers per group, but axes {tuple(axes)} of shape"
            f" {x.shape} hold {n}."
        )
    return n


def _magnitudes(u: Array) -> Array:
    """|u| as `[n, out]`."""
    return jnp.abs(u).reshape(-1, u.shape[-1])


def filter_axes(kernel: Array) -> tuple[int, ...]:
    """The axes of one filter: all but the last."""
    return tuple(range(kernel.ndim - 1))
