"""Batch norm with the shortcut and the activation behind it, as one operation with its derivative.

    out = activation((y - mean(y)) / sqrt(var(y) + epsilon) * gamma + beta + shortcut)

The derivative is written out, so that each direction reads its arrays as few times as can be: once
for all sums over the batch, and once for the result. Between the two directions only y is kept; or
in its place, where y comes from a product of bits, the product's sums, as 16-bit integers.
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

from siman_jax.rules.siman import wide

IDENTITY, RELU, PRELU, HARD_TANH = "identity", "relu", "prelu", "hard_tanh"


class Affine(NamedTuple):
    """Learned parameters and what is added, by channel `[channels]` but for the shortcut.

    Attributes:
      gamma, beta: scale and offset.
      slopes: of the PReLU; None where the activation is another.
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
    """What the cotangent of a result comes to.

    Attributes:
      y: cotangent of what is normalized, in wide floats.
      scale: of the scale, `[channels]`.
      affine: of the parameters and the shortcut.
    """

    y: Array
    scale: Array
    affine: Affine


@dataclass(frozen=True)
class Norm:
    """What is fixed about a batch norm.

    Its methods take y as x times a scale `[channels]`, or None for 1; statistics are those of x.

    Attributes:
      epsilon: added to the variance.
      groups: parts of the batch, examples next to each other, with statistics of their own.
      activation: `IDENTITY`, `RELU`, `PRELU` or `HARD_TANH`.
      dtype: of the result; sums and what is between are float32, or float64 if this is.
    """

    epsilon: float
    groups: int
    activation: str
    dtype: DTypeLike

    def moments(self, x: Array, scale: Array | None, near: Array) -> Moments:
        """Take the statistics of x `[batch, ..., channels]`: one pass in float32, two in float64.

        In one pass, the squares are of distances from an estimate of the mean. An estimate that is
        far off costs the variance digits: few in float32 beside its own rounding, but in float64,
        which is for exact comparisons, a hundredfold error. So there the mean itself comes first.

        Args:
          x: floating or integer.
          scale: that makes it y.
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
        """Normalize, add and activate: the shape of x, in `dtype`."""
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
        """Take the cotangent of the result back.

        With dz the cotangent of what is activated, s the scale, r = 1 / sqrt(s^2 var + epsilon) and
        c = x - mean:

            dy = gamma r (dz - mean(dz) - c s^2 r^2 mean(dz c))
            dgamma = s r sum(dz c),   ds = sum(dy x) = epsilon gamma r^3 sum(dz c)

        The norm undoes any scale but for its epsilon. Summed up number by number, ds would be what
        rounding leaves of a difference.
        """
        shape = x.shape
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
        first, second = jnp.sum(dz, axes), jnp.sum(dz * centred, axes)

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
            slopes,
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
        """`[channels]` or `[groups, channels]`, to go with a grouped array."""
        groups = values.shape[0] if values.ndim == 2 else 1
        values = values.astype(like.dtype)
        return values.reshape(groups, *(1,) * (like.ndim - 2), like.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def batch_norm(norm: Norm, y: Array, affine: Affine, near: Array) -> tuple[Array, Moments]:
    """Normalize `[batch, ..., channels]` by its own statistics; see the head of this file.

    Args:
      norm: what is fixed.
      y: floating.
      affine: parameters and shortcut.
      near: `[channels]`, an estimate of the mean, such as the running one; it decides rounding
        alone.

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
    """What is multiplied, and the learned scales `[features]`, None for 1."""

    x: Array
    kernel: Array
    alpha: Array | None


@dataclass(frozen=True)
class Sums:
    """A product whose sums are kept from one direction to the other.

    Attributes:
      multiply: the product, such as a convolution, of two arrays of one dtype.
      kept: dtype that holds the sums exactly, such as int16; or where there is none, the one to
        round them to.
    """

    multiply: Callable[..., Array]
    kept: DTypeLike

    def forward(self, operands: Operands) -> Array:
        """The sums, taken in float32, or in float64 if the operands are."""
        x, kernel, _ = operands
        return self.multiply(x, kernel, preferred_element_type=wide(x.dtype)).astype(self.kept)

    def gradients(self, dy: Array, dalpha: Array | None, operands: Operands) -> Operands:
        """From the cotangents of the scaled sums and of alpha to those of all operands.

        The product's cotangent has the operands' dtype: JAX cannot differentiate a convolution
        whose result is wider than its operands.
        """
        x, kernel, alpha = operands
        if alpha is not None:
            assert dalpha is not None
            dy, dalpha = dy * _last(alpha, dy), dalpha.astype(alpha.dtype)
        _, pullback = jax.vjp(self.multiply, x, kernel)
        dx, dkernel = pullback(dy.astype(x.dtype))
        return Operands(dx, dkernel, None if alpha is None else dalpha)


def _last(values: Array, like: Array) -> Array:
    return lax.expand_dims(values.astype(like.dtype), range(like.ndim - 1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_product(sums: Sums, operands: Operands) -> Array:
    """multiply(x, kernel) * alpha, in the dtype of x."""
    return _scaled_product_fwd(sums, operands)[0]


def _scaled_product_fwd(sums: Sums, operands: Operands) -> tuple[Array, Any]:
    kept = sums.forward(operands)
    x, _, alpha = operands
    y = kept.astype(wide(x.dtype))
    if alpha is not None:
        y = y * _last(alpha, y)
    return y.astype(x.dtype), (operands, None if alpha is None else kept)


def _scaled_product_bwd(sums: Sums, residuals: Any, g: Array) -> tuple[Operands]:
    operands, kept = residuals
    g = g.astype(wide(g.dtype))
    dalpha = None if kept is None else jnp.sum(g * kept.astype(g.dtype), range(g.ndim - 1))
    return (sums.gradients(g, dalpha, operands),)


scaled_product.defvjp(_scaled_product_fwd, _scaled_product_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product_norm(
    sums: Sums, norm: Norm, operands: Operands, affine: Affine, near: Array
) -> tuple[Array, Moments]:
    """`batch_norm` of `scaled_product`, with only the sums kept between them."""
    return _product_norm_fwd(sums, norm, operands, affine, near)[0]


def _product_norm_fwd(
    sums: Sums, norm: Norm, operands: Operands, affine: Affine, near: Array
) -> tuple[Any, Any]:
    kept = sums.forward(operands)
    alpha = operands.alpha
    moments = norm.moments(kept, alpha, near)
    out = norm.apply(kept, alpha, moments, affine)
    of_y = moments
    if alpha is not None:
        alpha = alpha.astype(moments.mean.dtype)[None]
        of_y = Moments(moments.mean * alpha, moments.var * jnp.square(alpha))
    return (out, of_y), (operands, affine, near, moments, kept)


def _product_norm_bwd(sums: Sums, norm: Norm, residuals: Any, g: tuple[Array, Moments]) -> tuple:
    operands, affine, near, moments, kept = residuals
    gradients = norm.gradients(g[0], kept, operands.alpha, moments, affine)
    cotangents = sums.gradients(gradients.y, gradients.scale, operands)
    return cotangents, gradients.affine, jnp.zeros_like(near)


product_norm.defvjp(_product_norm_fwd, _product_norm_bwd)
