"""Bring a split to the devices in batches: from memory, or as a stream."""

from collections.abc import Iterable
from contextlib import closing
from typing import Any

from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data.dataset import Records, Split
from siman_jax.data.feed import Batch, Feed
from siman_jax.data.further import further_augmentation
from siman_jax.data.resident import ResidentFeed, padded_batches
from siman_jax.data.stream import EvaluationStream, StreamFeed
from siman_jax.errors import UsageError


def training_feed(
    split: Split | Records,
    mesh: Mesh,
    data: ConfigDict,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    steps_per_dispatch: int,
    order_key: Array,
    augment_key: Array,
) -> Feed:
    """Make the feed of a training.

    Args:
      split: the training split.
      mesh: the devices.
      data: `config.data`.
      batch_size: examples in a step, over all devices.
      epochs: length of the training.
      seed: decides order and crops of streamed data.
      steps_per_dispatch: number of steps in one call, for data in memory; 0: automatic.
      order_key: PRNG key for the order of data in memory, `[]`; or `[seeds]` for several seeds.
      augment_key: PRNG key for augmentation on the devices, likewise.

    Raises:
      UsageError: the data are streamed, and there are several seeds.
    """
    if isinstance(split, Split):
        return ResidentFeed(
            split,
            mesh,
            order_key,
            augment_key,
            batch_size=batch_size,
            crop_padding=data.crop_padding,
            flip=data.flip,
            further=further_augmentation(data),
            steps_per_dispatch=steps_per_dispatch,
        )
    if order_key.ndim:
        raise UsageError(
            "seeds can train together only on data in memory; set data.resident=True, or train them"
            " one by one."
        )
    return StreamFeed(
        split, mesh, data, augment_key, batch_size=batch_size, epochs=epochs, seed=seed
    )


def evaluation_feed(
    split: Split | Records, mesh: Mesh, data: ConfigDict, batch_size: int
) -> Iterable[Batch]:
    """Make batches with every example of a split in order; can be iterated over again and again.

    Args:
      split: the test split.
      mesh: the devices.
      data: `config.data`.
      batch_size: a multiple of the number of devices; the last batch is padded with label -1.
    """
    if isinstance(split, Split):
        return padded_batches(split, mesh, batch_size)
    return EvaluationStream(split, mesh, data, batch_size)


def first_examples(split: Split | Records, mesh: Mesh, data: ConfigDict, count: int) -> Batch:
    """Bring the first examples of a split to the devices, as evaluation would.

    Args:
      split: the test split.
      mesh: the devices.
      data: `config.data`; no processes are started to read.
      count: how many; a multiple of the number of devices, and at most the size of the split.
    """
    if isinstance(split, Split):
        few = Split(split.images[:count], split.labels[:count])
        return padded_batches(few, mesh, count)[0]
    data = ConfigDict(data.to_dict() | {"workers": 0})
    batches: Any = iter(EvaluationStream(split, mesh, data, count))
    with closing(batches):
        return next(batches)


def damaged_limit(data: ConfigDict) -> int:
    """Return the number of damaged images that an epoch may have; 0 for data in memory."""
    return 0 if data.resident else data.damaged_limit
