"""Batch norm, shortcut and activation as one operation with its own derivative.

    out = activation((y - mean(y)) / sqrt(var(y) + epsilon) * gamma + beta + shortcut)

The derivative is written by hand, so that each direction reads its arrays only twice: once for all
sums over the batch, and once for the result. The backward needs only y from the forward. If y is a
product of bits, the product's sums are kept instead, as integers of 8 or 16 bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.rules.precision import wide

IDENTITY, RELU, PRELU, HARD_TANH = "identity", "relu", "prelu", "hard_tanh"


def per_channel(values: Array, x: Array) -> Array:
    """Reshape `[channels]` to be multiplied by or added to `x`, and convert to its dtype."""
    return lax.expand_dims(values.astype(x.dtype), range(x.ndim - 1))


class Affine(NamedTuple):
    """Learned parameters, `[channels]` each, and the shortcut.

    Attributes:
      gamma, beta: scale and offset.
      slopes: of the PReLU; None for other activations.
      shortcut: shape of the result; None for none.
    """

    gamma: Array
    beta: Array
    slopes: Array | None
    shortcut: Array | None


class Moments(NamedTuple):
    """Mean and variance (divided by n) of each group's channels, `[groups, channels]`."""

    mean: Array
    var: Array


class Gradients(NamedTuple):
    """Cotangents of the operation's inputs.

    Attributes:
      y: of the normalized array, float32 or float64.
      scale: of the scale, `[channels]`.
      affine: of the parameters and the shortcut.
    """

    y: Array
    scale: Array
    affine: Affine


class Sums(NamedTuple):
    """What a norm's derivative takes from the cotangent of its result.

    Attributes:
      dz: cotangent of the activation's input, in groups.
      first, second: sums over each group of dz, and of dz times x minus its mean,
        `[groups, channels]`.
      slopes: cotangent of the PReLU's slopes; None for other activations.
    """

    dz: Array
    first: Array
    second: Array
    slopes: Array | None


