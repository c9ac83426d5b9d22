"""Data sets that fit on the device: uploaded once, shuffled and cut into batches there."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from siman_jax.data.dataset import Split


class Resident(NamedTuple):
    """A split on the device: uint8 `images` `[n, h, w, c]` and int32 `labels` `[n]`."""

    images: Array
    labels: Array


def upload(split: Split) -> Resident:
    """Copy a split to the default device."""
    return Resident(jnp.asarray(split.images), jnp.asarray(split.labels))


def epoch_order(key: Array, epoch: Array, n: int) -> Array:
    """Order of the examples in an epoch: int32 `[n]`, a permutation drawn from key and epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


def take_batch(data: Resident, order: Array, index: Array, batch_size: int) -> Resident:
    """Batch number `index` of an epoch; the last n % batch_size examples of an order sit out."""
    rows = lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
    return Resident(data.images[rows], data.labels[rows])


def padded_batches(split: Split, batch_size: int) -> Iterator[Resident]:
    """Every example in order, in batches of one shape; what fills up the last has label -1."""
    for start in range(0, len(split), batch_size):
        images = split.images[start : start + batch_size]
        labels = split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        yield Resident(
            jnp.asarray(np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))),
            jnp.asarray(np.pad(labels, (0, missing), constant_values=-1)),
        )
