"""The layers of `siman_jax.models.layers` for inference, with kernels packed into bits.

Each replaces the layer that it derives from and has the same attributes, so that the same
definition of a network builds either. `train` is always False here.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from siman_jax.errors import choose
from siman_jax.models.batch_norm import per_channel
from siman_jax.models.layers import BinaryConv, BinaryDense
from siman_jax.models.product import same_padding
from siman_jax.program.kernels import (
    PackedKernel,
    binary_conv,
    binary_dense,
    weight_only_conv,
    weight_only_dense,
)
from siman_jax.program.operations import word_count
from siman_jax.rules import ACTIVATION_RULES, REAL
from siman_jax.rules.precision import wide

WORDS = "words"
# A collection for values that are computed from the words and need not be stored.
DERIVED = "derived"
CORNER_SUMS = "corner_sums"


class PackedConv(BinaryConv):
    """`BinaryConv` on bits, without its scales, which are merged into the batch norm after it.

    With binary activations the result is int32 and exact; with the activation rule "real" it has
    the layer's dtype. The weight rule is ignored, since the bits are given.

    Attributes:
      native: whether to use the C++ library on a CPU, if it was built.
    """

    native: bool = True

    @nn.compact
    def product(self, x: Array) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        size = self.kernel_size
        kernel = _packed_kernel(self, (size, size, x.shape[-1], self.features))
        padding = same_padding(size)
        if self.activation_rule == REAL:
            x = x.astype(self.dtype)
            return weight_only_conv(x, kernel.words, strides=self.strides, padding=padding)
        return binary_conv(
            _bits(self, x), kernel, strides=self.strides, padding=padding, native=self.native
        )


class PackedDense(BinaryDense):
    """`BinaryDense` on bits, times alpha; `native` as in `PackedConv`."""

    native: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[batch, in]` to `[batch, features]`."""
        kernel = _packed_kernel(self, (1, 1, x.shape[-1], self.features))
        alpha = self.param("alpha", nn.initializers.ones, (self.features,), jnp.float32)
        if self.activation_rule == REAL:
            y = weight_only_dense(x.astype(self.dtype), kernel.words)
        else:
            y = binary_dense(_bits(self, x), kernel, native=self.native).astype(wide(self.dtype))
        return (y * per_channel(alpha, y)).astype(self.dtype)


def _bits(layer: BinaryConv | BinaryDense, x: Array) -> Array:
    rule = choose(ACTIVATION_RULES, layer.activation_rule, "activation rule")
    return rule.bits(x.astype(wide(layer.dtype)))


def _packed_kernel(layer: nn.Module, shape: tuple[int, int, int, int]) -> PackedKernel:
    """Return the packed kernel that `layer` owns, for an unpacked `shape` in HWIO."""
    height, width, channels, features = shape
    words = layer.param(
        WORDS,
        nn.initializers.zeros,
        (height, width, word_count(channels), features),
        jnp.uint32,
    )
    corner_sums = layer.variable(
        DERIVED, CORNER_SUMS, jnp.zeros, (height + 1, width + 1, features), jnp.int32
    )
    return PackedKernel(words, corner_sums.value)
