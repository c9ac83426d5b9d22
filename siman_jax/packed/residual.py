"""A packed network of two-shortcut blocks as one native call.

Run layer by layer, as by `network.packed_twin`, a single image loses much time between layers: to
dispatch, to waking threads, and to reading activations again. In a single call the threads keep
running from the image to the logits.
"""

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from siman_jax.models.layers import BinaryConv
from siman_jax.models.resnet import ResNet, TwoShortcutBlock, pad_shortcut, real_shortcut
from siman_jax.native import library
from siman_jax.native import packed_calls as native
from siman_jax.native.packed_calls import whole_lanes
from siman_jax.packed.layers import CORNER_SUMS, DERIVED, WORDS
from siman_jax.rules import ACTIVATION_RULES, REAL


def covers(model: nn.Module) -> TypeGuard[ResNet]:
    """Tell whether this machine can run a network of `models` as one native call."""
    return (
        type(model) is ResNet  # a subclass may compute something else
        and model.block is TwoShortcutBlock
        and model.shortcut in (pad_shortcut, real_shortcut)
        and model.stem_activation is nn.relu
        and model.dtype == jnp.float32
        and REAL not in (_convolution(model).weight_rule, _convolution(model).activation_rule)
        and bool(library.variants())
    )


def residual_logits(
    model: ResNet, packed: Mapping, images: Array, *, variant: str | None = None
) -> Array:
    """Compute the logits of `packed_twin(model)` in one native call.

    Convolutions of bits give the same integers. Real sums are taken in another order: those of
    the stem, of real shortcuts, and of means of activations. So logits agree up to rounding,
    unless an activation is so close to its sample's mean that rounding decides its bit.

    Args:
      model: a network that `covers` approves.
      packed: from `network.pack_variables`.
      images: normalized, float32 `[batch, height, width, channels]`.
      variant: one of `library.variants()`; the first of them if None.

    Returns:
      Logits, float32 `[batch, classes]`.
    """
    params = packed["params"]
    stem = params["conv1"]["kernel"]
    stem = pair_kernel(stem) if model.imagenet_stem else _kernel(stem)
    weights = [stem, *_norm(params["bn1"])]
    channels = [images.shape[-1], model.width]
    strides = [2 if model.imagenet_stem else 1]
    for block, index, stride, features in _units(model):
        own, sums = params[block], packed[DERIVED][block][f"conv{index}"][CORNER_SUMS]
        weights += [
            _kernel(own[f"conv{index}"][WORDS]),
            whole_lanes(sums),
            *_norm(own[f"bn{index}"]),
            whole_lanes(own[f"prelu{index}"]["slope"]),
        ]
        if index == 1 and "shortcut_conv" in own:
            kernel = own["shortcut_conv"]["kernel"]
            weights += [_kernel(whole_lanes(kernel, axis=2)), *_norm(own["shortcut_bn"])]
        channels.append(features)
        strides.append(stride)
    classifier = params["fc"]
    weights += [
        *_norm(params["bn2"]),
        _kernel(whole_lanes(classifier["kernel"], axis=0)),
        whole_lanes(classifier["bias"]),
    ]
    return native.residual_logits(
        images,
        weights,
        classes=model.num_classes,
        centred=ACTIVATION_RULES[_convolution(model).activation_rule].centred,
        pooled=model.imagenet_stem,
        real_shortcuts=model.shortcut is real_shortcut,
        strides=strides,
        channels=channels,
        variant=variant,
    )


def pair_kernel(kernel: Array) -> Array:
    """Transform the 7x7 kernel of a stem to compute two outputs at once; see `native/stem.h`.

    Args:
      kernel: float32 `[7, 7, in, out]`.

    Returns:
      Four kernels `[7, taps, in, out]` of 3, 2, 2 and 3 taps, each laid out by `native.blocks`,
      joined to `[size]`.
    """
    first, middle, last, seventh = (kernel[:, start : start + 2] for start in (0, 2, 4, 6))
    kernels = (
        jnp.concatenate([first, seventh], axis=1),
        (first + middle + last) / 2,
        (first - middle + last) / 2,
        jnp.concatenate([last, seventh], axis=1),
    )
    return jnp.concatenate([_kernel(part) for part in kernels])


def _convolution(model: ResNet) -> BinaryConv:
    """Return a convolution with the rules of the blocks' convolutions."""
    return model.conv(features=1)


def _units(model: ResNet) -> Iterator[tuple[str, int, int, int]]:
    """Yield the block, index in the block, strides and features of every unit."""
    for stage, blocks in enumerate(model.stages):
        for block in range(blocks):
            name, features = f"layer{stage + 1}_{block}", model.width * 2**stage
            yield name, 1, 2 if stage > 0 and block == 0 else 1, features
            yield name, 2, 1, features


def _norm(leaves: Mapping[str, Array]) -> list[Array]:
    return [whole_lanes(leaves[name]) for name in ("gain", "offset")]


def _kernel(kernel: Array) -> Array:
    return native.blocks(whole_lanes(kernel))
