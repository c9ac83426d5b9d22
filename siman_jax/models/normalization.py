"""From pixels to what networks take."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Map uint8 0..255 to float32 (x / 255 - mean) / std, per channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    per_channel = (lax.expand_dims(v, range(images.ndim - 1)) for v in (scale, shift))
    scale, shift = per_channel
    return images.astype(jnp.float32) * scale - shift
