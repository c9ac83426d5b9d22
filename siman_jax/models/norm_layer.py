"""The Flax layer for batch norm, computed together with what is around it."""

import math
from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.models.activations import PReLU, RPReLU
from siman_jax.models.batch_norm import (
    HARD_TANH,
    IDENTITY,
    PRELU,
    RELU,
    Affine,
    Moments,
    Norm,
    batch_norm,
    per_channel,
    product_norm,
)
from siman_jax.models.pooled_norm import Pool, pooled_batch_norm
from siman_jax.models.product import Product, absent, computed
from siman_jax.native import chain as native_chain
from siman_jax.native import convolution as native_convolution
from siman_jax.native import norm as native_norm
from siman_jax.native.dispatch import available, by_platform
from siman_jax.native.pooling import max_pool
from siman_jax.rules import identity
from siman_jax.rules.precision import wide

Activation = Callable[[Array], Array]


class BatchNorm(nn.Module):
    """Batch normalization whose running variance is unbiased.

    Flax's own keeps the biased variance (divided by n, not n - 1), and by default forgets ten
    times more slowly. This layer follows PyTorch in both, as the published networks do.
    Statistics are taken in float32 over all axes but the last.

    Attributes:
      dtype: dtype of the output.
      scale_init: initial value of gamma.
      groups: how many parts of adjacent examples the batch is split into, each normalized by its
        own statistics, as devices do that do not synchronize; the running statistics take the mean
        over the parts.
      momentum: share of the running statistics that each step keeps.
      epsilon: added to the variance.

    >>> import jax
    >>> layer, x = BatchNorm(), jnp.float32([[1, 2], [3, 6]])
    >>> variables = layer.init(jax.random.key(0), x, train=True)
    >>> y, updates = layer.apply(variables, x, train=True, mutable="batch_stats")
    >>> y.round(2).tolist(), sorted(updates["batch_stats"])
    ([[-1.0, -1.0], [1.0, 1.0]], ['mean', 'var'])
    """

    dtype: DTypeLike = jnp.float32
    scale_init: float = 1.0
    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Array | Product,
        train: bool,
        shortcut: Array | None = None,
        activation: Activation = identity,
        pool: Pool | None = None,
    ) -> Array:
        """Compute activation(norm(x) + shortcut), and pool it if `pool` is given.

        Args:
          x: `[..., channels]`, or a product of such a shape that has not been computed yet.
          train: normalize by the batch's statistics, otherwise by the running ones.
          shortcut: shape of `x`; None for none.
          activation: a function, or a module such as `PReLU`.
          pool: windows of a max pooling of the result; only for images.
        """
        features = (x.shape[-1], jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.scale_init), *features)
        bias = self.param("bias", nn.initializers.zeros, *features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *features)
        running_var = self.variable("batch_stats", "var", jnp.ones, *features)
        if train:
            near = running_mean.value
            y, mean, var = self._by_batch(x, scale, bias, near, shortcut, activation, pool)
            if not self.is_initializing():
                n = math.prod(x.shape[:-1]) // self.groups
                self._update(running_mean, mean)
                self._update(running_var, var * (n / max(n - 1, 1)))
            return y
        x = computed(x)
        x = x.astype(wide(x.dtype))
        mean, var = (per_channel(v.value, x) for v in (running_mean, running_var))
        gain = per_channel(scale, x) * lax.rsqrt(var + self.epsilon)
        y = ((x - mean) * gain + per_channel(bias, x)).astype(self.dtype)
        return finish(y, shortcut, activation, pool)

    def _by_batch(
        self,
        x: Array | Product,
        scale: Array,
        bias: Array,
        near: Array,
        shortcut: Array | None,
        activation: Activation,
        pool: Pool | None,
    ) -> tuple[Array, Array, Array]:
        """Return the result, and mean and variance of each group: `[..., channels]`."""
        inner, outer = _parts(activation)
        if isinstance(activation, RPReLU):  # its first shift is one of beta
            bias = bias + activation.before.shifts(x.shape[-1])
        slopes = inner.slopes(x.shape[-1]) if isinstance(inner, PReLU) else None
        kind = PRELU if isinstance(inner, PReLU) else _KNOWN_ACTIVATIONS[inner]
        norm = Norm(self.epsilon, self.groups, kind, self.dtype)
        if isinstance(x, Product) and x.scaled and not x.geometry:
            x = computed(x)
        operand = x.x if isinstance(x, Product) else x
        native = self.groups == 1 and jnp.dtype(self.dtype) == jnp.float32
        # The library does not broadcast, and cannot take a mean of no pixels.
        native &= (shortcut is None or shortcut.shape == x.shape) and min(x.shape) > 0
        native = native and available(scale, shortcut, operand)
        alone = shortcut is None and kind != PRELU and outer is identity
        if pool is not None and alone and not isinstance(x, Product):
            return self._with_pool(x, norm, pool, scale, bias, near, native)
        if native:
            y, mean, var = self._natively(x, norm, scale, bias, near, slopes, shortcut)
        else:
            affine = Affine(scale, bias, slopes, shortcut)
            y, (mean, var) = _normalized(x, norm, affine, near)
        return finish(y, None, outer, pool), mean, var

    def _with_pool(
        self,
        x: Array,
        norm: Norm,
        pool: Pool,
        scale: Array,
        bias: Array,
        near: Array,
        native: bool,
    ) -> tuple[Array, Array, Array]:
        """Normalize and pool: natively one after the other, elsewhere as one operation."""

        def one_by_one(
            x: Array, scale: Array, bias: Array, near: Array
        ) -> tuple[Array, Array, Array]:
            with native_chain.chained():  # what comes next is not joined to this norm
                y, mean, var = self._natively(x, norm, scale, bias, near, None, None)
            return finish(y, None, identity, pool), mean[None], var[None]

        def joined(x: Array, scale: Array, bias: Array, near: Array) -> tuple[Array, Array, Array]:
            affine = Affine(scale, bias, None, None)
            y, moments = pooled_batch_norm(norm, pool, x, affine, near)
            return y, *moments

        function = by_platform(one_by_one, joined) if native else joined
        return function(x, scale, bias, near)

    def _natively(
        self,
        x: Array | Product,
        norm: Norm,
        scale: Array,
        bias: Array,
        near: Array,
        slopes: Array | None,
        shortcut: Array | None,
    ) -> tuple[Array, Array, Array]:
        """Compute the same by the native library on a CPU, and by XLA on other devices."""
        product = x if isinstance(x, Product) and x.geometry else None
        is_input = product is not None and shortcut is product.x
        # Only then the convolution is all that uses the result of the norm before.
        before = native_chain.source_of(product.x) if product and is_input else None

        def plain(*arrays: Array) -> tuple[Array, Array, Array]:
            *operands, scale, bias, slopes, shortcut, near = arrays
            y: Array | Product = operands[0]
            if product is not None:
                y = replace(product, x=operands[0], kernel=operands[1], alpha=operands[2])
                if product.scaled:
                    y = y.compute(*operands)
                if is_input:
                    shortcut = operands[0]
            affine = Affine(
                scale, bias, slopes if slopes.size else None, shortcut if shortcut.size else None
            )
            y, (mean, var) = _normalized(y, norm, affine, near)
            return y, mean.ravel(), var.ravel()

        kind = _NATIVE_ACTIVATIONS[norm.activation]
        rest = (
            scale,
            bias,
            absent() if slopes is None else slopes,
            absent() if shortcut is None or is_input else shortcut,
            near,
        )
        if product is None:
            y = computed(x)
            function = native_norm.batch_norm(plain, self.epsilon, kind)
            out, mean, var, rows, sums = function(y, *rest)
            inputs, added = native_norm.as_samples(y), native_norm.as_samples(rest[3])
        else:
            assert product.geometry is not None
            function = native_convolution.conv_norm(
                plain,
                product.geometry,
                product.scaled,
                self.epsilon,
                kind,
                is_input,
                before.activation if before else None,
            )
            operands = (product.kernel, product.alpha, *rest)
            if before:
                results = function(before.out, *operands, *before.arrays)
            else:
                results = function(product.x, *operands)
            out, mean, var, rows, sums, inputs, added = results
        source = native_chain.Source(out, sums, inputs, added, rows, kind)
        return native_chain.opened(source), mean, var

    def _update(self, running: nn.Variable, batch: Array) -> None:
        new = jnp.mean(batch, range(batch.ndim - 1)).astype(running.value.dtype)
        running.value = self.momentum * running.value + (1 - self.momentum) * new


