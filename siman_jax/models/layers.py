"""Flax layers of binary networks: thin modules over `rules`.

Parameters are float32; `dtype` is what a layer computes in. A binary layer owns the leaf
`binary_kernel`, and `alpha` and `theta` where its weight rule learns them: names that occur nowhere
else, so that the optimiser can tell them apart. With the weight rule "real" the same layer is an
ordinary one and owns `kernel`.

Two collections beside the parameters serve some rules: `rotations`, a pair of matrices per layer,
and `schedule`, scalars that all layers share, which a training step hands to `apply` at the top
level, such as `{"schedule": {"sharpness": 0.1}}`. Without it, as in evaluation, gradients would be
those of the end of training; outputs do not depend on it.

On a CPU, float32 layers train by the library in C++, `siman_jax.native`: the same sums of bits, and
gradients that differ by rounding.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.errors import choose
from siman_jax.models.batch_norm import (
    HARD_TANH,
    IDENTITY,
    PRELU,
    RELU,
    Affine,
    Moments,
    Norm,
    Operands,
    Sums,
    batch_norm,
    product_norm,
    scaled_product,
)
from siman_jax.native import convolution as native_convolution
from siman_jax.native import norm as native_norm
from siman_jax.native.dispatch import available
from siman_jax.rules import (
    ACTIVATION_RULES,
    AT_THE_END,
    LEFT,
    RIGHT,
    THETA,
    WEIGHT_RULES,
    WeightRule,
    filter_scales,
)
from siman_jax.rules.rbnn import matrix_shape
from siman_jax.rules.siman import REAL, identity, wide

BINARY_KERNEL = "binary_kernel"
# Of the parameters of all networks here.
LEAF_NAMES = (BINARY_KERNEL, "alpha", THETA, "kernel", "bias", "scale", "slope")
BITS = "bits"
# Bits that a layer's rule would choose of itself, where a training step has chosen those of all
# layers together.
CHOSEN = "chosen"
ROTATIONS = "rotations"
SCHEDULE = "schedule"

Initializer = Callable[..., Array]
Path = tuple[str, ...]
Activation = Callable[[Array], Array]

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Uniform in +-1/sqrt(fan_in), which is how PyTorch draws a layer's weight by default.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with one learned slope per channel."""

    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        return _prelu(x, self.slopes(x.shape[-1]))

    @nn.compact
    def slopes(self, channels: int) -> Array:
        """The learned slopes, float32 `[channels]`."""
        return self.param("slope", nn.initializers.constant(0.25, jnp.float32), (channels,))


def _prelu(x: Array, slopes: Array) -> Array:
    return jnp.where(x > 0, x, per_channel(slopes, x) * x)


