"""Images read, decoded and cropped on the host, in threads or worker processes, by Grain.

The order of the examples and each one's crop depend on the seed and the position alone, so batch
number s of a run is the same for any number of processes and workers, and reading can begin at
any s.
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from siman_jax.data.dataset import DamagedImage, Records


class HostBatch(NamedTuple):
    """Rows of a batch that one process reads.

    Attributes:
      images: uint8 `[n, size, size, channels]`; black where none could be decoded.
      labels: int32 `[n]`; -1 there, and beyond the end of the data set.
      indices: int64 `[n]`, numbers of the examples in the data set.
      damage: a line for each image that could not be decoded.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    damage: tuple[str, ...]


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

    options = config.data
    decode = partial(
        training_image,
        size=options.image_size,
        channels=options.channels,
        min_area=options.min_area,
        max_area=options.max_area,
        flip=options.flip,
    )
    used = len(records) // config.batch_size * config.batch_size
    order = grain.MapDataset.range(len(records)).shuffle(seed=config.seed)[:used]
    order = order.repeat(config.epochs)
    examples = order.random_map(_ReadExample(records, decode, _blank(options)), seed=config.seed)
    return _batches(examples, config.batch_size, share, step)


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

    options = config.data
    decode = partial(
        evaluation_image,
        size=options.image_size,
        resize=options.shorter_side,
        channels=options.channels,
    )
    padded = -(-len(records) // batch_size) * batch_size
    read = _ReadExample(records, decode, _blank(options))
    return _batches(grain.MapDataset.range(padded).map(read), batch_size, share, 0)


def read_ahead(batches: Any, workers: int) -> Any:
    """Read batches in the background.

    Args:
      batches: `grain.MapDataset`.
      workers: processes to read in, each a batch at a time; 0 for threads of this one, as many
        as there are cores.

    Returns:
      `grain.IterDataset` of the same elements in the same order.
    """
    import grain

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own; a notebook has none
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    stream = batches.to_iter_dataset(options)
    return stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_outlive_signals
    )


def _outlive_signals(index: int, count: int) -> None:
    """Leave SIGTERM and Ctrl-C, which a whole process group gets, to the process that trains."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Example(NamedTuple):
    """A row of a `HostBatch`; the damage is empty where there is none."""

    image: np.ndarray
    label: int
    number: int
    damage: str


@dataclass(frozen=True)
class _ReadExample:
    """From an index, and a generator where `decode` draws from one, to an example."""

    records: Records
    decode: Callable[..., np.ndarray]
    blank: np.ndarray

    def __call__(self, index: int, *generator: np.random.Generator) -> _Example:
        if index >= len(self.records):
            return _Example(self.blank, -1, index, "")
        name = f"example {index}"
        try:
            data, label, name = self.records[index]
            return _Example(self.decode(data, *generator), label, index, "")
        except (OSError, DamagedImage) as error:
            return _Example(self.blank, -1, index, f"{name}: {error}")


def _batches(examples: Any, batch_size: int, share: Share, first: int) -> Any:
    """Every process's batches lie side by side in the order, so that their rows make the whole."""
    parts = examples.batch(batch_size // share.count, batch_fn=_stack)
    return parts[first * share.count + share.index :: share.count]


def _stack(examples: Sequence[_Example]) -> HostBatch:
    images, labels, indices, damage = zip(*examples, strict=True)
    return HostBatch(
        np.stack(images),
        np.array(labels, np.int32),
        np.array(indices, np.int64),
        tuple(line for line in damage if line),
    )


def _blank(options: ConfigDict) -> np.ndarray:
    return np.zeros((options.image_size, options.image_size, options.channels), np.uint8)