@dataclass(frozen=True)
class Norm:
    """The settings of a batch norm, and its computation.

    Its methods take y as x times a scale `[channels]`, or None for 1; statistics are those of x.

    Attributes:
      epsilon: added to the variance.
      groups: how many parts of adjacent examples the batch has, each with its own statistics.
      activation: `IDENTITY`, `RELU`, `PRELU` or `HARD_TANH`.
      dtype: of the result; everything before is float32, or float64 if this is.
    """

    epsilon: float
    groups: int
    activation: str
    dtype: DTypeLike

    def moments(self, x: Array, scale: Array | None, near: Array) -> Moments:
        """Compute the statistics of x `[batch, ..., channels]`: in one pass, in float64 in two.

        One pass takes squares of distances from an estimate of the mean; otherwise the variance
        would lose digits where the mean is large compared to the deviation. A poor estimate costs
        few digits in float32, compared with its own rounding. In float64, which serves for exact
        comparisons, the error would be a hundred times larger, so the mean is computed first.

        Args:
          x: floating or integer.
          scale: y = x * scale.
          near: the estimate of y's mean, `[channels]`.
        """
        x = self._grouped(x)
        axes = tuple(range(1, x.ndim - 1))
        near = near.astype(x.dtype)
        if scale is not None:
            scale = scale.astype(x.dtype)
            near = jnp.where(scale == 0, 0, near / jnp.where(scale == 0, 1, scale))
        distance = x - self._by_channel(near, x)
        shift = jnp.mean(distance, axes)
        if distance.dtype == jnp.float64:
            var = jnp.mean(jnp.square(distance - self._by_channel(shift, distance)), axes)
        else:
            var = jnp.mean(jnp.square(distance), axes) - jnp.square(shift)
        return Moments(shift + near[None], jnp.maximum(var, 0))

    def apply(self, x: Array, scale: Array | None, moments: Moments, affine: Affine) -> Array:
        """Normalize, add the shortcut and activate: shape of x, in `dtype`."""
        z = self._before_activation(self._grouped(x), scale, moments, affine)
        if self.activation == RELU:
            z = jnp.maximum(z, 0)
        elif self.activation == PRELU:
            assert affine.slopes is not None
            z = jnp.where(z > 0, z, self._by_channel(affine.slopes, z) * z)
        elif self.activation == HARD_TANH:
            z = jnp.clip(z, -1, 1)
        return z.reshape(x.shape).astype(self.dtype)

    def gradients(
        self, g: Array, x: Array, scale: Array | None, moments: Moments, affine: Affine
    ) -> Gradients:
        """Compute the cotangents of the inputs from the cotangent g of the result.

        With dz the cotangent of the activation's input, s the scale,
        r = 1 / sqrt(s^2 var + epsilon) and c = x - mean:

            dy = gamma r (dz - mean(dz) - c s^2 r^2 mean(dz c))
            dgamma = s r sum(dz c),   ds = sum(dy x) = epsilon gamma r^3 sum(dz c)

        The norm cancels any scale except for its epsilon. So the sum of dy x is a small difference
        of large numbers, which rounding would dominate; the right-hand side of ds avoids this.
        """
        sums = self.sums(g, x, scale, moments, affine)
        return self.from_sums(sums, x, scale, moments, affine)

    def sums(
        self, g: Array, x: Array, scale: Array | None, moments: Moments, affine: Affine
    ) -> Sums:
        """Compute the first part of `gradients`; x may be a part of what was normalized."""
        g, x = self._grouped(g), self._grouped(x)
        axes = tuple(range(1, x.ndim - 1))
        dz, slopes = g, None
        if self.activation != IDENTITY:
            z = self._before_activation(x, scale, moments, affine)
            if self.activation == HARD_TANH:
                dz = jnp.where(jnp.abs(z) <= 1, g, 0)
            elif self.activation == RELU:
                dz = jnp.where(z > 0, g, 0)
            else:
                assert affine.slopes is not None
                dz = jnp.where(z > 0, g, self._by_channel(affine.slopes, g) * g)
                slopes = jnp.sum(jnp.where(z > 0, 0, g * z), (0, *axes))
                slopes = slopes.astype(affine.slopes.dtype)
        centred = x - self._by_channel(moments.mean, x)
        return Sums(dz, jnp.sum(dz, axes), jnp.sum(dz * centred, axes), slopes)

    def from_sums(
        self, sums: Sums, x: Array, scale: Array | None, moments: Moments, affine: Affine
    ) -> Gradients:
        """Compute the second part of `gradients`; all of x and of dz is needed."""
        shape = x.shape
        x, dz = self._grouped(x), self._grouped(sums.dz.reshape(shape))
        centred = x - self._by_channel(moments.mean, x)
        first, second = sums.first, sums.second
        r = self._over_deviation(scale, moments)
        gain = affine.gamma.astype(x.dtype)[None] * r
        rs = r if scale is None else r * scale.astype(r.dtype)[None]
        count = math.prod(x.shape[1:-1])
        shift, slant = first / count, jnp.square(rs) * second / count
        dy = dz - self._by_channel(shift, x) - centred * self._by_channel(slant, x)
        dy = dy * self._by_channel(gain, x)
        shortcut = affine.shortcut
        cotangents = Affine(
            jnp.sum(second * rs, 0).astype(affine.gamma.dtype),
            jnp.sum(first, 0).astype(affine.beta.dtype),
            sums.slopes,
            None if shortcut is None else dz.reshape(shape).astype(shortcut.dtype),
        )
        dscale = jnp.sum(self.epsilon * gain * jnp.square(r) * second, 0)
        return Gradients(dy.reshape(shape), dscale, cotangents)

    def _before_activation(
        self, x: Array, scale: Array | None, moments: Moments, affine: Affine
    ) -> Array:
        gain = affine.gamma.astype(x.dtype)[None] * self._over_deviation(scale, moments)
        if scale is not None:
            gain = gain * scale.astype(x.dtype)[None]
        z = (x - self._by_channel(moments.mean, x)) * self._by_channel(gain, x)
        z = z + self._by_channel(affine.beta, x)
        return z if affine.shortcut is None else z + self._grouped(affine.shortcut)

    def _over_deviation(self, scale: Array | None, moments: Moments) -> Array:
        var = moments.var
        if scale is not None:
            var = var * jnp.square(scale.astype(var.dtype))[None]
        return lax.rsqrt(var + self.epsilon)

    def _grouped(self, x: Array) -> Array:
        x = x.astype(wide(self.dtype))
        return x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])

    def _by_channel(self, values: Array, like: Array) -> Array:
        """Reshape `[channels]` or `[groups, channels]` to broadcast with a grouped array."""
        groups = values.shape[0] if values.ndim == 2 else 1
        values = values.astype(like.dtype)
        return values.reshape(groups, *(1,) * (like.ndim - 2), like.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def batch_norm(norm: Norm, y: Array, affine: Affine, near: Array) -> tuple[Array, Moments]:
    """Normalize `[batch, ..., channels]` by its own statistics; see the top of this file.

    Args:
      norm: the settings.
      y: floating.
      affine: parameters and shortcut.
      near: `[channels]`, an estimate of the mean, such as the running mean; it affects only
        rounding.

    Returns:
      The result, shape of y, and the statistics, which have no derivative.
    """
    moments = norm.moments(y, None, near)
    return norm.apply(y, None, moments, affine), moments


def _batch_norm_fwd(norm: Norm, y: Array, affine: Affine, near: Array) -> tuple[Any, Any]:
    out, moments = batch_norm(norm, y, affine, near)
    return (out, moments), (y, affine, near, moments)


def _batch_norm_bwd(norm: Norm, residuals: Any, g: tuple[Array, Moments]) -> tuple:
    y, affine, near, moments = residuals
    gradients = norm.gradients(g[0], y, None, moments, affine)
    return gradients.y.astype(y.dtype), gradients.affine, jnp.zeros_like(near)


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


class Operands(NamedTuple):
    """The factors of a product, and the learned scales `[features]`, None for 1."""

    x: Array
    kernel: Array
    alpha: Array | None


@dataclass(frozen=True)
class KeptSums:
    """A product whose sums are kept for the backward direction.

    Attributes:
      multiply: the product of two arrays of one dtype, such as a convolution.
      kept: dtype that holds the sums, divided by `unit`, exactly, such as int16; if there is none,
        the dtype to round them to.
      unit: 2 if all sums are even, which saves a bit; otherwise 1.
    """

    multiply: Callable[..., Array]
    kept: DTypeLike
    unit: int = 1

    def forward(self, operands: Operands) -> Array:
        """Compute the sums in float32, or in float64 if the operands are; return them in `kept`."""
        x, kernel, _ = operands
        sums = self.multiply(x, kernel, preferred_element_type=wide(x.dtype))
        return (sums if self.unit == 1 else sums / self.unit).astype(self.kept)

    def read(self, kept: Array, dtype: DTypeLike) -> Array:
        """Return the sums that `forward` kept, in a floating dtype."""
        sums = kept.astype(dtype)
        return sums if self.unit == 1 else sums * self.unit

    def gradients(self, dy: Array, dalpha: Array | None, operands: Operands) -> Operands:
        """Compute the cotangents of all operands from those of the scaled sums and of alpha.

        The product's cotangent gets the dtype of the operands, since JAX cannot differentiate a
        convolution whose result is wider than its operands.
        """
        x, kernel, alpha = operands
        if alpha is not None:
            assert dalpha is not None
            dy, dalpha = dy * per_channel(alpha, dy), dalpha.astype(alpha.dtype)
        _, pullback = jax.vjp(self.multiply, x, kernel)
        dx, dkernel = pullback(dy.astype(x.dtype))
        return Operands(dx, dkernel, None if alpha is None else dalpha)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_product(sums: KeptSums, operands: Operands) -> Array:
    """Compute multiply(x, kernel) * alpha, in the dtype of x."""
    return _scaled_product_fwd(sums, operands)[0]


def _scaled_product_fwd(sums: KeptSums, operands: Operands) -> tuple[Array, Any]:
    kept = sums.forward(operands)
    x, _, alpha = operands
    y = sums.read(kept, wide(x.dtype))
    if alpha is not None:
        y = y * per_channel(alpha, y)
    return y.astype(x.dtype), (operands, None if alpha is None else kept)


def _scaled_product_bwd(sums: KeptSums, residuals: Any, g: Array) -> tuple[Operands]:
    operands, kept = residuals
    g = g.astype(wide(g.dtype))
    dalpha = None if kept is None else jnp.sum(g * sums.read(kept, g.dtype), range(g.ndim - 1))
    return (sums.gradients(g, dalpha, operands),)


scaled_product.defvjp(_scaled_product_fwd, _scaled_product_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product_norm(
    sums: KeptSums, norm: Norm, operands: Operands, affine: Affine, near: Array
) -> tuple[Array, Moments]:
    """Compute `batch_norm` of `scaled_product`, and keep only the sums for the backward."""
    return _product_norm_fwd(sums, norm, operands, affine, near)[0]


def _product_norm_fwd(
    sums: KeptSums, norm: Norm, operands: Operands, affine: Affine, near: Array
) -> tuple[Any, Any]:
    kept = sums.forward(operands)
    alpha = operands.alpha
    x = sums.read(kept, wide(norm.dtype))
    moments = norm.moments(x, alpha, near)
    out = norm.apply(x, alpha, moments, affine)
    of_y = moments
    if alpha is not None:
        alpha = alpha.astype(moments.mean.dtype)[None]
        of_y = Moments(moments.mean * alpha, moments.var * jnp.square(alpha))
    return (out, of_y), (operands, affine, near, moments, kept)


def _product_norm_bwd(
    sums: KeptSums, norm: Norm, residuals: Any, g: tuple[Array, Moments]
) -> tuple:
    operands, affine, near, moments, kept = residuals
    x = sums.read(kept, wide(norm.dtype))
    gradients = norm.gradients(g[0], x, operands.alpha, moments, affine)
    cotangents = sums.gradients(gradients.y, gradients.scale, operands)
    return cotangents, gradients.affine, jnp.zeros_like(near)


product_norm.defvjp(_product_norm_fwd, _product_norm_bwd)