class BatchNorm(nn.Module):
    """Batch normalization whose running variance is unbiased.

    Flax's own keeps the biased variance (divided by n, not n - 1) and forgets ten times slower
    by default; networks here follow PyTorch in both, as the published ones do. Statistics are
    taken in float32 over all axes but the last.

    Attributes:
      dtype: dtype of the output.
      scale_init: initial value of gamma.
      groups: how many parts of the batch, examples next to each other, are normalized each by
        its own statistics, as devices do that do not synchronise; the running ones take the
        mean of the parts'.
    """

    dtype: DTypeLike = jnp.float32
    scale_init: float = 1.0
    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: "Array | Product",
        train: bool,
        shortcut: Array | None = None,
        activation: Activation = identity,
    ) -> Array:
        """Give activation(norm(x) + shortcut).

        Args:
          x: `[..., channels]`, or the product of such a shape that is yet to be computed.
          train: normalize by the batch's statistics, otherwise by the running ones.
          shortcut: shape of `x`; None for none.
          activation: a function, or a module such as `PReLU`.
        """
        features = (x.shape[-1], jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.scale_init), *features)
        bias = self.param("bias", nn.initializers.zeros, *features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *features)
        running_var = self.variable("batch_stats", "var", jnp.ones, *features)
        if train:
            near = running_mean.value
            y, mean, var = self._by_batch(x, scale, bias, near, shortcut, activation)
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
        return finish(y, shortcut, activation)

    def _by_batch(
        self,
        x: "Array | Product",
        scale: Array,
        bias: Array,
        near: Array,
        shortcut: Array | None,
        activation: Activation,
    ) -> tuple[Array, Array, Array]:
        """The result, and mean and variance of each group: `[..., channels]`."""
        # What the operation does not know comes behind it.
        known = isinstance(activation, PReLU) or activation in _KNOWN_ACTIVATIONS
        inner, outer = (activation, identity) if known else (identity, activation)
        slopes = inner.slopes(x.shape[-1]) if isinstance(inner, PReLU) else None
        kind = PRELU if isinstance(inner, PReLU) else _KNOWN_ACTIVATIONS[inner]
        norm = Norm(self.epsilon, self.groups, kind, self.dtype)
        if isinstance(x, Product) and x.scaled and not x.geometry:
            x = computed(x)
        operand = x.x if isinstance(x, Product) else x
        native = self.groups == 1 and jnp.dtype(self.dtype) == jnp.float32
        # The library broadcasts nothing, and has no mean of no pixels.
        native &= (shortcut is None or shortcut.shape == x.shape) and min(x.shape) > 0
        if native and available(scale, shortcut, operand):
            y, mean, var = self._natively(x, norm, scale, bias, near, slopes, shortcut)
        else:
            affine = Affine(scale, bias, slopes, shortcut)
            y, (mean, var) = _normalized(x, norm, affine, near)
        return outer(y), mean, var

    def _natively(
        self,
        x: "Array | Product",
        norm: Norm,
        scale: Array,
        bias: Array,
        near: Array,
        slopes: Array | None,
        shortcut: Array | None,
    ) -> tuple[Array, Array, Array]:
        """The same by the library, where this is for a CPU."""
        product = x if isinstance(x, Product) and x.geometry else None
        if product is None:
            x = computed(x)
        is_input = product is not None and shortcut is product.x

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
            _nothing() if slopes is None else slopes,
            _nothing() if shortcut is None or is_input else shortcut,
            near,
        )
        if product is None:
            return native_norm.batch_norm(plain, self.epsilon, kind)(x, *rest)
        assert product.geometry is not None
        function = native_convolution.conv_norm(
            plain, product.geometry, product.scaled, self.epsilon, kind, is_input
        )
        return function(product.x, product.kernel, product.alpha, *rest)

    def _update(self, running: nn.Variable, batch: Array) -> None:
        new = jnp.mean(batch, range(batch.ndim - 1)).astype(running.value.dtype)
        running.value = self.momentum * running.value + (1 - self.momentum) * new


def _normalized(
    x: "Array | Product", norm: Norm, affine: Affine, near: Array
) -> tuple[Array, Moments]:
    """By XLA."""
    if isinstance(x, Product):
        return product_norm(x.sums, norm, x.operands, affine, near)
    return batch_norm(norm, x, affine, near)


# Activations that are one operation with the batch norm before them, beside `PReLU`.
_KNOWN_ACTIVATIONS: dict[Activation, str] = {
    identity: IDENTITY,
    nn.relu: RELU,
    nn.hard_tanh: HARD_TANH,
}
_NATIVE_ACTIVATIONS = {
    IDENTITY: native_norm.NONE,
    PRELU: native_norm.PRELU,
    RELU: native_norm.PRELU,  # of slopes 0
    HARD_TANH: native_norm.HARD_TANH,
}


def _nothing() -> Array:
    """What stands for an array that is not there, where a function takes arrays alone."""
    return jnp.zeros(0, jnp.float32)


def finish(y: Array, shortcut: Array | None, activation: Activation) -> Array:
    """activation(y + shortcut), or of y alone."""
    return activation(y if shortcut is None else y + shortcut)


