"""Random changes of colour, as part of the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Rec. 601, as Pillow converts colours to grey.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Principal components of the colours of ImageNet's pixels, from 0 to 1: standard deviations, and
# unit vectors as columns.
DEVIATIONS = np.array([0.2175, 0.0188, 0.0045], np.float32)
COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)


def color_jitter(key: Array, images: Array, strength: float) -> Array:
    """Change brightness, contrast and saturation of each image by factors in 1 -+ `strength`.

        x <- b x
        x <- c x + (1 - c) m,    m: mean luma of the image
        x <- s x + (1 - s) y,    y: luma of each pixel

    b, c and s are uniform, and drawn for each image. Values are cut to 0..255 only at the end, so
    the three changes commute. Images of one channel are their own luma, so s has no effect.

    Args:
      key: PRNG key.
      images: `[n, height, width, channels]`, from 0 to 255.
      strength: from 0 to 1.

    Returns:
      float32, shape of `images`.
    """
    factors = jax.random.uniform(key, (3, len(images), 1, 1, 1), jnp.float32, -1, 1)
    brightness, contrast, saturation = 1 + strength * factors
    images = brightness * images.astype(jnp.float32)
    images = contrast * images + (1 - contrast) * jnp.mean(_luma(images), (1, 2), keepdims=True)
    images = saturation * images + (1 - saturation) * _luma(images)
    return jnp.clip(images, 0, 255)


def lighting(key: Array, images: Array, deviation: float) -> Array:
    """Shift the colours of each image along the principal components of ImageNet's.

        x <- x + 255 * sum_k a_k d_k v_k

    a_k is normal with standard deviation `deviation`, drawn for each image; d_k and v_k are the
    standard deviations and directions of the components. Values are not cut to 0..255.

    Args:
      key: PRNG key.
      images: `[n, height, width, 3]`, from 0 to 255.
      deviation: 0.1 in the paper.

    Returns:
      float32, shape of `images`.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks"
    (2012), section 4.1; the numbers are those that PyTorch programs use.
    """
    amounts = 255 * deviation * jax.random.normal(key, (len(images), 3), jnp.float32)
    shifts = jnp.einsum("nk,ck->nc", amounts, DEVIATIONS * COMPONENTS, precision="highest")
    return images.astype(jnp.float32) + shifts[:, None, None]


def _luma(images: Array) -> Array:
    """Luma of each pixel, `[n, height, width, 1]`."""
    if images.shape[-1] == 1:
        return images
    return jnp.einsum("nhwc,c->nhw", images, LUMA, precision="highest")[..., None]
