"""The networks for 224x224 images."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from siman_jax.models.images import IMAGENET, made_for
from siman_jax.models.initializers import fan_in_uniform, kaiming_normal
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.models.resnet import ResNet, TwoShortcutBlock, pooled_shortcut, real_shortcut
from siman_jax.rules import identity


@made_for(IMAGENET)
def resnet18_1w1a(
    num_classes: int,
    *,
    width: int = 64,
    weight_rule: str = "half_half",
    activation_rule: str = "siman",
    shifts: bool = False,
    pooled_shortcuts: bool = False,
    last_norm: bool = True,
    norm_groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """Build ResNet-18: 2, 2, 2, 2 blocks, two shortcuts per block, real 1x1 downsampling.

    Args:
      num_classes: width of the classifier.
      width: channels of the first stage; each later stage doubles them.
      weight_rule: key of `rules.WEIGHT_RULES`.
      activation_rule: key of `rules.ACTIVATION_RULES`; "real" for both rules gives the
        real-valued network.
      shifts: whether to learn thresholds and shifted PReLUs, see `models.activations`.
      pooled_shortcuts: whether shortcuts that change the shape are `resnet.pooled_shortcut`.
      last_norm: whether there is a batch norm before the classifier.
      norm_groups: parts of the batch that are normalized separately, see `BatchNorm.groups`.
      dtype: dtype to compute in.

    Source: He et al., arXiv 1512.03385, table 1; binarized in arXiv 2102.07981.
    """
    return _resnet(
        (2, 2, 2, 2),
        num_classes,
        width,
        weight_rule,
        activation_rule,
        shifts,
        pooled_shortcuts,
        last_norm,
        norm_groups,
        dtype,
    )


@made_for(IMAGENET)
def resnet34_1w1a(
    num_classes: int,
    *,
    width: int = 64,
    weight_rule: str = "half_half",
    activation_rule: str = "siman",
    shifts: bool = False,
    pooled_shortcuts: bool = False,
    last_norm: bool = True,
    norm_groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """Build ResNet-34: 3, 4, 6, 3 blocks, otherwise as `resnet18_1w1a`, with its arguments."""
    return _resnet(
        (3, 4, 6, 3),
        num_classes,
        width,
        weight_rule,
        activation_rule,
        shifts,
        pooled_shortcuts,
        last_norm,
        norm_groups,
        dtype,
    )


@made_for(IMAGENET)
def react18_1w1a(
    num_classes: int,
    *,
    width: int = 64,
    weight_rule: str = "half_half",
    activation_rule: str = "siman",
    norm_groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """Build ResNet-18 with what ReActNet has around its layers.

    That is shifts, pooled shortcuts, no batch norm before the classifier, a stem without an
    activation, and a gamma that starts at 1. The arguments are those of `resnet18_1w1a`.

    Source: arXiv 2003.03488, its network based on ResNet-18.
    """
    return resnet18_1w1a(
        num_classes,
        width=width,
        weight_rule=weight_rule,
        activation_rule=activation_rule,
        shifts=True,
        pooled_shortcuts=True,
        last_norm=False,
        norm_groups=norm_groups,
        dtype=dtype,
    ).clone(norm=partial(BatchNorm, dtype=dtype, groups=norm_groups), stem_activation=identity)


def _resnet(
    stages: Sequence[int],
    num_classes: int,
    width: int,
    weight_rule: str,
    activation_rule: str,
    shifts: bool,
    pooled_shortcuts: bool,
    last_norm: bool,
    norm_groups: int,
    dtype: DTypeLike,
) -> ResNet:
    return ResNet(
        num_classes,
        width,
        stages=stages,
        block=TwoShortcutBlock,
        shortcut=pooled_shortcut if pooled_shortcuts else real_shortcut,
        conv=partial(
            BinaryConv,
            weight_rule=weight_rule,
            activation_rule=activation_rule,
            dtype=dtype,
        ),
        # A tiny gamma: at the start the shortcuts dominate.
        norm=partial(BatchNorm, dtype=dtype, groups=norm_groups, scale_init=1e-8),
        stem_activation=nn.relu,
        imagenet_stem=True,
        real_init=kaiming_normal,
        classifier_init=fan_in_uniform,
        dtype=dtype,
        shifts=shifts,
        last_norm=last_norm,
    )
