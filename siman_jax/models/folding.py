"""A trained network as it stands when training is over: bits chosen, scales and batch norms folded.

    folded = fold(model, variables)
    logits = folded_twin(model).apply(folded, images, train=False)

What a convolution's sums of +-1 are multiplied by, and the batch norm behind it, become one
multiplication and one addition. Evaluation runs this, and packed inference the same with other
convolutions of the same sums: so both round alike, and no bit or prediction differs.

Names tell which batch norm follows a convolution, as in the networks of `models`. A network that is
built otherwise would be folded wrongly, so evaluation and packing compare logits by `same_logits`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from flax.traverse_util import unflatten_dict
from jax import Array

from siman_jax.errors import UsageError
from siman_jax.models.layers import (
    BINARY_KERNEL,
    BITS,
    ROTATIONS,
    Activation,
    BatchNorm,
    BinaryConv,
    Path,
    Product,
    binary_activations,
    computed,
    convolution,
    exact_product,
    finish,
    leaves_by_module,
    per_channel,
)
from siman_jax.rules import AT_THE_END, WEIGHT_RULES, filter_scales
from siman_jax.rules.siman import REAL, identity, wide

COMPARED = 8  # images that show whether another form of a network does the same
# Relative to an image's largest logit; rounding alone makes a tenth of it, or less.
_TOLERANCE = 1e-4


class NotFoldable(UsageError):  # noqa: N818
    """A network is not built so that it can be folded; the message says why."""


@contextmanager
def _foldable() -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    # A field or a leaf that is missing, another shape, an argument that a layer does not take.
    except (AttributeError, KeyError, TypeError, ValueError, FlaxError) as error:
        raise NotFoldable(". ".join(str(error).splitlines())) from error


class FoldedConv(BinaryConv):
    """`BinaryConv` on bits that have been chosen, without its scales.

    The variables hold the bits, bool, as the leaf `binary_kernel` of the collection `bits`. The
    result is the exact sums, in float32 (float64 if that is `dtype`).
    """

    @nn.compact
    def product(self, x: Array) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        bits = self.variable(BITS, BINARY_KERNEL, jnp.zeros, shape, bool).value
        code = jnp.where(bits, 1, -1).astype(self.dtype)
        product = partial(
            convolution(self.kernel_size, self.strides), preferred_element_type=wide(self.dtype)
        )
        activations = binary_activations(self, x)
        return exact_product(self, product, activations, code)


class FoldedNorm(BatchNorm):
    """Batch norm by settled statistics, and the scales of the convolution before it.

    gain * x + offset
    """

    @nn.compact
    def __call__(
        self,
        x: Array | Product,
        train: bool,
        shortcut: Array | None = None,
        activation: Activation = identity,
    ) -> Array:
        """Give activation(gain * x + offset + shortcut), in the layer's dtype.

        Args:
          x: `[..., channels]`, floating or int32.
          train: False.
          shortcut: shape of `x`; None for none.
          activation: a function, or a module such as `PReLU`.
        """
        if train:
            raise ValueError("A folded network has no batch statistics to train with.")
        shape = x.shape[-1:]
        gain = self.param("gain", nn.initializers.ones, shape, jnp.float32)
        offset = self.param("offset", nn.initializers.zeros, shape, jnp.float32)
        x = computed(x).astype(wide(self.dtype))
        y = (x * per_channel(gain, x) + per_channel(offset, x)).astype(self.dtype)
        return finish(y, shortcut, activation)


def folded_twin(model: nn.Module) -> nn.Module:
    """Build the same network of folded layers.

    Args:
      model: a network of `models`.

    Returns:
      A module for the variables of `fold`, to `apply` with `train=False`.
    """
    return model.clone(
        conv=partial(_folded_conv, **model.conv.keywords),
        norm=partial(FoldedNorm, **model.norm.keywords),
    )


def _folded_conv(features: int, *, weight_rule: str, **attributes: Any) -> BinaryConv:
    layer = BinaryConv if weight_rule == REAL else FoldedConv
    return layer(features, weight_rule=weight_rule, **attributes)


@_foldable()
def fold(model: nn.Module, variables: Mapping) -> dict:
    """Fold a trained network's variables.

    The bits are those that `variables` hold in the collection `bits`, otherwise those that the
    network's weight rule gives. The scales of a convolution are the rule's own times the learned
    alpha. Where that is negative, the filter's bits are turned over and the scale made positive,
    so that it can move past a max pool.

    Args:
      model: the network, of `models`.
      variables: `params`, `batch_stats`, `rotations` where the weight rule has them, and perhaps
        `bits`.

    Returns:
      Variables of `folded_twin(model)`: `params`, and `bits` of all binary convolutions.

    Raises:
      NotFoldable: the network is not built like those of `models`, as far as names tell.
    """
    if not (hasattr(model, "conv") and hasattr(model, "norm")):
        raise NotFoldable("it is not built like those of siman_jax.models")
    params = leaves_by_module(variables["params"])
    statistics = leaves_by_module(variables["batch_stats"])
    rotations = leaves_by_module(variables.get(ROTATIONS, {}))
    given = leaves_by_module(variables.get(BITS, {}))
    weight_rule = WEIGHT_RULES[model.conv(features=1).weight_rule]
    epsilon = model.norm().epsilon

    binary = {module: own for module, own in params.items() if BINARY_KERNEL in own}
    kernels = {
        module: weight_rule(own[BINARY_KERNEL], {**AT_THE_END, **own, **rotations.get(module, {})})
        for module, own in binary.items()
    }
    scales = {
        module: filter_scales(kernels[module]) * own.get("alpha", 1)
        for module, own in binary.items()
    }
    taken_over = {_norm_behind(module): scale for module, scale in scales.items()}
    if taken_over.keys() - statistics.keys():
        names = sorted("/".join(path) for path in taken_over.keys() - statistics.keys())
        raise NotFoldable(f"there is no batch norm {', '.join(names)} to take over scales")
    folded: dict[Path, Array] = {}
    for module, own in params.items():
        if module in binary:
            if module in given:
                bits = jnp.asarray(given[module][BINARY_KERNEL]).astype(bool)
            else:
                bits = kernels[module] > 0
            folded[BITS, *module, BINARY_KERNEL] = bits ^ (scales[module] < 0)[None, None, None]
        else:
            leaves = own
            if module in statistics:
                leaves = _fold_norm({**own, **statistics[module]}, taken_over.get(module), epsilon)
            for name, leaf in leaves.items():
                folded["params", *module, name] = jnp.asarray(leaf)
    return unflatten_dict(folded)


def _norm_behind(convolution: Path) -> Path:
    """The batch norm that follows a convolution: in every network here, `bn1` follows `conv1`."""
    return (*convolution[:-1], convolution[-1].replace("conv", "bn"))


def _fold_norm(norm: Mapping[str, Array], scale: Array | None, epsilon: float) -> dict[str, Array]:
    """Gain and offset that make one step of two.

    gain * x + offset = norm's scale * (|scale| x - mean) / sqrt(var + epsilon) + bias
    """
    gain = norm["scale"] * jax.lax.rsqrt(norm["var"] + epsilon)
    offset = norm["bias"] - norm["mean"] * gain
    return {"gain": gain if scale is None else gain * jnp.abs(scale), "offset": offset}


def folded_logits(model: nn.Module, folded: Mapping, images: Array) -> Array:
    """Apply the folded network: `[batch, classes]`.

    Args:
      model: the network that was folded.
      folded: from `fold`.
      images: normalized, `[batch, height, width, channels]`.
    """
    logits: Any = folded_twin(model).apply(folded, images, train=False)
    return logits


def same_logits(
    model: nn.Module,
    variables: Mapping,
    other: Mapping,
    images: Array,
    *,
    other_logits: Callable[[nn.Module, Any, Array], Array] = folded_logits,
) -> Array:
    """Whether another form of a network gives what `model.apply` gives, to rounding: bool `[]`.

    Both compute in float32 at least, since rounding to bfloat16 would hide what is to be seen. An
    activation next to its sample's mean may still get the other bit, which shows in all logits of
    that image. This is rare, and a network that is folded wrongly differs in every image: so a
    quarter of the images have to agree.

    Args:
      model: the network.
      variables: as for `fold`.
      other: variables of the other form.
      images: normalized, `[batch, height, width, channels]`.
      other_logits: function of `model`, `other` and `images`.

    Raises:
      NotFoldable: the other form cannot be run.
    """
    with jax.default_matmul_precision("highest"):
        with _foldable():
            dtype = wide(model.dtype)
            model = model.clone(
                conv=partial(model.conv, dtype=dtype),
                norm=partial(model.norm, dtype=dtype),
                dtype=dtype,
            )
            found = other_logits(model, other, images)
        expected: Any = model.apply(variables, images, train=False)
    largest = jnp.max(jnp.abs(expected), axis=1, keepdims=True)
    close = jnp.abs(expected - found) <= _TOLERANCE * largest
    # Of a run that diverged, both are not finite, which others say.
    close |= ~(jnp.isfinite(expected) | jnp.isfinite(found))
    return jnp.mean(jnp.all(close, axis=1), dtype=jnp.float32) >= 0.25
