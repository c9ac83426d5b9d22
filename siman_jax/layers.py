"""Flax layers of binary networks: thin modules over `rules`.

Parameters are float32; `dtype` is what a layer computes in. A binary layer owns the leaf
`binary_kernel`, and `alpha` and `theta` where its weight rule learns them: names that occur nowhere
else, so that the optimiser can tell them apart. With the weight rule "real" the same layer is an
ordinary one and owns `kernel`.

Two collections beside the parameters serve some rules: `rotations`, a pair of matrices per layer,
and `schedule`, scalars that all layers share, which a training step hands to `apply` at the top
level, such as `{"schedule": {"sharpness": 0.1}}`. Without it, as in evaluation, gradients would be
those of the end of training; outputs do not depend on it.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array, lax
from jax.typing import DTypeLike

from siman_jax.binarize import REAL, wide
from siman_jax.errors import choose
from siman_jax.rotation import matrix_shape
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

BINARY_KERNEL = "binary_kernel"
BITS = "bits"
ROTATIONS = "rotations"
SCHEDULE = "schedule"

Initializer = Callable[..., Array]
Path = tuple[str, ...]

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Uniform in +-1/sqrt(fan_in), which is how PyTorch draws a layer's weight by default.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with one learned slope per channel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        slope = self.param("slope", nn.initializers.constant(0.25, jnp.float32), x.shape[-1:])
        return jnp.where(x > 0, x, per_channel(slope, x) * x)


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
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalize `[..., channels]`, by the batch's statistics if `train`, else the running."""
        features = (x.shape[-1], jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.scale_init), *features)
        bias = self.param("bias", nn.initializers.zeros, *features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *features)
        running_var = self.variable("batch_stats", "var", jnp.ones, *features)
        shape = x.shape
        x = x.astype(wide(x.dtype))
        if train:
            x = x.reshape(self.groups, shape[0] // self.groups, *shape[1:])
            axes = range(1, x.ndim - 1)
            n = math.prod(x.shape[1:-1])
            mean = jnp.mean(x, axes, keepdims=True)
            centred = x - mean
            var = jnp.mean(jnp.square(centred), axes, keepdims=True)
            if not self.is_initializing():
                self._update(running_mean, mean)
                self._update(running_var, var * (n / max(n - 1, 1)))
        else:
            centred = x - per_channel(running_mean.value, x)
            var = per_channel(running_var.value, x)
        gain = per_channel(scale, x) * lax.rsqrt(var + self.epsilon)
        y = (centred * gain + per_channel(bias, x)).astype(self.dtype)
        return y.reshape(shape)

    def _update(self, running: nn.Variable, batch: Array) -> None:
        new = jnp.mean(batch, range(batch.ndim - 1)).astype(running.value.dtype)
        running.value = self.momentum * running.value + (1 - self.momentum) * new


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

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        return _binary_product(self, convolution(self.kernel_size, self.strides), x, shape)


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
        return _binary_product(self, product, x, (x.shape[-1], self.features))


def _binary_product(
    layer: BinaryConv | BinaryDense, product: Callable[..., Array], x: Array, shape: tuple[int, ...]
) -> Array:
    """What binary layers share: their leaves, the two rules, the product and its scale."""
    weight_rule = choose(WEIGHT_RULES, layer.weight_rule, "weight rule")
    activations = binary_activations(layer, x)
    if layer.weight_rule == REAL:
        kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
        return product(activations, kernel.astype(layer.dtype))

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
        y = _scale_afterwards(product)(activations, kernel)
    else:
        code = weight_rule(latent, given) if sign is None else sign
        y = _accumulate_wide(product)(activations, code.astype(layer.dtype))
    if alpha is not None:
        y = y * per_channel(alpha, y)
    return y.astype(layer.dtype)


def binary_activations(layer: BinaryConv | BinaryDense, x: Array) -> Array:
    """What `layer` makes of its input, by its activation rule: the same shape, its dtype."""
    rule = choose(ACTIVATION_RULES, layer.activation_rule, "activation rule")
    # A sample's mean decides its bits, so it is taken in more than bfloat16.
    return rule(x.astype(wide(layer.dtype)), _schedule(layer)).astype(layer.dtype)


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


def _accumulate_wide(product: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    """Sum a product of bfloat16 operands in float32 on the way forward.

    The derivative takes its cotangent in the operands' dtype: JAX cannot differentiate a
    convolution whose output is wider than its operands.
    """

    @jax.custom_vjp
    def forward(x: Array, kernel: Array) -> Array:
        return product(x, kernel, preferred_element_type=wide(x.dtype))

    def forward_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return forward(x, kernel), (x, kernel)

    def forward_bwd(operands: tuple[Array, Array], g: Array) -> tuple[Array, ...]:
        _, pullback = jax.vjp(product, *operands)
        return pullback(g.astype(operands[0].dtype))

    forward.defvjp(forward_fwd, forward_bwd)
    return forward


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