class BinaryConv(nn.Module):
    """Convolution of binarized activations with a binarized kernel, times alpha.

        y = conv(activation_rule(x), weight_rule(w)) * alpha

    without bias, and without alpha where the weight rule learns none; padding is with zeros, after
    the activations are binarized, so a padded tap contributes 0.

    In evaluation the bits are recomputed from the kernel, unless the variables hold them: a
    leaf `binary_kernel` in {0, 1} in the collection `bits` takes the place of the kernel's signs.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      strides: step of the convolution, the same both ways.
      weight_rule: key of `rules.WEIGHT_RULES`; "real" makes an ordinary convolution, with
        the leaf `kernel` and no alpha.
      activation_rule: key of `rules.ACTIVATION_RULES`.
      dtype: dtype of the operands and of the output; products of +-1 are summed in float32
        (float64 if that is `dtype`), so their sums are exact in every dtype.

    Source: arXiv 2102.07981.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    weight_rule: str = "half_half"
    activation_rule: str = "siman"
    kernel_init: Initializer = kaiming_normal
    dtype: DTypeLike = jnp.float32

    def __call__(self, x: Array) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        return computed(self.product(x))

    @nn.compact
    def product(self, x: Array) -> "Array | Product":
        """The same, to be computed with the batch norm behind it, which takes it as its input."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        # Padding leaves an image its size, so only strides change it.
        sizes = (-(-size // self.strides) for size in x.shape[1:3])
        result = (x.shape[0], *sizes, self.features)
        return _binary_product(self, convolution(self.kernel_size, self.strides), x, shape, result)


class BinaryDense(nn.Module):
    """Product of binarized activations with a binarized matrix, times alpha.

        y = activation_rule(x) @ weight_rule(w) * alpha

    The attributes are those of `BinaryConv`.
    """

    features: int
    weight_rule: str = "half_half"
    activation_rule: str = "siman"
    kernel_init: Initializer = kaiming_normal
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[batch, in]` to `[batch, features]`."""
        product = partial(lax.dot_general, dimension_numbers=(((1,), (0,)), ((), ())))
        shape = (x.shape[-1], self.features)
        return computed(_binary_product(self, product, x, shape, (x.shape[0], self.features)))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("x", "kernel", "alpha"),
    meta_fields=("scaled", "shape", "binarize", "sums", "geometry"),
)
@dataclass(frozen=True)
class Product:
    """A product of bits that is yet to be computed, so that what follows can be computed with it.

    It is a pytree of its operands, so that it may leave a network, as an intermediate result.

    Attributes:
      x: what is binarized.
      kernel: what it is multiplied by: +-1, or with a magnitude in each filter.
      alpha: learned scales `[features]`; no elements where there are none.
      scaled: whether the kernel has magnitudes.
      shape: of the result.
      binarize: function from x to what is multiplied, in the layer's dtype.
      sums: the product by XLA, and what is kept of it.
      geometry: what the library takes of the convolution; None where it is not to compute it.
    """

    x: Array
    kernel: Array
    alpha: Array
    scaled: bool
    shape: tuple[int, ...]
    binarize: Callable[[Array], Array]
    sums: Sums
    geometry: native_convolution.Geometry | None

    def value(self) -> Array:
        """Compute the result, `shape`."""
        operands = (self.x, self.kernel, self.alpha)
        if self.geometry is None:
            return self.compute(*operands)
        return native_convolution.conv(self.compute, self.geometry, self.scaled)(*operands)

    def compute(self, x: Array, kernel: Array, alpha: Array) -> Array:
        """Compute the result from operands in the place of its own, by XLA."""
        operands = replace(self, x=x, kernel=kernel, alpha=alpha).operands
        if not self.scaled:
            return scaled_product(self.sums, operands)
        y = _scale_afterwards(self.sums.multiply)(operands.x, kernel)
        if operands.alpha is not None:
            y = y * per_channel(operands.alpha, y)
        return y.astype(operands.x.dtype)

    @property
    def operands(self) -> Operands:
        """What XLA multiplies."""
        return Operands(self.binarize(self.x), self.kernel, self.alpha if self.alpha.size else None)


def computed(x: Array | Product) -> Array:
    """`x` itself, or the result of a product."""
    return x.value() if isinstance(x, Product) else x


# Activation rules that the library knows: what stands for the derivative, and whether activations
# are standardized. Those of other rules it gets binarized.
_NATIVE_RULES = {
    "siman": (native_convolution.APPROX, True),
    "approx_sign": (native_convolution.APPROX, False),
    "ste_sign": (native_convolution.STRAIGHT_THROUGH, False),
}


def _binary_product(
    layer: BinaryConv | BinaryDense,
    product: Callable[..., Array],
    x: Array,
    shape: tuple[int, ...],
    result: tuple[int, ...],
) -> Array | Product:
    """What binary layers share: their leaves, the two rules, the product and its scale."""
    weight_rule = choose(WEIGHT_RULES, layer.weight_rule, "weight rule")
    if layer.weight_rule == REAL:
        kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
        return product(binary_activations(layer, x), kernel.astype(layer.dtype))

    latent = layer.param(BINARY_KERNEL, layer.kernel_init, shape, jnp.float32)
    alpha = _alpha(layer, weight_rule, shape)
    given = {**_schedule(layer), **_inputs(layer, weight_rule, shape)}
    sign = None
    if layer.has_variable(BITS, BINARY_KERNEL):
        bits: Array = layer.get_variable(BITS, BINARY_KERNEL)
        sign = 2 * bits.astype(layer.dtype) - 1
    if weight_rule.scaled:
        kernel = weight_rule(latent, given)
        if sign is not None:
            kernel = jnp.abs(kernel) * sign.astype(kernel.dtype)
    elif sign is not None:
        kernel = sign.astype(layer.dtype)
    else:
        if layer.has_variable(CHOSEN, BINARY_KERNEL):
            given["bits"] = layer.get_variable(CHOSEN, BINARY_KERNEL)
        kernel = weight_rule(latent, given).astype(layer.dtype)

    binarize = _binarize(layer)
    geometry = _native_geometry(layer, x, kernel)
    if geometry is not None and layer.activation_rule not in _NATIVE_RULES:
        x, binarize = binarize(x), identity

    terms = math.prod(shape[:-1])
    whole = layer.activation_rule != REAL and terms <= jnp.iinfo(jnp.int16).max
    return Product(
        x,
        kernel,
        _nothing() if alpha is None else alpha,
        weight_rule.scaled,
        result,
        binarize,
        Sums(product, jnp.int16 if whole else layer.dtype),
        geometry,
    )


def exact_product(
    layer: BinaryConv, product: Callable[[Array, Array], Array], activations: Array, code: Array
) -> Array:
    """Multiply activations of +-1, or real ones, by a kernel of +-1; natively where that can be.

    Args:
      layer: whose convolution it is.
      product: that convolution, by XLA.
      activations: `[batch, height, width, in]`, as the layer's activation rule makes them.
      code: `[height, width, in, features]`.
    """
    geometry = _native_geometry(layer, activations, code)
    if geometry is None:
        return product(activations, code)
    geometry = replace(geometry, estimator=native_convolution.ONE, centred=False)
    function = native_convolution.conv(lambda x, code, _: product(x, code), geometry, scaled=False)
    return function(activations, code, _nothing())


def _native_geometry(
    layer: BinaryConv | BinaryDense, x: Array, kernel: Array
) -> native_convolution.Geometry | None:
    """What the library takes of a layer; None where XLA is to compute it."""
    if not isinstance(layer, BinaryConv) or layer.activation_rule == REAL:
        return None
    if not available(x, kernel) or not native_convolution.fits(x, kernel.shape):
        return None
    rule = _NATIVE_RULES.get(layer.activation_rule, (native_convolution.ONE, False))
    return native_convolution.Geometry(layer.strides, same_padding(layer.kernel_size), *rule)


def binary_activations(layer: BinaryConv | BinaryDense, x: Array) -> Array:
    """What `layer` makes of its input, by its activation rule: the same shape, its dtype."""
    return _binarize(layer)(x)


def _binarize(layer: BinaryConv | BinaryDense) -> Callable[[Array], Array]:
    rule, given = (
        choose(ACTIVATION_RULES, layer.activation_rule, "activation rule"),
        _schedule(layer),
    )
    # A sample's mean decides its bits, so it is taken in more than bfloat16.
    return lambda x: rule(x.astype(wide(layer.dtype)), given).astype(layer.dtype)


def _schedule(layer: nn.Module) -> dict[str, Array | float]:
    """The scheduled scalars that `apply` was given at the top level, or those of the end."""
    root = layer.scope.root if layer.scope else None
    if root is None:
        return dict(AT_THE_END)
    return {name: root.get_variable(SCHEDULE, name, value) for name, value in AT_THE_END.items()}


def _alpha(layer: nn.Module, rule: WeightRule, shape: tuple[int, ...]) -> Array | None:
    if rule.alpha is None:
        return None
    init = {
        "mean magnitude": _mean_magnitude_of_uniform(shape),
        "uniform": nn.initializers.uniform(1.0),
    }[rule.alpha]
    return layer.param("alpha", init, shape[-1:])


def _inputs(layer: nn.Module, rule: WeightRule, shape: tuple[int, ...]) -> dict[str, Array]:
    """The leaves that a rule takes beside the latent kernel."""
    leaves = {}
    if THETA in rule.inputs:
        quarter_turn = nn.initializers.constant(math.pi / 2)
        leaves[THETA] = layer.param(THETA, quarter_turn, shape[-1:], jnp.float32)
    if rule.rotated:
        sizes = matrix_shape(math.prod(shape[:-1]))
        for name, size in zip((LEFT, RIGHT), sizes, strict=True):
            leaves[name] = layer.variable(ROTATIONS, name, _orthogonal, layer, size).value
    return leaves


def _orthogonal(layer: nn.Module, size: int) -> Array:
    return jax.random.orthogonal(layer.make_rng("params"), size, dtype=jnp.float32)


def convolution(kernel_size: int, strides: int) -> Callable[..., Array]:
    """The product of images and an HWIO kernel that leaves images their size at stride 1."""
    return partial(
        lax.conv_general_dilated,
        window_strides=(strides, strides),
        padding=same_padding(kernel_size),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def same_padding(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros before and after, for height and width, that leave an image its size.

    >>> same_padding(3), same_padding(2)
    (((1, 1), (1, 1)), ((0, 1), (0, 1)))
    """
    return (((size - 1) // 2, size // 2),) * 2


def leaves_by_module(*trees: Mapping) -> dict[Path, dict[str, Array]]:
    """Each module's own leaves by their names, those of all collections in `trees` together."""
    modules: dict[Path, dict[str, Array]] = {}
    for tree in trees:
        for path, leaf in flatten_dict(tree).items():
            modules.setdefault(path[:-1], {})[path[-1]] = leaf
    return modules


def per_channel(values: Array, x: Array) -> Array:
    """Shape `[channels]` to multiply or add to `x`, in its dtype."""
    return lax.expand_dims(values.astype(x.dtype), range(x.ndim - 1))


def _mean_magnitude_of_uniform(shape: tuple[int, ...]) -> Initializer:
    """Start alpha where the authors do: at mean |w| of a default draw, per filter.

    About 0.5 / sqrt(fan_in); the draw is alpha's own, the kernel has another.
    """

    def init(key: Array, _: tuple[int, ...]) -> Array:
        return jnp.mean(jnp.abs(fan_in_uniform(key, shape, jnp.float32)), range(len(shape) - 1))

    return init


def _scale_afterwards(product: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    """Take a kernel's one magnitude per filter out of the product, on the way forward.

        forward:   product(x, sign(kernel)) * scale
        backward:  that of product(x, kernel)

    So the sums are whole numbers here too, exact in every dtype and equal to the packed ones.
    """

    @jax.custom_vjp
    def forward(x: Array, kernel: Array) -> Array:
        code = jnp.where(kernel >= 0, 1, -1).astype(x.dtype)
        y = product(x, code, preferred_element_type=wide(x.dtype))
        return y * per_channel(filter_scales(kernel), y)

    def forward_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return forward(x, kernel), (x, kernel)

    def forward_bwd(operands: tuple[Array, Array], g: Array) -> tuple[Array, ...]:
        x, kernel = operands
        _, pullback = jax.vjp(product, x, kernel.astype(x.dtype))
        dx, dkernel = pullback(g.astype(x.dtype))
        return dx, dkernel.astype(kernel.dtype)

    forward.defvjp(forward_fwd, forward_bwd)
    return forward
