"""Binary convolutions in training, natively: alone, or with the batch norm behind them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.native.dispatch import Function, differentiable
from siman_jax.native.library import CONV_BACKWARD, CONV_FORWARD, call
from siman_jax.native.norm import (
    Channels,
    Normalized,
    as_samples,
    gradient_rows,
    gradient_sums,
    normalize,
    with_slopes,
)

# What stands for the derivative of a sign at u, by the numbers that the library knows it by:
# 1, max(0, 2 - 2|u|) and 1[|u| <= 1].
ONE, APPROX, STRAIGHT_THROUGH = range(3)

# Sums are kept in 16 bits.
_MOST_TERMS = 2**15 - 1
# Rows of an image are addressed in 16 bits too, sixteen sums for each pixel.
_MOST_COLUMNS = 2048


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution that do not follow from its operands, and how it binarizes.

    Attributes:
      strides: step, the same both ways.
      padding: zeros before and after, for height and width.
      estimator: `ONE`, `APPROX` or `STRAIGHT_THROUGH`.
      centred: signs are taken about a sample's mean, and u is standardized; otherwise about 0.

    Raises:
      ValueError: a stride below 1, negative padding, or an unknown estimator.
    """

    strides: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    estimator: int
    centred: bool

    def __post_init__(self) -> None:
        if self.strides < 1 or min(pixels for side in self.padding for pixels in side) < 0:
            raise ValueError(
                f"strides are {self.strides} and padding is {self.padding}; expected strides of 1"
                " or more, and no negative padding."
            )
        if self.estimator not in range(3):
            raise ValueError(f"the estimator is {self.estimator}; expected 0, 1 or 2.")

    def result(self, x: Array, kernel: Array) -> tuple[int, ...]:
        """Shape of the result.

        Raises:
          ValueError: the kernel is for other channels, or larger than the padded input.
        """
        if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
            raise ValueError(
                f"x has shape {x.shape} and the kernel {kernel.shape}; expected [batch, height,"
                " width, in] and [height, width, in, out]."
            )
        sizes = [
            (size + sum(pad) - taps) // self.strides + 1
            for size, pad, taps in zip(x.shape[1:3], self.padding, kernel.shape[:2], strict=True)
        ]
        if min(sizes) < 1:
            raise ValueError(f"a kernel of {kernel.shape[:2]} is larger than the padded input.")
        return (x.shape[0], *sizes, kernel.shape[-1])

    def attributes(self) -> dict[str, Any]:
        """What the library takes."""
        (top, _), (left, _) = self.padding
        return {"stride": self.strides, "top": top, "left": left, "centred": self.centred}


def fits(x: Array, kernel_shape: tuple[int, ...]) -> bool:
    """Whether the library has room for the sums of such a convolution, and it is of any use."""
    taps_down, taps_across, channels, _ = kernel_shape
    terms = taps_down * taps_across * channels
    empty = min(*x.shape, *kernel_shape) == 0
    return terms <= _MOST_TERMS and x.shape[2] <= _MOST_COLUMNS and not empty


def conv(reference: Function, geometry: Geometry, scaled: bool) -> Function:
    """Build the function of x, the kernel and alpha.

        y = conv(sign(x), sign(kernel)) * scale

    Args:
      reference: the same function in `jax.numpy`.
      geometry: of the convolution.
      scaled: the kernel has a magnitude in each filter, which is the scale, and its gradient is
        that of conv(sign(x), kernel); otherwise it is +-1, and alpha the scale, which is 1 where
        alpha has no elements.
    """

    def forward(x: Array, kernel: Array, alpha: Array) -> Any:
        moments, _, _, y = _forward(geometry, x, kernel, _scale(kernel, alpha, scaled), sums=False)
        return y, moments

    def backward(arrays: Any, moments: Array, g: Array) -> Any:
        x, kernel, alpha = arrays
        scale = _scale(kernel, alpha, scaled)
        nothing = jnp.zeros((0, 0, 0, 0), jnp.float32)
        dkernel, dx, _ = _backward(
            geometry, x, kernel, scale, moments, g, nothing.astype(jnp.int16), as_samples(nothing),
            jnp.zeros((0, 0), jnp.float32),
        )  # fmt: skip
        if scaled:
            return dx, dkernel, alpha
        dalpha = jnp.sum(kernel * dkernel, (0, 1, 2)) if alpha.size else alpha
        return dx, dkernel * scale[None, None, None], dalpha

    return differentiable(reference, forward, backward)


