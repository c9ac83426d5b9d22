"""Data sets that do not fit in memory: streamed to the devices during training.

The step in a checkpoint is the position in the stream. A resumed run neither repeats nor skips an
example, on any number of devices.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data.dataset import Records, steps_in_epoch
from siman_jax.data.feed import Batch
from siman_jax.data.frames import say_first_frame
from siman_jax.data.further import further_augmentation
from siman_jax.data.pipeline import (
    HostBatch,
    Share,
    evaluation_batches,
    read_ahead,
    start_reading,
    training_batches,
)
from siman_jax.devices.mesh import by_example, put_local_rows, replicated

_BATCHES_AHEAD = 2  # on the devices, beside the one in use

_log = logging.getLogger(__name__)


class StreamFeed:
    """Crops and flips on the host, and sends uint8 images to the devices, which augment further.

    Args:
      records: the training split.
      mesh: the devices.
      data: `config.data`, as for `training_batches`, with `workers`.
      augment_key: PRNG key of the further augmentation, `[]`.
      batch_size, epochs, seed: as for `training_batches`.
    """

    steps_per_call = 1

    def __init__(
        self,
        records: Records,
        mesh: Mesh,
        data: ConfigDict,
        augment_key: Array,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
    ) -> None:
        self.steps_per_epoch = steps_in_epoch(records, batch_size)
        self._augment_key = jax.jit(lambda key: key, out_shardings=replicated(mesh))(augment_key)
        self._further = further_augmentation(data)
        images = (batch_size, data.image_size, data.image_size, data.channels)
        batch = Batch._make(
            jax.ShapeDtypeStruct(shape, dtype, sharding=by_example(mesh))
            for shape, dtype in ((images, jnp.uint8), ((batch_size,), jnp.int32))
        )
        self.abstract = (batch, self._augment_key)
        self._batches_from = partial(
            training_batches, records, data, batch_size=batch_size, epochs=epochs, seed=seed
        )
        self._mesh, self._workers = mesh, data.workers
        self._batches: Any = None
        self._next_step = -1

    def calls(self, step: int) -> Iterator[tuple[Any, int]]:
        """Yield one batch for every call; see `Feed.calls`."""
        if step != self._next_step:
            self.close()
            local = self._batches_from(_own_share(), step)
            self._batches = _to_devices(local, self._mesh, self._workers)
            self._next_step = step
        for _ in range(self.steps_per_epoch - step % self.steps_per_epoch):
            self._next_step += 1
            yield (next(self._batches), self._augment_key), 1

    def take(self, inputs: tuple[Any, Array], step: Array) -> Batch:
        """Augment the batch further; see `Feed.take`."""
        (images, labels), augment_key = inputs
        return self._further(jax.random.fold_in(augment_key, step), images, labels)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


@dataclass(frozen=True)
class EvaluationStream:
    """Batches with every example of a split in order; can be iterated over again and again.

    Attributes:
      records: the split.
      mesh: the devices.
      data: `config.data`, as for `evaluation_batches`, with `workers`.
      batch_size: a multiple of the number of devices; the last batch is padded with label -1.
    """

    records: Records
    mesh: Mesh
    data: ConfigDict
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        local = evaluation_batches(self.records, self.data, _own_share(), self.batch_size)
        batches = _to_devices(local, self.mesh, self.data.workers)
        try:
            yield from batches
        finally:
            batches.close()


def _own_share() -> Share:
    return Share(jax.process_index(), jax.process_count())


def _to_devices(batches: Any, mesh: Mesh, workers: int) -> Any:
    """Put the batches that are read on the devices ahead of time; log damaged images."""
    from grain.experimental import ThreadPrefetchIterDataset

    def put(batch: HostBatch) -> Batch:
        for line in batch.damage:
            _log.warning("left out a damaged image: %s", line)
        for name in batch.first_frames:
            say_first_frame(name)
        return Batch(*put_local_rows(mesh, (batch.images, batch.labels)))

    stream = read_ahead(batches, workers).map(put)
    ahead = iter(ThreadPrefetchIterDataset(stream, prefetch_buffer_size=_BATCHES_AHEAD))
    start_reading(ahead)
    return ahead
