"""Native binary convolutions for training: alone, or together with the batch norm after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.native.dispatch import Function, differentiable, without_gradient
from siman_jax.native.library import CONV_BACKWARD, CONV_FORWARD, call
from siman_jax.native.norm import (
    Channels,
    as_samples,
    gradient_rows,
    no_sums,
    normalize,
    with_slopes,
)

# The library's numbers for estimates of the derivative of a sign at u:
# 1, max(0, 2 - 2|u|) and 1[|u| <= 1].
ONE, APPROX, STRAIGHT_THROUGH = range(3)

# Sums are kept in 16 bits.
_MOST_TERMS = 2**15 - 1
# Offsets within a row are 16 bits too, with sixteen sums per pixel.
_MOST_COLUMNS = 2048


@dataclass(frozen=True)
class Geometry:
    """The settings of a convolution that do not follow from its operands.

    Attributes:
      strides: step, in both directions.
      padding: zeros before and after, for height and width.
      estimator: `ONE`, `APPROX` or `STRAIGHT_THROUGH`.
      centred: whether signs are taken about a sample's mean, with u standardized; otherwise about
        0.

    Raises:
      ValueError: a stride is below 1, padding is negative, or the estimator is unknown.
    """

    strides: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    estimator: int
    centred: bool

    def __post_init__(self) -> None:
        if self.strides < 1 or min(pixels for side in self.padding for pixels in side) < 0:
            raise ValueError(
                f"the strides are {self.strides} and the padding is {self.padding}; expected"
                " strides of 1 or more, and no negative padding."
            )
        if self.estimator not in range(3):
            raise ValueError(f"the estimator is {self.estimator}; expected 0, 1 or 2.")

    def result(self, x: Array, kernel: Array) -> tuple[int, ...]:
        """Return the shape of the result.

        Raises:
          ValueError: the kernel has other channels, or is larger than the padded input.
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
            raise ValueError(f"the kernel, {kernel.shape[:2]}, is larger than the padded input.")
        return (x.shape[0], *sizes, kernel.shape[-1])

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the library's calls."""
        (top, _), (left, _) = self.padding
        return {"stride": self.strides, "top": top, "left": left, "centred": self.centred}


def fits(x: Array, kernel_shape: tuple[int, ...]) -> bool:
    """Tell whether the library can compute such a convolution: sums fit, and it is not empty."""
    taps_down, taps_across, channels, _ = kernel_shape
    terms = taps_down * taps_across * channels
    empty = min(*x.shape, *kernel_shape) == 0
    return terms <= _MOST_TERMS and x.shape[2] <= _MOST_COLUMNS and not empty