def conv_norm(
    reference: Function,
    geometry: Geometry,
    scaled: bool,
    epsilon: float,
    activation: int,
    shortcut_is_input: bool,
) -> Function:
    """Build the function of x, kernel, alpha, gamma, beta, slope, shortcut and an estimate.

        out = activation(batch norm(conv(sign(x), sign(kernel)) * scale) + shortcut)

    Between both only the sums are kept, as 16-bit integers. The arguments are those of `conv` and
    of `norm.batch_norm`; where the shortcut is x itself, it has no elements, and
    `shortcut_is_input` says so. The estimate of the mean is for `reference` alone.
    """

    def forward(
        x: Array,
        kernel: Array,
        alpha: Array,
        gamma: Array,
        beta: Array,
        slope: Array,
        more: Array,
        near: Array,
    ) -> Any:
        del near
        scale = _scale(kernel, alpha, scaled)
        moments, sums, statistics, _ = _forward(geometry, x, kernel, scale, sums=True)
        mean, var = statistics[0] * scale, statistics[1] * jnp.square(scale)
        deviation = jax.lax.rsqrt(var + epsilon)
        channels = Channels(
            statistics[0], gamma * deviation * scale, beta, with_slopes(slope, scale.size)
        )
        shortcut = x if shortcut_is_input else more
        out = normalize(as_samples(sums), shortcut, channels, activation).reshape(sums.shape)
        return (out, mean, var), (moments, sums, channels, deviation)

    def backward(arrays: Any, kept: Any, g: Normalized) -> Any:
        x, kernel, alpha, gamma, _, slope, more, near = arrays
        moments, sums, channels, deviation = kept
        scale = _scale(kernel, alpha, scaled)
        shortcut = x if shortcut_is_input else more
        totals = gradient_sums(g[0], as_samples(sums), shortcut, channels, activation)
        count = sums.size // sums.shape[-1]
        rows = gradient_rows(channels, totals, count, gamma, deviation, scale)
        dkernel, dx, dmore = _backward(
            geometry, x, kernel, scale, moments, g[0], sums, as_samples(more), rows,
            activation=activation, shortcut_is_input=shortcut_is_input, times_scale=not scaled,
        )  # fmt: skip
        dgamma = deviation * scale * totals[1]
        # A norm takes its input's scale away, but for epsilon. So the scale's gradient, which as a
        # sum over pixels is a difference of large numbers, is this:
        dscale = gamma * deviation**3 * epsilon * totals[1]
        return (
            dx,
            dkernel,
            alpha if scaled or not alpha.size else dscale,
            dgamma,
            totals[0],
            totals[2] if slope.size else slope,
            dmore.reshape(more.shape),
            jnp.zeros_like(near),
        )

    return differentiable(reference, forward, backward)


def _scale(kernel: Array, alpha: Array, scaled: bool) -> Array:
    if scaled:
        return jnp.max(jnp.abs(kernel), (0, 1, 2))
    return alpha if alpha.size else jnp.ones(kernel.shape[-1], jnp.float32)


def _forward(geometry: Geometry, x: Array, kernel: Array, scale: Array, *, sums: bool) -> Any:
    """Moments of the samples; the sums and their statistics, or the scaled sums."""
    result = geometry.result(x, kernel)
    nothing = (0, 0, 0, 0)
    return call(
        CONV_FORWARD,
        (
            jax.ShapeDtypeStruct((x.shape[0], 2), jnp.float32),
            jax.ShapeDtypeStruct(result if sums else nothing, jnp.int16),
            jax.ShapeDtypeStruct((2, kernel.shape[-1]) if sums else (0, 0), jnp.float32),
            jax.ShapeDtypeStruct(nothing if sums else result, jnp.float32),
        ),
        x,
        kernel,
        scale,
        **geometry.attributes(),
    )


def _backward(
    geometry: Geometry,
    x: Array,
    kernel: Array,
    scale: Array,
    moments: Array,
    g: Array,
    sums: Array,
    shortcut: Array,
    norm: Array,
    *,
    activation: int = 0,
    shortcut_is_input: bool = False,
    times_scale: bool = False,
) -> Any:
    """Gradients of the kernel, of x and of the shortcut.

    The kernel's is that in conv(sign(x), kernel), or in scale * conv(sign(x), kernel).
    """
    return call(
        CONV_BACKWARD,
        (
            jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
            jax.ShapeDtypeStruct(x.shape, jnp.float32),
            jax.ShapeDtypeStruct(shortcut.shape, jnp.float32),
        ),
        x,
        kernel,
        scale,
        moments,
        g,
        sums,
        shortcut,
        norm,
        **geometry.attributes(),
        estimator=geometry.estimator,
        activation=activation,
        shortcut_is_input=shortcut_is_input,
        times_scale=times_scale,
    )
