"""Images read, decoded and cropped on the host, in threads or worker processes, by Grain.

The order of the examples and each one's crop depend on the seed and the position alone, so batch
number s of a run is the same for any number of processes and workers, and reading can begin at
any s.
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

from siman_jax.data.dataset import DamagedImage, Records, steps_in_epoch
from siman_jax.data.frames import has_more_frames

_THREADS = 4  # each holds a whole batch


class HostBatch(NamedTuple):
    """Rows of a batch that one process reads.

    Attributes:
      images: uint8 `[n, size, size, channels]`; black where none could be decoded.
      labels: int32 `[n]`; -1 there, and beyond the end of the data set.
      indices: int64 `[n]`, numbers of the examples in the data set.
      damage: a line for each image that could not be decoded.
      first_frames: names of the images that are the first of several in a file.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    damage: tuple[str, ...]
    first_frames: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """Which rows of each batch this process reads: part `index` of `count` equal ones."""

    index: int
    count: int


def training_batches(records: Records, config: ConfigDict, share: Share, step: int) -> Any:
    """Rows of the batches from `step` to the end of training.

    An epoch is the full batches of a fresh permutation; the rest sits out that epoch.

    Args:
      records: the training split.
      config: of the run; with `seed`, and `batch_size` of all processes together.
      share: the rows to read.
      step: of the first batch.

    Returns:
      `grain.MapDataset` of `HostBatch`.
    """
    import grain

    from siman_jax.data.decode import training_image
    from siman_jax.data.pixels import pixel_rules

    options = config.data
    decode = partial(
        training_image,
        rules=pixel_rules(options),
        size=options.image_size,
        min_area=options.min_area,
        max_area=options.max_area,
        flip=options.flip,
    )
    used = steps_in_epoch(records, config.batch_size) * config.batch_size
    order = grain.MapDataset.range(len(records)).shuffle(seed=config.seed)[:used]
    numbers = order.repeat(config.epochs)
    read = _ReadBatch(records, decode, _shape(options), config.seed)
    return _own_batches(numbers, config.batch_size, share, step).map(read)


def evaluation_batches(records: Records, config: ConfigDict, share: Share, batch_size: int) -> Any:
    """Rows of the batches that hold every example once, in order.

    Args:
      records: the test split.
      config: of the run.
      share: the rows to read.
      batch_size: of all processes together; the last batch is filled up with label -1.

    Returns:
      `grain.MapDataset` of `HostBatch`.
    """
    import grain

    from siman_jax.data.decode import evaluation_image
    from siman_jax.data.pixels import pixel_rules

    options = config.data
    decode = partial(
        evaluation_image,
        rules=pixel_rules(options),
        size=options.image_size,
        resize=options.shorter_side,
    )
    padded = -(-len(records) // batch_size) * batch_size
    read = _ReadBatch(records, decode, _shape(options), seed=None)
    return _own_batches(grain.MapDataset.range(padded), batch_size, share, 0).map(read)


def read_ahead(batches: Any, workers: int) -> Any:
    """Read batches in the background.

    Args:
      batches: `grain.MapDataset`.
      workers: processes to read in, each a batch at a time; 0 for a few threads of this one.

    Returns:
      `grain.IterDataset` of the same elements in the same order.
    """
    import grain

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own; a notebook has none
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else min(os.cpu_count() or 1, _THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    stream = batches.to_iter_dataset(options)
    return stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_live_as_long_as_parent
    )


def start_reading(batches: Any) -> None:
    """Start threads and workers, which leave SIGTERM and Ctrl-C to the process that trains.

    A whole process group gets these signals, and a worker may while it still imports modules: so
    they are blocked from its birth, which it inherits from the thread that starts it.

    Args:
      batches: iterator of `grain.experimental.ThreadPrefetchIterDataset`.
    """
    resource_tracker.ensure_running()  # it unblocks them in the thread that it is started from
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
    """Positions and numbers of examples, in this process's parts of the batches from `first` on.

    The parts of all processes lie side by side in the order, so that together they are the batch.
    """
    parts = numbers.batch(batch_size // share.count).map_with_index(_with_positions)
    return parts[first * share.count + share.index :: share.count]


def _with_positions(part: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return part * len(numbers) + np.arange(len(numbers)), numbers


@dataclass(frozen=True)
class _ReadBatch:
    """From positions and numbers of examples to a batch of them.

    Attributes:
      records: where they are read from.
      decode: from the bytes to pixels, written to `out`; takes a generator too, if there is a seed.
      shape: of an image.
      seed: what an example's generator is drawn from, beside its position; None for none.
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
    """A random generator for each position, all in one object: founding one takes 10 us."""

    def __init__(self, seed: int) -> None:
        # Philox takes any key as it is; other generators would first hash it, which is slower.
        self._bits = np.random.Philox(key=seed << 64)
        self._start = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, position: int) -> np.random.Generator:
        """The generator, at the start of what a position draws."""
        self._start["state"]["key"][0] = position
        self._bits.state = self._start
        return self._generator


def _shape(options: ConfigDict) -> tuple[int, int, int]:
    return options.image_size, options.image_size, options.channels
