"""Packing a trained network, and applying it.

    packed = pack_variables(model, variables, image_shape=(32, 32, 3))
    logits = jax.jit(partial(packed_logits, model))(packed, images)

The packed network has the same definition, built from packed layers. It is a pure function from
images to logits and compiles as one program.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.errors import UsageError
from siman_jax.models.folding import COMPARED, FoldedNorm, NotFoldable, fold, same_logits
from siman_jax.models.layers import BinaryConv
from siman_jax.models.leaves import BINARY_KERNEL, BITS, leaves_by_module
from siman_jax.packed.layers import (
    CORNER_SUMS,
    DERIVED,
    WORDS,
    PackedConv,
)
from siman_jax.packed.residual import covers, residual_logits
from siman_jax.program.kernels import pack_kernel
from siman_jax.program.pools import max_pool
from siman_jax.rules import REAL

# On a CPU a batch is split so that its largest activation has at most this many numbers and stays
# in the cache. This made batches of 256 small images up to twice as fast.
_CACHED = 2**20


def packed_logits(
    model: nn.Module,
    packed: Mapping,
    images: jax.Array,
    *,
    native: bool = True,
    exact: bool = False,
) -> jax.Array:
    """Apply a packed network; on a CPU as one native call, or to a few images at a time.

    Args:
      model: the network that was packed, of `models`.
      packed: from `pack_variables`.
      images: normalized, float32 `[batch, height, width, channels]`.
      native: see `packed_twin`; if `residual.covers` the network, all of it runs in C++.
      exact: use C++ only for convolutions of bits, so that all real sums are XLA's, as in
        evaluation.

    Returns:
      Logits, `[batch, classes]`.
    """
    apply = partial(packed_twin(model, native=native).apply, packed, train=False)
    if native and not exact and covers(model):
        on_cpu = partial(residual_logits, model, packed)
    else:
        _, height, width, _ = images.shape
        on_cpu = partial(_in_pieces, apply, max(1, _CACHED // (height * width * model.width)))
    return jax.lax.platform_dependent(images, cpu=on_cpu, default=apply)


def packed_twin(model: nn.Module, *, native: bool = True) -> nn.Module:
    """Build the same network from packed layers.

    Args:
      model: a network of `models`.
      native: use the C++ library on a CPU if it was built; False for a program that will run on
        other machines.

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


def pack_variables(model: nn.Module, variables: Mapping, image_shape: tuple[int, int, int]) -> dict:
    """Pack a trained network's variables, and check the logits on a few images of noise.

    Args:
      model: the network, built like those of `models`.
      variables: as for `folding.fold`.
      image_shape: height, width and channels of the network's images.

    Returns:
      Variables of `packed_twin(model)`: `params`, and values computed from them in `derived`.

    Raises:
      UsageError: the packed network cannot be run, or gives other logits than `model.apply`.
    """
    # With so few images, compiling fast matters more than running fast.
    options = {"xla_backend_optimization_level": 0}
    compare = jax.jit(
        partial(same_logits, model, other_logits=packed_logits), compiler_options=options
    )
    images = jax.random.normal(jax.random.key(0), (COMPARED, *image_shape), jnp.float32)
    try:
        packed = pack_unchecked(model, variables)
        if compare(variables, packed, images):
            return packed
        reason = "it would give other logits"
    except NotFoldable as error:
        reason = str(error)
    raise UsageError(
        f"this {type(model).__name__} cannot be packed: {reason}. Each binary convolution must be"
        " followed directly by a batch norm with a matching name, such as conv1 and bn1. The layers"
        " must be made by the network's fields conv and norm."
    )


def pack_unchecked(model: nn.Module, variables: Mapping) -> dict:
    """Do what `pack_variables` does without checking the logits, so that it can be traced.

    Args:
      model: a network of `models`.
      variables: as for `folding.fold`.

    Returns:
      Variables of `packed_twin(model)`: `params`, and values computed from them in `derived`.
    """
    folded = jax.jit(partial(fold, model))(variables)  # compiled, so that it rounds as evaluation
    packed = {("params", *path): leaf for path, leaf in flatten_dict(folded["params"]).items()}
    for module, own in leaves_by_module(folded.get(BITS, {})).items():
        kernel = pack_kernel(own[BINARY_KERNEL])
        packed["params", *module, WORDS] = kernel.words
        packed[DERIVED, *module, CORNER_SUMS] = kernel.corner_sums
    return unflatten_dict(packed)
