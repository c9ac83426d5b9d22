"""Native batch norm for training, with the shortcut and the activation after it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.native.dispatch import Function, differentiable
from siman_jax.native.library import (
    NORM_BACKWARD,
    NORM_FORWARD,
    NORM_STATISTICS,
    NORM_SUMS,
    call,
)

# The library's numbers for activations.
NONE, PRELU, HARD_TANH = range(3)


class Channels(NamedTuple):
    """The coefficients of a norm for each channel, all `[channels]`.

    z = (y - centre) * gain + offset + shortcut
    """

    centre: Array
    gain: Array
    offset: Array
    slope: Array  # of the PReLU


def batch_norm(reference: Function, epsilon: float, activation: int) -> Function:
    """Build a native batch norm with shortcut and activation.

        out = activation((y - mean(y)) / sqrt(var(y) + epsilon) * gamma + beta + shortcut)

    It is a function of y `[..., channels]`, gamma, beta, slope, shortcut and an estimate of the
    mean. The shortcut is empty if there is none; slopes are the PReLU's, `[channels]`, or empty.
    Only `reference` uses the estimate, `[channels]`. The results are out, mean, variance, and what
    `chain.Source` needs: rows and sums.

    Args:
      reference: the same function in `jax.numpy`; returns out, mean and variance, the latter two
        `[channels]` and without a derivative.
      epsilon: added to the variance.
      activation: `NONE`, `PRELU` or `HARD_TANH`.
    """

    def forward(
        y: Array, gamma: Array, beta: Array, slope: Array, shortcut: Array, near: Array
    ) -> Any:
        del near
        images = as_samples(y)
        shape = jax.ShapeDtypeStruct((2, y.shape[-1]), jnp.float32)
        mean, var = call(NORM_STATISTICS, shape, images)
        deviation = jax.lax.rsqrt(var + epsilon)
        channels = Channels(mean, gamma * deviation, beta, with_slopes(slope, y.shape[-1]))
        stacked = jnp.stack(channels)
        out = normalize(images, shortcut, stacked, activation).reshape(y.shape)
        return (out, mean, var, stacked, no_sums(y.shape[-1])), (channels, deviation)

    def backward(arrays: Any, kept: Any, g: Any) -> Any:
        y, gamma, _, slope, shortcut, near = arrays
        channels, deviation = kept
        images = as_samples(y)
        sums = g[4]
        rows = gradient_rows(channels, sums, y.size // y.shape[-1], gamma, deviation)
        dy, dshortcut = call(
            NORM_BACKWARD,
            (
                jax.ShapeDtypeStruct(images.shape, jnp.float32),
                jax.ShapeDtypeStruct(as_samples(shortcut).shape, jnp.float32),
            ),
            g[0].reshape(images.shape),
            images,
            as_samples(shortcut),
            rows,
            activation=activation,
        )
        return (
            dy.reshape(y.shape),
            sums[1] * deviation,
            sums[0],
            sums[2] if slope.size else slope,
            dshortcut.reshape(shortcut.shape),
            jnp.zeros_like(near),
        )

    def whole(y: Array, *arrays: Array) -> Any:
        channels = y.shape[-1]
        return *reference(y, *arrays), jnp.zeros((4, channels), jnp.float32), no_sums(channels)

    return differentiable(whole, forward, backward)


def no_sums(channels: int) -> Array:
    """Return zeros, whose cotangent are the sums of a norm's gradient."""
    return jnp.zeros((3, channels), jnp.float32)


def as_samples(x: Array) -> Array:
    """Reshape to `[samples, pixels, channels]`; an empty array to `[0, 0, 0]`."""
    if not x.size:
        return x.reshape(0, 0, 0)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def with_slopes(slope: Array, channels: int) -> Array:
    """Return the slopes, or zeros if they are empty."""
    return slope if slope.size else jnp.zeros(channels, jnp.float32)


def normalize(y: Array, shortcut: Array, rows: Array, activation: int) -> Array:
    """Normalize y `[samples, pixels, channels]`, add the shortcut and activate; y may be int16."""
    return call(
        NORM_FORWARD,
        jax.ShapeDtypeStruct(y.shape, jnp.float32),
        y,
        as_samples(shortcut),
        rows,
        activation=activation,
    )


def gradient_sums(g: Array, y: Array, shortcut: Array, rows: Array, activation: int) -> Array:
    """Sum dz, dz * (y - centre) and the slope's gradient over pixels: `[3, channels]`."""
    return call(
        NORM_SUMS,
        jax.ShapeDtypeStruct((3, y.shape[-1]), jnp.float32),
        g.reshape(y.shape),
        y,
        as_samples(shortcut),
        rows,
        activation=activation,
    )


def gradient_rows(
    channels: Channels, sums: Array, count: int, gamma: Array, deviation: Array, scale: Any = 1.0
) -> Array:
    """Compute the library's coefficients for a norm and its gradient: `[7, channels]`.

        dy = gamma * deviation * (dz - mean(dz) - normalized(y) * mean(dz * normalized(y)))

    Args:
      channels: of the norm, for its inputs y / scale.
      sums: from `gradient_sums`, for the same inputs.
      count: how many pixels there are.
      gamma: of the norm.
      deviation: 1 / the deviation of y.
      scale: the factor between inputs and y.
    """
    gain = gamma * deviation
    slant = gain * jnp.square(scale * deviation) * sums[1] / count
    return jnp.stack([*channels, gain, gain * sums[0] / count, slant])
