"""The product of a binary layer, delayed so that it is computed together with what follows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.models.batch_norm import KeptSums, Operands, per_channel, scaled_product
from siman_jax.native import convolution as native_convolution
from siman_jax.rules import filter_scales
from siman_jax.rules.precision import wide


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("x", "kernel", "alpha"),
    meta_fields=("scaled", "shape", "binarize", "sums", "geometry"),
)
@dataclass(frozen=True)
class Product:
    """A product of bits that has not been computed yet.

    It is a pytree of its operands, so that a network may return it as an intermediate result.

    Attributes:
      x: the activations before they are binarized.
      kernel: the kernel that multiplies: +-1, or +-1 times a magnitude per filter.
      alpha: learned scales `[features]`; empty if there are none.
      scaled: whether the kernel has magnitudes.
      shape: of the result.
      binarize: function from x to the activations that are multiplied, in the layer's dtype.
      sums: the product by XLA, and the dtype that its sums are kept in.
      geometry: describes the convolution to the native library; None to compute by XLA.
    """

    x: Array
    kernel: Array
    alpha: Array
    scaled: bool
    shape: tuple[int, ...]
    binarize: Callable[[Array], Array]
    sums: KeptSums
    geometry: native_convolution.Geometry | None

    def value(self) -> Array:
        """Compute the result, `shape`."""
        operands = (self.x, self.kernel, self.alpha)
        if self.geometry is None:
            return self.compute(*operands)
        return native_convolution.conv(self.compute, self.geometry, self.scaled)(*operands)

    def compute(self, x: Array, kernel: Array, alpha: Array) -> Array:
        """Compute the result from the given operands by XLA."""
        operands = replace(self, x=x, kernel=kernel, alpha=alpha).operands
        if not self.scaled:
            return scaled_product(self.sums, operands)
        y = _scale_afterwards(self.sums.multiply)(operands.x, kernel)
        if operands.alpha is not None:
            y = y * per_channel(operands.alpha, y)
        return y.astype(operands.x.dtype)

    @property
    def operands(self) -> Operands:
        """The operands that XLA multiplies."""
        return Operands(self.binarize(self.x), self.kernel, self.alpha if self.alpha.size else None)


def computed(x: Array | Product) -> Array:
    """Return `x` itself, or the result of a product."""
    return x.value() if isinstance(x, Product) else x


def absent() -> Array:
    """Return the empty array that stands for a missing one, for functions that need arrays."""
    return jnp.zeros(0, jnp.float32)


def convolution(kernel_size: int, strides: int) -> Callable[..., Array]:
    """Build a convolution of NHWC images and an HWIO kernel that keeps their size at stride 1."""
    return partial(
        lax.conv_general_dilated,
        window_strides=(strides, strides),
        padding=same_padding(kernel_size),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def same_padding(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the zeros before and after, in height and width, that keep an image's size.

    >>> same_padding(3), same_padding(2)
    (((1, 1), (1, 1)), ((0, 1), (0, 1)))
    """
    return (((size - 1) // 2, size // 2),) * 2


def _scale_afterwards(product: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    """Move the magnitude of each filter out of the product, in the forward direction only.

        forward:   product(x, sign(kernel)) * scale
        backward:  that of product(x, kernel)

    So the sums are integers here too: exact in every dtype, and equal to the packed ones.
    """

    @jax.custom_vjp
    def forward(x: Array, kernel: Array) -> Array:
        code = jnp.where(kernel >= 0, 1, -1).astype(x.dtype)
        y = product(x, code, preferred_element_type=wide(x.dtype))
        return y * per_channel(filter_scales(kernel), y)

    def forward_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return forward(x, kernel), (x, kernel)

    def forward_bwd(operands: tuple[Array, Array], g: Array) -> tuple[Array, ...]:
        x, kernel = operands
        _, pullback = jax.vjp(product, x, kernel.astype(x.dtype))
        dx, dkernel = pullback(g.astype(x.dtype))
        return dx, dkernel.astype(kernel.dtype)

    forward.defvjp(forward_fwd, forward_bwd)
    return forward
