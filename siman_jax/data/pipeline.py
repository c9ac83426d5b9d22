"""Read, decode and crop images on the host, in threads or worker processes, with Grain.

The order of the examples and the crop of each depend only on the seed and the position. So the
batch of a step is the same for any number of processes and workers, and reading can start at any
step.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from siman_jax.cores import usable_cores
from siman_jax.data.dataset import DamagedImage, Records, steps_in_epoch
from siman_jax.data.frames import has_more_frames

_THREADS = 4  # each holds a whole batch


class HostBatch(NamedTuple):
    """The rows of a batch that one process reads.

    Attributes:
      images: uint8 `[n, size, size, channels]`; black for images that cannot be decoded.
      labels: int32 `[n]`; -1 for those images, and past the end of the data set.
      indices: int64 `[n]`, numbers of the examples in the data set.
      damage: one line for each image that cannot be decoded.
      first_frames: names of files with several images.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    damage: tuple[str, ...]
    first_frames: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """The rows of each batch that a process reads: part `index` of `count` equal parts."""

    index: int
    count: int


def training_batches(
    records: Records,
    data: ConfigDict,
    share: Share,
    step: int,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
) -> Any:
    """Make the batches from `step` to the end of training.

    An epoch is the full batches of a new permutation; the remaining examples are left out of it.

    Args:
      records: the training split.
      data: with `image_size`, `channels`, `min_area`, `max_area`, `flip`, and the fields of
        `pixel_rules`.
      share: the rows to read.
      step: step of the first batch.
      batch_size: examples of all processes in a step.
      epochs: length of the training.
      seed: decides the order and the crops.

    Returns:
      `grain.MapDataset` of `HostBatch`.
    """
    import grain

    from siman_jax.data.decode import training_image
    from siman_jax.data.pixels import pixel_rules

    decode = partial(
        training_image,
        rules=pixel_rules(data),
        size=data.image_size,
        min_area=data.min_area,
        max_area=data.max_area,
        flip=data.flip,
    )
    used = steps_in_epoch(records, batch_size) * batch_size
    order = grain.MapDataset.range(len(records)).shuffle(seed=seed)[:used]
    read = _ReadBatch(records, decode, _shape(data), seed)
    return _own_batches(order.repeat(epochs), batch_size, share, step).map(read)


def evaluation_batches(records: Records, data: ConfigDict, share: Share, batch_size: int) -> Any:
    """Make batches that contain every example once, in order.

    Args:
      records: the test split.
      data: with `image_size`, `channels`, `shorter_side`, and the fields of `pixel_rules`.
      share: the rows to read.
      batch_size: examples of all processes; the last batch is padded with label -1.

    Returns:
      `grain.MapDataset` of `HostBatch`.
    """
    import grain

    from siman_jax.data.decode import evaluation_image
    from siman_jax.data.pixels import pixel_rules

    decode = partial(
        evaluation_image,
        rules=pixel_rules(data),
        size=data.image_size,
        resize=data.shorter_side,
    )
    padded = -(-len(records) // batch_size) * batch_size
    read = _ReadBatch(records, decode, _shape(data), seed=None)
    return _own_batches(grain.MapDataset.range(padded), batch_size, share, 0).map(read)


def read_ahead(batches: Any, workers: int) -> Any:
    """Read batches in the background.

    Args:
      batches: `grain.MapDataset`.
      workers: number of processes, each of which reads a batch at a time; 0: a few threads of this
        process.

    Returns:
      `grain.IterDataset` of the same elements in the same order.
    """
    import grain

    if not flags.FLAGS.is_parsed():  # Grain reads flags, which a notebook does not parse
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else min(len(usable_cores()), _THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    stream = batches.to_iter_dataset(options)
    return stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_live_as_long_as_parent
    )


def start_reading(batches: Any) -> None:
    """Start threads and workers that ignore SIGTERM and Ctrl-C, which the training handles.

    These signals go to the whole process group, and may reach a worker while it still imports
    modules. So they are blocked in this thread while it starts the workers, which inherit that.

    Args:
      batches: iterator of `grain.experimental.ThreadPrefetchIterDataset`.
    """
    resource_tracker.ensure_running()  # now, because starting it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        batches.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_as_long_as_parent(index: int, count: int) -> None:
    del index, count
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _own_batches(numbers: Any, batch_size: int, share: Share, first: int) -> Any:
    """Positions and numbers of this process's examples, in the batches from `first` on.

    The parts of all processes are adjacent in the order, and together they are the batch.
    """
    parts = numbers.batch(batch_size // share.count).map_with_index(_with_positions)
    return parts[first * share.count + share.index :: share.count]


def _with_positions(part: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return part * len(numbers) + np.arange(len(numbers)), numbers


@dataclass(frozen=True)
class _ReadBatch:
    """Reads a batch, given the positions and numbers of its examples.

    Attributes:
      records: the examples.
      decode: function from bytes to pixels, which it writes to `out`; with a seed, it also takes a
        random generator.
      shape: shape of an image.
      seed: seed of the examples' generators, beside their positions; None for no generators.
    """

    records: Records
    decode: Callable[..., np.ndarray]
    shape: tuple[int, int, int]
    seed: int | None

    def __call__(self, examples: tuple[np.ndarray, np.ndarray]) -> HostBatch:
        positions, numbers = examples
        images = np.empty((len(numbers), *self.shape), np.uint8)
        labels = np.full(len(numbers), -1, np.int32)
        damage, first_frames = [], []
        generators = None if self.seed is None else _Generators(self.seed)
        for row, (position, number) in enumerate(zip(positions, numbers, strict=True)):
            if number >= len(self.records):
                images[row] = 0
                continue
            name = f"example {number}"
            try:
                data, label, name = self.records[int(number)]
                draws = () if generators is None else (generators.at(int(position)),)
                self.decode(data, *draws, out=images[row])
                labels[row] = label
                if has_more_frames(data):
                    first_frames.append(name)
            except (OSError, DamagedImage) as error:
                images[row] = 0
                damage.append(f"{name}: {error}")
        return HostBatch(images, labels, numbers, tuple(damage), tuple(first_frames))


class _Generators:
    """A random generator for each position; one object is reused, since making one takes 10 us."""

    def __init__(self, seed: int) -> None:
        # Philox uses its key directly; other generators hash it first, which is slower.
        self._bits = np.random.Philox(key=seed << 64)
        self._start = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, position: int) -> np.random.Generator:
        """The generator, reset to the start of the numbers for a position."""
        self._start["state"]["key"][0] = position
        self._bits.state = self._start
        return self._generator


def _shape(data: ConfigDict) -> tuple[int, int, int]:
    return data.image_size, data.image_size, data.channels
