"""Flax layers with binary weights and activations: thin modules over `rules`.

Parameters are float32; `dtype` is what a layer computes in. A binary layer owns the leaf
`binary_kernel`, and `alpha` and `theta` if its weight rule learns them. No other layer has leaves
of these names, so the optimizer recognizes them by name. With the weight rule "real" the same
layer is an ordinary one and owns `kernel`.

Some rules need two further collections. `rotations` holds a pair of matrices per layer.
`schedule` holds scalars that all layers share; a training step passes it to `apply` at the
top level, such as `{"schedule": {"sharpness": 0.1}}`. Without it, as in evaluation, gradients are
those of the end of training; outputs do not depend on it.

On a CPU, float32 layers train by the library in C++, `siman_jax.native`: sums of bits are the same
as by XLA, and gradients differ only by rounding.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from numbers import Integral

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.errors import UsageError, choose
from siman_jax.models.batch_norm import KeptSums
from siman_jax.models.initializers import (
    Initializer,
    kaiming_normal,
    mean_magnitude_of_uniform,
)
from siman_jax.models.leaves import BINARY_KERNEL, BITS, CHOSEN, ROTATIONS, SCHEDULE
from siman_jax.models.product import Product, absent, computed, convolution, same_padding
from siman_jax.native import convolution as native_convolution
from siman_jax.native.dispatch import available, native
from siman_jax.rules import (
    ACTIVATION_RULES,
    AT_THE_END,
    LEFT,
    REAL,
    RIGHT,
    THETA,
    WEIGHT_RULES,
    ActivationRule,
    WeightRule,
    identity,
)
from siman_jax.rules.marks import BINARY_CONV, BINARY_DENSE, is_marking, mark
from siman_jax.rules.precision import wide
from siman_jax.rules.rbnn import matrix_shape


class BinaryConv(nn.Module):
    """Convolution of binarized activations with a binarized kernel, times alpha.

        y = conv(activation_rule(x), weight_rule(w)) * alpha

    There is no bias, and no alpha if the weight rule learns none. Zeros are padded after the
    activations are binarized, so padding contributes 0.

    In evaluation the bits are computed from the kernel, unless the variables hold them: a leaf
    `binary_kernel` in {0, 1} in the collection `bits` replaces the signs of the kernel.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      strides: step of the convolution, in both directions.
      weight_rule: key of `rules.WEIGHT_RULES`; "real" makes an ordinary convolution, with
        the leaf `kernel` and no alpha.
      activation_rule: key of `rules.ACTIVATION_RULES`.
      kernel_init: initial values of the kernel.
      dtype: dtype of the operands and of the output. Products of +-1 are summed in float32
        (float64 if that is `dtype`), so their sums are exact in every dtype.

    Source: arXiv 2102.07981.

    >>> layer, images = BinaryConv(features=8, strides=2), jnp.ones((1, 6, 6, 3))
    >>> variables = layer.init(jax.random.key(0), images)
    >>> variables["params"]["binary_kernel"].shape, layer.apply(variables, images).shape
    ((3, 3, 3, 8), (1, 3, 3, 8))
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
    def product(self, x: Array) -> Array | Product:
        """Do the same, but delay the product, so that a `BatchNorm` computes it with its own."""
        _check_sizes(self)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        # Padding keeps an image's size, so only strides change it.
        sizes = (-(-size // self.strides) for size in x.shape[1:3])
        result = (x.shape[0], *sizes, self.features)
        return _binary_product(self, convolution(self.kernel_size, self.strides), x, shape, result)


class BinaryDense(nn.Module):
    """Product of binarized activations with a binarized matrix, times alpha.

        y = activation_rule(x) @ weight_rule(w) * alpha

    The attributes are those of `BinaryConv`.

    >>> layer = BinaryDense(features=8, weight_rule="bnn", activation_rule="ste_sign")
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
    (2, 8)
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


def _check_sizes(layer: BinaryConv) -> None:
    """Check that the sizes of a convolution are single numbers; Flax's own layers take tuples.

    Raises:
      UsageError: they are not.
    """
    for name in ("features", "kernel_size", "strides"):
        value = getattr(layer, name)
        if not (isinstance(value, Integral) and int(value) > 0):
            raise UsageError(
                f"{name} of a BinaryConv is {value!r}; expected a single whole number above 0,"
                " such as 3."
            )


def _binary_product(
    layer: BinaryConv | BinaryDense,
    product: Callable[..., Array],
    x: Array,
    shape: tuple[int, ...],
    result: tuple[int, ...],
) -> Array | Product:
    """Create a binary layer's leaves, apply its two rules, and describe their product."""
    weight_rule = choose(WEIGHT_RULES, layer.weight_rule, "weight rule")
    if layer.weight_rule == REAL:
        kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
        return product(binary_activations(layer, x), kernel.astype(layer.dtype))

    latent = layer.param(BINARY_KERNEL, layer.kernel_init, shape, jnp.float32)
    alpha = _alpha(layer, weight_rule, shape)
    given = {**_schedule(layer), **_inputs(layer, weight_rule, shape)}
    # A trace with marks is of activations by XLA; kernels may be computed in any way.
    kernels = native(True) if is_marking() else nullcontext()
    sign = None
    if layer.has_variable(BITS, BINARY_KERNEL):
        bits: Array = layer.get_variable(BITS, BINARY_KERNEL)
        sign = 2 * bits.astype(layer.dtype) - 1
    if weight_rule.scaled:
        with kernels:
            kernel = weight_rule(latent, given)
        if sign is not None:
            kernel = jnp.abs(kernel) * sign.astype(kernel.dtype)
    elif sign is not None:
        kernel = sign.astype(layer.dtype)
    else:
        if layer.has_variable(CHOSEN, BINARY_KERNEL):
            given["bits"] = layer.get_variable(CHOSEN, BINARY_KERNEL)
        with kernels:
            kernel = weight_rule(latent, given).astype(layer.dtype)

    binarize = _binarize(layer)
    geometry = native_geometry(layer, x, kernel)
    if geometry is not None and _activation_rule(layer).estimator is None:
        x, binarize = binarize(x), identity

    delayed = Product(
        x,
        kernel,
        absent() if alpha is None else alpha,
        weight_rule.scaled,
        result,
        binarize,
        _kept_sums(layer, product, shape),
        geometry,
    )
    return _marked(layer, delayed) if is_marking() else delayed


def _marked(layer: BinaryConv | BinaryDense, product: Product) -> Array:
    """Compute a product by XLA, with the marks of its activations and of itself."""
    x = product.binarize(product.x)
    after = replace(product, binarize=identity, geometry=None)
    name, settings = BINARY_DENSE, {}
    if isinstance(layer, BinaryConv):
        padding = same_padding(layer.kernel_size)
        name, settings = BINARY_CONV, {"strides": layer.strides, "padding": padding}
    operands = (x, product.kernel, product.alpha)
    return mark(name, after.compute, *operands, scaled=product.scaled, **settings)


def _kept_sums(
    layer: BinaryConv | BinaryDense, product: Callable[..., Array], shape: tuple[int, ...]
) -> KeptSums:
    """Choose the smallest integers that hold the sums of a product with a kernel of `shape`.

    Padding leaves out all channels of a pixel. So if their number is even, every sum has an even
    number of terms of +-1, and is even itself.
    """
    terms, unit = math.prod(shape[:-1]), 1 if shape[-2] % 2 else 2
    for kept in (jnp.int8, jnp.int16):
        if layer.activation_rule != REAL and terms // unit <= jnp.iinfo(kept).max:
            return KeptSums(product, kept, unit)
    return KeptSums(product, layer.dtype)


def native_geometry(
    layer: BinaryConv | BinaryDense, x: Array, kernel: Array
) -> native_convolution.Geometry | None:
    """Describe a layer's convolution to the native library; None if XLA has to compute it."""
    if not isinstance(layer, BinaryConv) or layer.activation_rule == REAL:
        return None
    if not available(x, kernel) or not native_convolution.fits(x, kernel.shape):
        return None
    rule = _activation_rule(layer)
    estimator, centred = native_convolution.ONE, False  # for activations binarized before
    if rule.estimator is not None:
        estimator, centred = rule.estimator, rule.centred
    return native_convolution.Geometry(
        layer.strides, same_padding(layer.kernel_size), estimator, centred
    )


def binary_activations(layer: BinaryConv | BinaryDense, x: Array) -> Array:
    """Apply the activation rule of `layer` to its input: same shape, the layer's dtype."""
    return _binarize(layer)(x)


def _activation_rule(layer: BinaryConv | BinaryDense) -> ActivationRule:
    return choose(ACTIVATION_RULES, layer.activation_rule, "activation rule")


def _binarize(layer: BinaryConv | BinaryDense) -> Callable[[Array], Array]:
    rule, given = _activation_rule(layer), _schedule(layer)

    def binarize(x: Array) -> Array:
        # A sample's mean decides its bits, so it needs more precision than bfloat16.
        if not (rule.widens and x.dtype == layer.dtype):
            x = x.astype(wide(layer.dtype))
        return rule(x, given).astype(layer.dtype)

    return binarize


def _schedule(layer: nn.Module) -> dict[str, Array | float]:
    """Return the scheduled scalars given to `apply` at the top level, or those of the end."""
    root = layer.scope.root if layer.scope else None
    if root is None:
        return dict(AT_THE_END)
    return {name: root.get_variable(SCHEDULE, name, value) for name, value in AT_THE_END.items()}


def _alpha(layer: nn.Module, rule: WeightRule, shape: tuple[int, ...]) -> Array | None:
    if rule.alpha is None:
        return None
    init = {
        "mean magnitude": mean_magnitude_of_uniform(shape),
        "uniform": nn.initializers.uniform(1.0),
    }[rule.alpha]
    return layer.param("alpha", init, shape[-1:])


def _inputs(layer: nn.Module, rule: WeightRule, shape: tuple[int, ...]) -> dict[str, Array]:
    """Create the leaves that a rule takes in addition to the latent kernel."""
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
