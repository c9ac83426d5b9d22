"""Normalization of images: from pixels to the input of a network."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Map pixels to (x / 255 - mean) / std, per channel.

    Args:
      images: `[..., channels]`, from 0 to 255, of any dtype.
      mean: of each channel, for pixels from 0 to 1.
      std: of each channel, likewise.

    Returns:
      float32, shape of `images`.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    per_channel = (lax.expand_dims(v, range(images.ndim - 1)) for v in (scale, shift))
    scale, shift = per_channel
    return images.astype(jnp.float32) * scale - shift
