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
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.binarize import REAL, WEIGHT_RULES
from siman_jax.layers import BINARY_KERNEL, BITS, BinaryConv
from siman_jax.packed.kernels import pack_kernel
from siman_jax.packed.layers import (
    CORNER_SUMS,
    DERIVED,
    WORDS,
    FoldedNorm,
    PackedConv,
    max_pool,
)

Path = tuple[str, ...]

# Most numbers in the largest activation of images that are computed together on a CPU, so that
# they stay in its cache. Batches of 256 small images ran up to twice as fast in such pieces.
_CACHED = 2**20


def packed_logits(
    model: nn.Module, packed: Mapping, images: jax.Array, *, native: bool = True
) -> jax.Array:
    """Apply a packed network, on a CPU by a few images at a time.

    Args:
      model: the network that was packed, of `models`.
      packed: from `pack_variables`.
      images: normalized, float32 `[batch, height, width, channels]`.
      native: see `packed_twin`.

    Returns:
      Logits, `[batch, classes]`.
    """
    apply = partial(packed_twin(model, native=native).apply, packed, train=False)
    _, height, width, _ = images.shape
    piece = max(1, _CACHED // (height * width * model.width))
    return jax.lax.platform_dependent(images, cpu=partial(_in_pieces, apply, piece), default=apply)


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
    network's weight rule gives. A batch norm and the alpha before it become one multiplication
    and one addition. A filter whose alpha is negative is stored negated, with its alpha positive,
    so that alpha can move past a max pool.

    Args:
      model: the network, of `models`.
      variables: `params`, `batch_stats` and perhaps `bits`.

    Returns:
      Variables of `packed_twin(model)`: `params`, and in `derived` what follows from them.
    """
    params = _leaves_by_module(variables["params"])
    statistics = _leaves_by_module(variables["batch_stats"])
    bits = _leaves_by_module(variables.get(BITS, {}))
    weight_rule = WEIGHT_RULES[model.conv(features=1).weight_rule]
    epsilon = model.norm().epsilon

    alphas = {_norm_behind(m): own["alpha"] for m, own in params.items() if "alpha" in own}
    if alphas.keys() - statistics.keys():
        raise ValueError(f"No batch norm takes over an alpha: {alphas.keys() - statistics.keys()}.")
    packed: dict[Path, jax.Array] = {}
    for module, own in params.items():
        if BINARY_KERNEL in own:
            if module in bits:
                chosen = jnp.asarray(bits[module][BINARY_KERNEL]).astype(bool)
            else:
                chosen = weight_rule(own[BINARY_KERNEL]) > 0
            negated = (jnp.asarray(own["alpha"]) < 0)[None, None, None]
            kernel = pack_kernel(chosen ^ negated)
            packed["params", *module, WORDS] = kernel.words
            packed[DERIVED, *module, CORNER_SUMS] = kernel.corner_sums
        else:
            leaves = own
            if module in statistics:
                leaves = _fold({**own, **statistics[module]}, alphas.get(module), epsilon)
            for name, leaf in leaves.items():
                packed["params", *module, name] = jnp.asarray(leaf)
    return unflatten_dict(packed)


def _leaves_by_module(tree: Mapping) -> dict[Path, dict[str, jax.Array]]:
    """Each module's own leaves by their names."""
    modules: dict[Path, dict[str, jax.Array]] = {}
    for path, leaf in flatten_dict(tree).items():
        modules.setdefault(path[:-1], {})[path[-1]] = leaf
    return modules


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
