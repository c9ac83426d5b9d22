"""From a trained network to its packed form, which runs on the same definition of the network.

    packed = pack_variables(model, variables)
    logits = jax.jit(partial(packed_logits, model))(packed, images)

All of it, from images to logits, is one pure function of arrays and compiles as one program.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from siman_jax.binarize import REAL
from siman_jax.layers import BINARY_KERNEL, BITS, ROTATIONS, BinaryConv, Path, leaves_by_module
from siman_jax.packed.kernels import pack_kernel
from siman_jax.packed.layers import (
    CORNER_SUMS,
    DERIVED,
    WORDS,
    FoldedNorm,
    PackedConv,
    max_pool,
)
from siman_jax.packed.residual import covers, residual_logits
from siman_jax.rules import AT_THE_END, WEIGHT_RULES, filter_scales

# Most numbers in the largest activation of images that are computed together on a CPU, so that
# they stay in its cache. Batches of 256 small images ran up to twice as fast in such pieces.
_CACHED = 2**20


def packed_logits(
    model: nn.Module, packed: Mapping, images: jax.Array, *, native: bool = True
) -> jax.Array:
    """Apply a packed network, on a CPU as one native call, or by a few images at a time.

    Args:
      model: the network that was packed, of `models`.
      packed: from `pack_variables`.
      images: normalized, float32 `[batch, height, width, channels]`.
      native: see `packed_twin`; where `residual.covers` the network, all of it is C++.

    Returns:
      Logits, `[batch, classes]`.
    """
    apply = partial(packed_twin(model, native=native).apply, packed, train=False)
    if native and covers(model):
        on_cpu = partial(residual_logits, model, packed)
    else:
        _, height, width, _ = images.shape
        on_cpu = partial(_in_pieces, apply, max(1, _CACHED // (height * width * model.width)))
    return jax.lax.platform_dependent(images, cpu=on_cpu, default=apply)


def packed_twin(model: nn.Module, *, native: bool = True) -> nn.Module:
    """Build the same network of packed layers.

    Args:
      model: a network of `models`.
      native: use the C++ kernel on the CPU where it was built; False for a program that is to
        run elsewhere.

    Returns:
      A module for the variables of `pack_variables`, to `apply` with `train=False`.
    """
    return model.clone(
        conv=partial(_packed_conv, native=native, **model.conv.keywords),
        norm=partial(FoldedNorm, **model.norm.keywords),
        max_pool=max_pool,
    )


def _in_pieces(apply: Callable[..., Any], piece: int, images: jax.Array) -> jax.Array:
    batch = images.shape[0]
    full = batch // piece * piece
    if full <= piece:
        return apply(images)
    pieces = images[:full].reshape(-1, piece, *images.shape[1:])
    logits = jax.lax.map(apply, pieces).reshape(full, -1)
    return logits if full == batch else jnp.concatenate([logits, apply(images[full:])])


def _packed_conv(features: int, *, native: bool, weight_rule: str, **attributes: Any) -> BinaryConv:
    if weight_rule == REAL:
        return BinaryConv(features, weight_rule=weight_rule, **attributes)
    return PackedConv(features, weight_rule=weight_rule, native=native, **attributes)


def pack_variables(model: nn.Module, variables: Mapping) -> dict:
    """Pack a trained network's variables.

    The bits are those that `variables` hold in the collection `bits`, otherwise those that the
    network's weight rule gives. A batch norm and the scales before it, the rule's own times the
    learned alpha, become one multiplication and one addition. A filter whose alpha is negative is
    stored negated, with its alpha positive, so that alpha can move past a max pool.

    Args:
      model: the network, of `models`.
      variables: `params`, `batch_stats`, `rotations` where the weight rule has them, and perhaps
        `bits`.

    Returns:
      Variables of `packed_twin(model)`: `params`, and in `derived` what follows from them.
    """
    params = leaves_by_module(variables["params"])
    statistics = leaves_by_module(variables["batch_stats"])
    rotations = leaves_by_module(variables.get(ROTATIONS, {}))
    bits = leaves_by_module(variables.get(BITS, {}))
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
    alphas = {_norm_behind(module): scale for module, scale in scales.items()}
    if alphas.keys() - statistics.keys():
        raise ValueError(f"No batch norm takes over an alpha: {alphas.keys() - statistics.keys()}.")
    packed: dict[Path, jax.Array] = {}
    for module, own in params.items():
        if module in binary:
            if module in bits:
                chosen = jnp.asarray(bits[module][BINARY_KERNEL]).astype(bool)
            else:
                chosen = kernels[module] > 0
            kernel = pack_kernel(chosen ^ (scales[module] < 0)[None, None, None])
            packed["params", *module, WORDS] = kernel.words
            packed[DERIVED, *module, CORNER_SUMS] = kernel.corner_sums
        else:
            leaves = own
            if module in statistics:
                leaves = _fold({**own, **statistics[module]}, alphas.get(module), epsilon)
            for name, leaf in leaves.items():
                packed["params", *module, name] = jnp.asarray(leaf)
    return unflatten_dict(packed)


def _norm_behind(convolution: Path) -> Path:
    """The batch norm that follows a convolution: in every network here, `bn1` follows `conv1`."""
    return (*convolution[:-1], convolution[-1].replace("conv", "bn"))


def _fold(
    norm: Mapping[str, jax.Array], alpha: jax.Array | None, epsilon: float
) -> dict[str, jax.Array]:
    """Gain and offset that make one step of two.

    gain * x + offset = scale * (|alpha| x - mean) / sqrt(var + epsilon) + bias
    """
    gain = norm["scale"] * jax.lax.rsqrt(norm["var"] + epsilon)
    offset = norm["bias"] - norm["mean"] * gain
    return {"gain": gain if alpha is None else gain * jnp.abs(alpha), "offset": offset}