def _normalized(
    x: Array | Product, norm: Norm, affine: Affine, near: Array
) -> tuple[Array, Moments]:
    """Normalize by XLA."""
    if isinstance(x, Product):
        return product_norm(x.sums, norm, x.operands, affine, near)
    return batch_norm(norm, x, affine, near)


def _parts(activation: Activation) -> tuple[Activation, Activation]:
    """Return what is computed in one operation with the batch norm, and what is applied after it.

    The first shift of an `RPReLU` is in neither.
    """
    if isinstance(activation, RPReLU):
        return activation.prelu, activation.after
    if isinstance(activation, PReLU):
        return activation, identity
    # A module with variables has no hash.
    if not isinstance(activation, nn.Module) and activation in _KNOWN_ACTIVATIONS:
        return activation, identity
    return identity, activation


# Activations, in addition to `PReLU`, that are computed in one operation with the batch norm.
_KNOWN_ACTIVATIONS: dict[Activation, str] = {
    identity: IDENTITY,
    nn.relu: RELU,
    nn.hard_tanh: HARD_TANH,
}
_NATIVE_ACTIVATIONS = {
    IDENTITY: native_norm.NONE,
    PRELU: native_norm.PRELU,
    RELU: native_norm.PRELU,  # with slopes of 0
    HARD_TANH: native_norm.HARD_TANH,
}


def finish(
    y: Array, shortcut: Array | None, activation: Activation, pool: Pool | None = None
) -> Array:
    """Compute activation(y + shortcut), or activation(y) without a shortcut, and maybe pool it."""
    y = activation(y if shortcut is None else y + shortcut)
    return y if pool is None else max_pool(y, pool.window_shape, pool.strides, pool.padding)
