"""The augmentation beyond crop and flip that a config asks for, in memory and streamed alike."""

from collections.abc import Callable

import jax
from jax import Array, lax
from ml_collections import ConfigDict

from siman_jax.data.colors import color_jitter, lighting
from siman_jax.data.feed import Batch
from siman_jax.data.mixing import cutmix, cutout, mixup

# Function from a PRNG key, images `[n, height, width, channels]` from 0 to 255, and int32 labels
# `[n]` to the augmented batch.
Further = Callable[[Array, Array, Array], Batch]
# Folded into the key of a step; `augment.augment` splits that key into two, numbers 0 and 1.
FURTHER = 2


def further_augmentation(data: ConfigDict) -> Further:
    """Return the function that augments a batch on the devices, once it is cropped and flipped.

    It applies colour jitter, lighting, cutout, and mixup or cutmix, in this order. If both of the
    last are on, each batch gets one of them, with probability 1/2. If all are off, images and
    labels stay as they are.

    Args:
      data: with `color_jitter`, `lighting`, `cutout`, `mixup` and `cutmix`, each 0 for off; and
        `mean`, with which cutout fills.
    """

    def augment(key: Array, images: Array, labels: Array) -> Batch:
        color_key, light_key, hole_key, choice_key, mix_key = jax.random.split(key, 5)
        if data.color_jitter:
            images = color_jitter(color_key, images, data.color_jitter)
        if data.lighting:
            images = lighting(light_key, images, data.lighting)
        if data.cutout:
            images = cutout(hole_key, images, data.cutout, [255 * level for level in data.mean])
        if data.mixup and data.cutmix:
            return lax.cond(
                jax.random.bernoulli(choice_key),
                lambda: mixup(mix_key, images, labels, data.mixup),
                lambda: cutmix(mix_key, images, labels, data.cutmix),
            )
        if data.mixup:
            return mixup(mix_key, images, labels, data.mixup)
        if data.cutmix:
            return cutmix(mix_key, images, labels, data.cutmix)
        return Batch(images, labels)

    return augment


def no_further(key: Array, images: Array, labels: Array) -> Batch:
    """Return images and labels as they are."""
    del key
    return Batch(images, labels)
