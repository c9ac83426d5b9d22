"""Residual networks: a stem, stages of one of two kinds of block, and a classifier."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from siman_jax.models.activations import PReLU, RPReLU, Shift
from siman_jax.models.initializers import Initializer, uniform_bias
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import Activation, BatchNorm
from siman_jax.models.pooled_norm import Pool
from siman_jax.native.chain import chained
from siman_jax.native.real_convolution import real_conv
from siman_jax.rules.precision import wide

Shortcut = Callable[..., Array]


class TwoShortcutBlock(nn.Module):
    """Two times convolution, batch norm, + shortcut, PReLU; `shifts` is that of `ResNet`."""

    features: int
    strides: int
    conv: Callable[..., BinaryConv]
    shortcut: Shortcut
    norm: Callable[..., BatchNorm]
    shifts: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        activation = RPReLU if self.shifts else PReLU
        conv = self.conv(self.features, strides=self.strides, name="conv1")
        y = conv.product(_shifted(self, x, "shift1"))
        shortcut = self.shortcut(self, x, train)
        x = self.norm(name="bn1")(y, train, shortcut, activation(name="prelu1"))
        y = self.conv(self.features, name="conv2").product(_shifted(self, x, "shift2"))
        return self.norm(name="bn2")(y, train, x, activation(name="prelu2"))


class OneShortcutBlock(nn.Module):
    """Convolution, batch norm, hardtanh, convolution, batch norm, + shortcut, hardtanh.

    `shifts` is that of `ResNet`.
    """

    features: int
    strides: int
    conv: Callable[..., BinaryConv]
    shortcut: Shortcut
    norm: Callable[..., BatchNorm]
    shifts: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        first: Activation = nn.hard_tanh
        second: Activation = nn.hard_tanh
        if self.shifts:
            first, second = RPReLU(name="prelu1"), RPReLU(name="prelu2")
        conv = self.conv(self.features, strides=self.strides, name="conv1")
        y = conv.product(_shifted(self, x, "shift1"))
        y = self.norm(name="bn1")(y, train, activation=first)
        y = self.conv(self.features, name="conv2").product(_shifted(self, y, "shift2"))
        shortcut = self.shortcut(self, x, train)
        return self.norm(name="bn2")(y, train, shortcut, second)


def _shifted(block: TwoShortcutBlock | OneShortcutBlock, x: Array, name: str) -> Array:
    return Shift(name=name)(x) if block.shifts else x


def pad_shortcut(block: nn.Module, x: Array, train: bool) -> Array:
    """Subsample in space, and add channels of zeros, half of them before and half after."""
    del train
    if x.shape[-1] == block.features and block.strides == 1:
        return x
    x = x[:, :: block.strides, :: block.strides]
    missing = block.features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def binary_shortcut(block: nn.Module, x: Array, train: bool) -> Array:
    """Apply a binary 1x1 convolution and batch norm if the shape changes."""
    if x.shape[-1] == block.features and block.strides == 1:
        return x
    conv = block.conv(block.features, kernel_size=1, strides=block.strides, name="shortcut_conv")
    return block.norm(name="shortcut_bn")(conv.product(x), train)


def real_shortcut(block: nn.Module, x: Array, train: bool) -> Array:
    """Apply a real-valued 1x1 convolution and batch norm if the shape changes."""
    if x.shape[-1] == block.features and block.strides == 1:
        return x
    return _real_product(block, x, train, block.strides)


def pooled_shortcut(block: nn.Module, x: Array, train: bool) -> Array:
    """Apply average pooling, a real-valued 1x1 convolution and batch norm if the shape changes.

    At the edge of an image of odd size the mean is over what is inside.
    """
    if x.shape[-1] == block.features and block.strides == 1:
        return x
    size = (block.strides, block.strides)
    if block.strides > 1:
        x = x.astype(wide(x.dtype))
        x = nn.avg_pool(x, size, size, padding="SAME", count_include_pad=False)
    return _real_product(block, x, train, strides=1)


def _real_product(block: nn.Module, x: Array, train: bool, strides: int) -> Array:
    conv = block.conv(
        block.features,
        kernel_size=1,
        strides=strides,
        weight_rule="real",
        activation_rule="real",
        name="shortcut_conv",
    )
    return block.norm(name="shortcut_bn")(conv(x), train)


class ResNet(nn.Module):
    """Residual network: stem, stages of blocks, average pooling, batch norm, classifier.

    With `shifts`, channels are shifted before they are binarized, and the blocks' activations are
    `RPReLU`.

    Attributes:
      num_classes: width of the classifier.
      width: channels of the stem and of the first stage; each later stage doubles them.
      stages: number of blocks in each stage; all but the first stage start with stride 2.
      block: `TwoShortcutBlock` or `OneShortcutBlock`.
      shortcut: `pad_shortcut`, `binary_shortcut`, `real_shortcut` or `pooled_shortcut`.
      conv: builds the blocks' convolutions: `BinaryConv` with its rules and dtype set.
      norm: builds the batch norms: `BatchNorm` with its dtype and the blocks' initial gamma set.
      stem_activation: applied after the stem's batch norm.
      imagenet_stem: whether the stem is a 7x7 convolution and a 3x3 max pool, both with stride 2;
        otherwise it is a 3x3 convolution with stride 1.
      real_init: initial kernel of the stem.
      classifier_init: initial kernel of the classifier.
      dtype: dtype to compute in; logits are at least float32.
      shifts: whether to shift channels, see `models.activations`.
      last_norm: whether there is a batch norm before the classifier.
    """

    num_classes: int
    width: int
    stages: Sequence[int]
    block: Callable[..., nn.Module]
    shortcut: Shortcut
    conv: partial[BinaryConv]
    norm: Callable[..., BatchNorm]
    stem_activation: Activation
    imagenet_stem: bool
    real_init: Initializer
    classifier_init: Initializer
    dtype: DTypeLike = jnp.float32
    shifts: bool = False
    last_norm: bool = True

    @property
    def weight_rule(self) -> str:
        """Key of `rules.WEIGHT_RULES`."""
        return self.conv(features=1).weight_rule

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map normalized images `[batch, height, width, channels]` to logits `[batch, classes]`."""
        size, strides = (7, 2) if self.imagenet_stem else (3, 1)
        x = nn.Conv(
            self.width,
            (size, size),
            strides,
            padding=size // 2,
            use_bias=False,
            kernel_init=self.real_init,
            dtype=self.dtype,
            conv_general_dilated=real_conv if train else None,
            name="conv1",
        )(x)
        with chained():
            pool = Pool((3, 3), (2, 2), ((1, 1), (1, 1))) if self.imagenet_stem else None
            x = self.norm(name="bn1")(x, train, activation=self.stem_activation, pool=pool)
            for stage, blocks in enumerate(self.stages):
                for index in range(blocks):
                    x = self.block(
                        features=self.width * 2**stage,
                        strides=2 if stage > 0 and index == 0 else 1,
                        conv=self.conv,
                        shortcut=self.shortcut,
                        norm=self.norm,
                        shifts=self.shifts,
                        name=f"layer{stage + 1}_{index}",
                    )(x, train)
        x = jnp.mean(x, (1, 2))
        if self.last_norm:
            x = self.norm(scale_init=1.0, name="bn2")(x, train)
        x = nn.Dense(
            self.num_classes,
            kernel_init=self.classifier_init,
            bias_init=uniform_bias(x.shape[-1]),
            dtype=self.dtype,
            name="fc",
        )(x)
        return x.astype(wide(x.dtype))
