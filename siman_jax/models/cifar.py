"""The networks for 32x32 images; smaller sizes also work if they can be halved often enough."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from siman_jax.models.activations import PReLU
from siman_jax.models.images import CIFAR10, CIFAR100, made_for
from siman_jax.models.initializers import fan_in_uniform, kaiming_normal, kaiming_normal_fan_out
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.models.resnet import (
    OneShortcutBlock,
    ResNet,
    TwoShortcutBlock,
    binary_shortcut,
    pad_shortcut,
    pooled_shortcut,
)
from siman_jax.native.pooling import max_pool
from siman_jax.native.real_convolution import real_conv
from siman_jax.rules import identity
from siman_jax.rules.precision import wide


@made_for(CIFAR10, {100: CIFAR100})
def resnet20_1w1a(
    num_classes: int,
    *,
    width: int = 16,
    weight_rule: str = "half_half",
    activation_rule: str = "siman",
    shifts: bool = False,
    pooled_shortcuts: bool = False,
    last_norm: bool = True,
    norm_groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """Build ResNet-20: 3 stages of 3 blocks, two shortcuts per block, zero-padded channels.

    Args:
      num_classes: width of the classifier.
      width: channels of the first stage; the others have two and four times as many.
      weight_rule: key of `rules.WEIGHT_RULES`.
      activation_rule: key of `rules.ACTIVATION_RULES`; "real" for both rules gives the
        real-valued network.
      shifts: whether to learn thresholds and shifted PReLUs, see `models.activations`.
      pooled_shortcuts: whether shortcuts that change the shape are `resnet.pooled_shortcut`.
      last_norm: whether there is a batch norm before the classifier.
      norm_groups: parts of the batch that are normalized separately, see `BatchNorm.groups`.
      dtype: dtype to compute in.

    Source: He et al., arXiv 1512.03385, section 4.2; binarized in arXiv 2102.07981.
    """
    return ResNet(
        num_classes,
        width,
        stages=(3, 3, 3),
        block=TwoShortcutBlock,
        shortcut=pooled_shortcut if pooled_shortcuts else pad_shortcut,
        conv=partial(
            BinaryConv,
            weight_rule=weight_rule,
            activation_rule=activation_rule,
            dtype=dtype,
        ),
        norm=partial(BatchNorm, dtype=dtype, groups=norm_groups),
        stem_activation=nn.relu,
        imagenet_stem=False,
        real_init=kaiming_normal,
        classifier_init=kaiming_normal,
        dtype=dtype,
        shifts=shifts,
        last_norm=last_norm,
    )


@made_for(CIFAR10, {100: CIFAR100})
def react20_1w1a(
    num_classes: int,
    *,
    width: int = 16,
    weight_rule: str = "half_half",
    activation_rule: str = "siman",
    norm_groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """Build ResNet-20 with what ReActNet has around its layers.

    That is shifts, pooled shortcuts, no batch norm before the classifier, and a stem without an
    activation. The arguments are those of `resnet20_1w1a`.

    Source: arXiv 2003.03488, for ResNet-18.
    """
    return resnet20_1w1a(
        num_classes,
        width=width,
        weight_rule=weight_rule,
        activation_rule=activation_rule,
        shifts=True,
        pooled_shortcuts=True,
        last_norm=False,
        norm_groups=norm_groups,
        dtype=dtype,
    ).clone(stem_activation=identity)


@made_for(CIFAR10, {100: CIFAR100})
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
    """Build ResNet-18 for small images: 4 stages of 2 blocks, hardtanh, binary 1x1 shortcuts.

    The arguments are those of `resnet20_1w1a`.

    Source: arXiv 2102.07981.
    """
    return ResNet(
        num_classes,
        width,
        stages=(2, 2, 2, 2),
        block=OneShortcutBlock,
        shortcut=pooled_shortcut if pooled_shortcuts else binary_shortcut,
        conv=partial(
            BinaryConv,
            weight_rule=weight_rule,
            activation_rule=activation_rule,
            kernel_init=fan_in_uniform,
            dtype=dtype,
        ),
        norm=partial(BatchNorm, dtype=dtype, groups=norm_groups),
        stem_activation=identity,
        imagenet_stem=False,
        real_init=fan_in_uniform,
        classifier_init=fan_in_uniform,
        dtype=dtype,
        shifts=shifts,
        last_norm=last_norm,
    )


@made_for(CIFAR10, {100: CIFAR100})
def vgg_small_1w1a(
    num_classes: int,
    *,
    width: int = 128,
    weight_rule: str = "half_half",
    activation_rule: str = "siman",
    norm_groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> "VggSmall":
    """Build VGG-small: one real and five binary convolutions, three max pools, one classifier.

    The arguments are those of `resnet20_1w1a`; `width` is the number of channels of the first two
    convolutions.

    Source: Zhang et al., arXiv 1807.10029; binarized in arXiv 2102.07981.
    """
    return VggSmall(
        num_classes,
        width,
        conv=partial(
            BinaryConv,
            weight_rule=weight_rule,
            activation_rule=activation_rule,
            kernel_init=kaiming_normal_fan_out,
            dtype=dtype,
        ),
        norm=partial(BatchNorm, dtype=dtype, groups=norm_groups),
        dtype=dtype,
    )


class VggSmall(nn.Module):
    """Convolutions, each with batch norm and PReLU, a 2x2 max pool after every second; classifier.

    Attributes:
      num_classes: width of the classifier.
      width: channels of the first two convolutions; the next pairs have two and four times
        as many.
      conv: builds the binary convolutions: `BinaryConv` with its rules and dtype set.
      norm: builds the batch norms.
      dtype: dtype to compute in; logits are at least float32.
    """

    num_classes: int
    width: int
    conv: partial[BinaryConv]
    norm: partial[BatchNorm]
    dtype: DTypeLike = jnp.float32

    @property
    def weight_rule(self) -> str:
        """Key of `rules.WEIGHT_RULES`."""
        return self.conv(features=1).weight_rule

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map normalized images `[batch, height, width, channels]` to logits `[batch, classes]`."""
        x = nn.Conv(
            self.width,
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=kaiming_normal_fan_out,
            dtype=self.dtype,
            conv_general_dilated=real_conv if train else None,
            name="conv0",
        )(x)
        x = self.norm(name="bn0")(x, train, activation=PReLU(name="prelu0"))
        for index in range(1, 6):
            conv = self.conv(self.width * 2 ** (index // 2), name=f"conv{index}")
            y = max_pool(conv(x), (2, 2), (2, 2)) if index % 2 == 1 else conv.product(x)
            x = self.norm(name=f"bn{index}")(y, train, activation=PReLU(name=f"prelu{index}"))
        # Channels first, so that published classifier weights fit without change.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="fc",
        )(x)
        return x.astype(wide(x.dtype))