def conv(reference: Function, geometry: Geometry, scaled: bool) -> Function:
    """Build a native binary convolution: a function of x, the kernel and alpha.

        y = conv(sign(x), sign(kernel)) * scale

    Args:
      reference: the same function in `jax.numpy`.
      geometry: of the convolution.
      scaled: if True, each filter of the kernel has a magnitude, which is the scale, and the
        gradient is that of conv(sign(x), kernel). If False, the kernel is +-1 and alpha is the
        scale; an empty alpha means 1.
    """

    def forward(x: Array, kernel: Array, alpha: Array) -> Any:
        scale = _scale(kernel, alpha, scaled)
        moments, _, _, y, _ = _forward(geometry, x, kernel, scale, sums=False)
        return y, moments

    def backward(arrays: Any, moments: Array, g: Array) -> Any:
        x, kernel, alpha = arrays
        scale = _scale(kernel, alpha, scaled)
        nothing = jnp.zeros((0, 0, 0, 0), jnp.float32)
        dkernel, dx, _, _ = _backward(
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
    before: int | None,
) -> Function:
    """Build a native convolution with batch norm, shortcut and activation.

        out = activation(batch norm(conv(sign(x), sign(kernel)) * scale) + shortcut)

    It is a function of x, kernel, alpha, gamma, beta, slope, shortcut and an estimate of the mean,
    as for `conv` and `norm.batch_norm`. Only the sums are kept for the backward, as 16-bit
    integers. If the shortcut is x itself, `shortcut_is_input` is True and the argument is empty.
    Only `reference` uses the estimate. The results are out, mean, variance, and what `chain.Source`
    needs: rows, sums, y and the shortcut.

    If x is the result of a norm, `before` is its activation, and `chain.Source.arrays` follow as
    further arguments. The library computes x from them.
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
        *source: Array,
    ) -> Any:
        del near
        scale = _scale(kernel, alpha, scaled)
        moments, sums, statistics, _, made = _forward(
            geometry, x, kernel, scale, sums=True, source=source, before=before
        )
        if source:
            x = made
        mean, var = statistics[0] * scale, statistics[1] * jnp.square(scale)
        deviation = jax.lax.rsqrt(var + epsilon)
        channels = Channels(
            statistics[0], gamma * deviation * scale, beta, with_slopes(slope, scale.size)
        )
        y, rows = as_samples(sums), jnp.stack(channels)
        shortcut = as_samples(x if shortcut_is_input else more)
        out = normalize(y, shortcut, rows, activation).reshape(sums.shape)
        results = out, mean, var, rows, no_sums(scale.size), y, shortcut
        return results, (x, moments, sums, channels, deviation)

    def backward(arrays: Any, kept: Any, g: Any) -> Any:
        _, kernel, alpha, gamma, _, slope, more, near, *source = arrays
        x, moments, sums, channels, deviation = kept
        scale = _scale(kernel, alpha, scaled)
        totals = g[4]
        count = sums.size // sums.shape[-1]
        rows = gradient_rows(channels, totals, count, gamma, deviation, scale)
        dkernel, dx, dmore, dsource = _backward(
            geometry, x, kernel, scale, moments, g[0], sums, as_samples(more), rows,
            activation=activation, shortcut_is_input=shortcut_is_input, times_scale=not scaled,
            source=source, before=before,
        )  # fmt: skip
        dgamma = deviation * scale * totals[1]
        # The norm cancels the scale of its input except for epsilon. Summed over pixels, the
        # scale's gradient would be a small difference of large numbers; this is its closed form.
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
            *map(without_gradient, source[:3]),
            *([dsource] if source else []),
        )

    def whole(*arrays: Array) -> Any:
        x, kernel = arrays[:2]
        result = geometry.result(x, kernel)
        samples = (result[0], result[1] * result[2], result[3])
        shortcut = as_samples(x if shortcut_is_input else arrays[6])
        return (
            *reference(*arrays[:8]),
            jnp.zeros((4, result[3]), jnp.float32),
            no_sums(result[3]),
            jnp.zeros(samples, jnp.int16),
            jnp.zeros_like(shortcut),
        )

    return differentiable(whole, forward, backward)


def _scale(kernel: Array, alpha: Array, scaled: bool) -> Array:
    if scaled:
        return jnp.max(jnp.abs(kernel), (0, 1, 2))
    return alpha if alpha.size else jnp.ones(kernel.shape[-1], jnp.float32)


def _forward(
    geometry: Geometry,
    x: Array,
    kernel: Array,
    scale: Array,
    *,
    sums: bool,
    source: Sequence[Array] = (),
    before: int | None = None,
) -> Any:
    """Return the samples' moments, the sums, their statistics, the scaled sums, and x.

    With `sums` the scaled sums are empty, otherwise the two before them. x is empty unless it is
    computed from a source.
    """
    result = geometry.result(x, kernel)
    nothing = (0, 0, 0, 0)
    given = jnp.zeros(nothing, jnp.float32) if source else x
    return call(
        CONV_FORWARD,
        (
            jax.ShapeDtypeStruct((x.shape[0], 2), jnp.float32),
            jax.ShapeDtypeStruct(result if sums else nothing, jnp.int16),
            jax.ShapeDtypeStruct((2, kernel.shape[-1]) if sums else (0, 0), jnp.float32),
            jax.ShapeDtypeStruct(nothing if sums else result, jnp.float32),
            jax.ShapeDtypeStruct(x.shape if source else nothing, jnp.float32),
        ),
        given,
        kernel,
        scale,
        *_norm_before(source),
        **geometry.attributes(),
        before_activation=before or 0,
    )


def _norm_before(source: Sequence[Array]) -> Sequence[Array]:
    """Return the inputs, the shortcut and the rows of the norm before a convolution."""
    if source:
        return source[:3]
    return (*[jnp.zeros((0, 0, 0), jnp.float32)] * 2, jnp.zeros((0, 0), jnp.float32))


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
    source: Sequence[Array] = (),
    before: int | None = None,
) -> Any:
    """Return the gradients of the kernel, of x, of the shortcut and of the source's sums.

    The kernel's is that of conv(sign(x), kernel), or with `times_scale` that of
    scale * conv(sign(x), kernel).
    """
    return call(
        CONV_BACKWARD,
        (
            jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
            jax.ShapeDtypeStruct(x.shape, jnp.float32),
            jax.ShapeDtypeStruct(shortcut.shape, jnp.float32),
            jax.ShapeDtypeStruct((3, x.shape[-1]) if source else (0, 0), jnp.float32),
        ),
        x,
        kernel,
        scale,
        moments,
        g,
        sums,
        shortcut,
        norm,
        *_norm_before(source),
        **geometry.attributes(),
        estimator=geometry.estimator,
        activation=activation,
        shortcut_is_input=shortcut_is_input,
        times_scale=times_scale,
        before_activation=before or 0,
    )
