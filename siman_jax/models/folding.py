"""Folding: a trained network with its bits chosen, and scales merged into batch norms.

    folded = fold(model, variables)
    logits = folded_twin(model).apply(folded, images, train=False)

The scales of a convolution and the batch norm after it become one multiplication and one addition.
Evaluation runs the folded network. Packed inference does the same computation with other
convolutions, whose sums are equal: so both round alike, and no bit or prediction differs.

The batch norm that follows a convolution is found by its name, as in the networks of `models`. A
network built in another way would be folded wrongly, so evaluation and packing compare logits by
`same_logits`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from flax.traverse_util import unflatten_dict
from jax import Array

from siman_jax.errors import UsageError, on_one_line
from siman_jax.models.batch_norm import per_channel
from siman_jax.models.layers import BinaryConv, binary_activations, native_geometry
from siman_jax.models.leaves import (
    BINARY_KERNEL,
    BITS,
    ROTATIONS,
    ModulePath,
    leaves_by_module,
    multiplying_kernels,
)
from siman_jax.models.norm_layer import Activation, BatchNorm, finish
from siman_jax.models.product import Product, absent, computed, convolution
from siman_jax.native import convolution as native_convolution
from siman_jax.rules import REAL, filter_scales, identity
from siman_jax.rules.precision import wide

COMPARED = 8  # how many images to compare two forms of a network on
# Largest difference of logits, relative to an image's largest logit. Rounding alone makes a tenth
# of it at most.
_TOLERANCE = 1e-4


class NotFoldable(UsageError):  # noqa: N818
    """The network cannot be folded; the message says why."""


@contextmanager
def _foldable() -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    # A missing field or leaf, a wrong shape, or an argument that a layer does not take.
    except (AttributeError, KeyError, TypeError, ValueError, FlaxError) as error:
        raise NotFoldable(on_one_line(error)) from error


class FoldedConv(BinaryConv):
    """`BinaryConv` with its bits given, and without its scales.

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
        geometry = native_geometry(self, activations, code)
        if geometry is None:
            return product(activations, code)
        # The activations are binarized already, so the library is to take them as they are.
        geometry = replace(geometry, estimator=native_convolution.ONE, centred=False)
        natively = native_convolution.conv(
            lambda x, code, _: product(x, code), geometry, scaled=False
        )
        return natively(activations, code, absent())


class FoldedNorm(BatchNorm):
    """Batch norm by its running statistics, merged with the scales of the convolution before it.

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
        """Compute activation(gain * x + offset + shortcut), in the layer's dtype.

        Args:
          x: `[..., channels]`, floating or int32.
          train: False.
          shortcut: shape of `x`; None for none.
          activation: a function, or a module such as `PReLU`.
        """
        if train:
            raise ValueError("a folded network cannot be trained; apply it with train=False.")
        shape = x.shape[-1:]
        gain = self.param("gain", nn.initializers.ones, shape, jnp.float32)
        offset = self.param("offset", nn.initializers.zeros, shape, jnp.float32)
        x = computed(x).astype(wide(self.dtype))
        y = (x * per_channel(gain, x) + per_channel(offset, x)).astype(self.dtype)
        return finish(y, shortcut, activation)


def folded_twin(model: nn.Module) -> nn.Module:
    """Build the same network from folded layers.

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

    The bits are taken from the collection `bits` if `variables` have it, otherwise from the
    network's weight rule. The scales of a convolution are the rule's own times the learned alpha.
    Where a scale is negative, the filter's bits are inverted and the scale is made positive, so
    that it can be applied after a max pool.

    Args:
      model: the network, of `models`.
      variables: `params`, `batch_stats`, `rotations` if the weight rule has them, and optionally
        `bits`.

    Returns:
      Variables of `folded_twin(model)`: `params`, and `bits` of all binary convolutions.

    Raises:
      NotFoldable: the names show that the network is not built like those of `models`.
    """
    if not (hasattr(model, "conv") and hasattr(model, "norm")):
        raise NotFoldable("it is not built like those of siman_jax.models")
    params = leaves_by_module(variables["params"])
    statistics = leaves_by_module(variables["batch_stats"])
    given = leaves_by_module(variables.get(BITS, {}))
    weight_rule = model.conv(features=1).weight_rule
    epsilon = model.norm().epsilon

    kernels = multiplying_kernels(variables["params"], weight_rule, variables.get(ROTATIONS))
    scales = {
        module: filter_scales(kernel) * params[module].get("alpha", 1)
        for module, kernel in kernels.items()
    }
    taken_over = {_norm_after(module): scale for module, scale in scales.items()}
    if taken_over.keys() - statistics.keys():
        names = sorted("/".join(path) for path in taken_over.keys() - statistics.keys())
        raise NotFoldable(f"there is no batch norm {', '.join(names)} to take over scales")
    folded: dict[ModulePath, Array] = {}
    for module, own in params.items():
        if module in kernels:
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


def _norm_after(convolution: ModulePath) -> ModulePath:
    """Return the path of the batch norm after a convolution; here `bn1` always follows `conv1`."""
    return (*convolution[:-1], convolution[-1].replace("conv", "bn"))


def _fold_norm(norm: Mapping[str, Array], scale: Array | None, epsilon: float) -> dict[str, Array]:
    """Compute the gain and offset that replace a scale and a batch norm.

    gain * x + offset = norm's scale * (|scale| x - mean) / sqrt(var + epsilon) + bias
    """
    gain = norm["scale"] * jax.lax.rsqrt(norm["var"] + epsilon)
    offset = norm["bias"] - norm["mean"] * gain
    return {"gain": gain if scale is None else gain * jnp.abs(scale), "offset": offset}


def folded_logits(model: nn.Module, folded: Mapping, images: Array) -> Array:
    """Apply the folded network; return logits `[batch, classes]`.

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
    """Check that another form of a network gives the logits of `model.apply`, up to rounding.

    Both compute at least in float32, since rounding to bfloat16 would hide differences. Rounding
    may still change the bit of an activation close to its sample's mean, and then all logits of
    that image. This is rare, while a network that is folded wrongly differs in every image. So a
    quarter of the images have to agree.

    Args:
      model: the network.
      variables: as for `fold`.
      other: variables of the other form.
      images: normalized, `[batch, height, width, channels]`.
      other_logits: function of `model`, `other` and `images`.

    Returns:
      bool `[]`.

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
    # In a run that diverged neither is finite, which is reported elsewhere.
    close |= ~(jnp.isfinite(expected) | jnp.isfinite(found))
    return jnp.mean(jnp.all(close, axis=1), dtype=jnp.float32) >= 0.25
