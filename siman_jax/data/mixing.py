"""Images with a part cut out, and mixtures of two images, as part of the compiled program.

Two images are mixed that follow each other in the batch, whose order is random; the first one is
mixed with the last.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.data.feed import Batch, MixedLabels


def cutout(key: Array, images: Array, side: int, fill: Sequence[float]) -> Array:
    """Fill a square of each image with one colour.

    The centre is a pixel of the image, so that a part of the square may lie outside.

    Args:
      key: PRNG key.
      images: `[n, height, width, channels]`, from 0 to 255.
      side: side of the square, in pixels.
      fill: level of each channel, from 0 to 255.

    Returns:
      float32, shape of `images`.

    Source: DeVries and Taylor, arXiv 1708.04552 (2017).
    """
    n, height, width, _ = images.shape
    hole = _rectangles(key, n, height, width, jnp.full(2, side, jnp.int32))
    level = jnp.float32(fill)[None, None, None]
    return jnp.where(hole, level, images.astype(jnp.float32))


def mixup(key: Array, images: Array, labels: Array, alpha: float) -> Batch:
    """Take the weighted mean of each image and its neighbour, and mix their labels likewise.

        x_i <- s x_i + (1 - s) x_(i-1),    s from Beta(alpha, alpha), one for the batch

    Where an example of the two does not count, the image stays.

    Args:
      key: PRNG key.
      images: `[n, height, width, channels]`, from 0 to 255.
      labels: int32 `[n]`; examples with a negative label do not count.
      alpha: above 0; the larger, the nearer is s to 1/2.

    Returns:
      float32 images, and `MixedLabels`.

    Source: Zhang et al., arXiv 1710.09412 (2017).
    """
    images, others = _with_neighbours(images)
    mixed = _mixed(labels, jax.random.beta(key, alpha, alpha, dtype=jnp.float32))
    share = mixed.share[:, None, None, None]
    return Batch(share * images + (1 - share) * others, mixed)


def cutmix(key: Array, images: Array, labels: Array, alpha: float) -> Batch:
    """Replace a rectangle of each image by that of its neighbour, and mix labels by area.

    One rectangle is drawn for the batch: s from Beta(alpha, alpha); its sides are those of the
    image times sqrt(1 - s), in whole pixels. Its centre is a pixel of the image, so that a part of
    it may lie outside; the share of an image is the area that is left to it.

    Where an example of the two does not count, the image stays.

    Args:
      key: PRNG key.
      images: `[n, height, width, channels]`, from 0 to 255.
      labels: int32 `[n]`; examples with a negative label do not count.
      alpha: above 0.

    Returns:
      float32 images, and `MixedLabels`.

    Source: Yun et al., arXiv 1905.04899 (2019).
    """
    share_key, place_key = jax.random.split(key)
    images, others = _with_neighbours(images)
    _, height, width, _ = images.shape
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    sides = (jnp.float32([height, width]) * side).astype(jnp.int32)
    inside = _rectangles(place_key, 1, height, width, sides)
    mixed = _mixed(labels, 1 - jnp.mean(inside, dtype=jnp.float32))
    inside &= (mixed.share < 1)[:, None, None, None]
    return Batch(jnp.where(inside, others, images), mixed)


def _with_neighbours(images: Array) -> tuple[Array, Array]:
    images = images.astype(jnp.float32)
    return images, jnp.roll(images, 1, axis=0)


def _mixed(labels: Array, share: Array) -> MixedLabels:
    others = jnp.roll(labels, 1)
    return MixedLabels(labels, others, jnp.where((labels >= 0) & (others >= 0), share, 1))


def _rectangles(key: Array, n: int, height: int, width: int, sides: Array) -> Array:
    """Masks of n rectangles with random centres, bool `[n, height, width, 1]`.

    Args:
      key: PRNG key.
      n: how many.
      height: of the image.
      width: of the image.
      sides: int32 `[2]`, height and width of the rectangles.
    """
    centres = jax.random.randint(key, (n, 2), 0, jnp.array([[height, width]]))
    start = centres - (sides // 2)[None]
    stop = start + sides[None]

    def within(axis: int, length: int) -> Array:
        at = jnp.arange(length)[None]
        return (start[:, axis, None] <= at) & (at < stop[:, axis, None])

    return (within(0, height)[:, :, None] & within(1, width)[:, None])[..., None]
