"""Random crop and flip, as part of the compiled program."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def random_crop(key: Array, images: Array, padding: int) -> Array:
    """Pad with zeros on every side, then crop each image at a random position.

    Args:
      key: PRNG key.
      images: `[n, height, width, channels]`.
      padding: pixels on each side.

    Returns:
      Array with the shape and dtype of `images`.
    """
    n, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)
    return jax.vmap(lambda image, yx: lax.dynamic_slice(image, (yx[0], yx[1], 0), shape))(
        padded, offsets
    )


def random_flip(key: Array, images: Array) -> Array:
    """Mirror each image left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def augment(key: Array, images: Array, crop_padding: int, flip: bool) -> Array:
    """Crop with `crop_padding` pixels of padding (0: no crop), and flip if `flip` is set."""
    crop_key, flip_key = jax.random.split(key)
    if crop_padding:
        images = random_crop(crop_key, images, crop_padding)
    return random_flip(flip_key, images) if flip else images
