"""The training step of a config for benchmarks: compiled, with an initial state."""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Compiled
from ml_collections import ConfigDict

from siman_jax.data.feed import Batch, Feed
from siman_jax.devices.mesh import AXIS, put_local_rows, replicated
from siman_jax.training.epoch import Progress, compile_steps, no_sums
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.seeds_together import over_seeds, stack_seeds
from siman_jax.training.step import create_state, train_step
from siman_jax.training.task import image_shape, model_from_config


class OneBatch:
    """A feed that repeats one random batch, which is already on the device."""

    steps_per_epoch = 2**30
    steps_per_call = 1

    def __init__(self, config: ConfigDict, mesh: Mesh) -> None:
        rng, n = np.random.default_rng(0), config.batch_size
        images = rng.integers(0, 256, (n, *image_shape(config)), np.uint8)
        labels = rng.integers(0, config.data.num_classes, n, np.int32)
        self.abstract = Batch(*put_local_rows(mesh, (images, labels)))

    def calls(self, step: int) -> Iterator[tuple[Batch, int]]:
        """Yield the batch for every call."""
        for _ in range(step, self.steps_per_epoch):
            yield self.abstract, 1

    def take(self, inputs: Batch, step: Array) -> Batch:
        """Return the batch."""
        del step
        return inputs

    def close(self) -> None:
        """Do nothing, since nothing reads ahead."""


def compile_training(
    config: ConfigDict, feed: Feed, mesh: Mesh, seeds: int = 1
) -> tuple[Compiled, Progress]:
    """Compile a step, and create its initial state.

    The state is created on the CPU, so that the device's compiler has only the step to compile.

    Args:
      config: of a run.
      feed: of batches, for as many seeds at once.
      mesh: the devices.
      seeds: how many seeds are trained at once; all start from the same state.
    """
    model = model_from_config(config)
    optimizer = build_optimizer(config.optimizer, config.optimizer.learning_rate)
    host = Mesh(np.array(jax.devices("cpu")[:1]), (AXIS,))
    create = partial(create_state, model, optimizer, image_shape=image_shape(config))
    # It runs only once, so compiling fast matters more.
    options = {"xla_backend_optimization_level": 0}
    state = jax.jit(create, out_shardings=replicated(host), compiler_options=options)(
        jax.random.key(0)
    )
    one = Progress(state, no_sums(host))
    progress = jax.device_put(stack_seeds([one] * seeds), replicated(mesh))
    step = partial(
        train_step, model=model, optimizer=optimizer, schedules={"clip_percent": lambda _: 10.0}
    )
    compiled = compile_steps(
        over_seeds(step, progress.state, seeds),
        feed,
        progress,
        mesh,
        config.data,
        use_native=config.native and mesh.size == 1,
    )
    return compiled, progress


class Trainer:
    """A state, and the compiled step that updates it.

    Args:
      compiled, progress: from `compile_training`; the progress must not be used again.
      feed: the source of batches.
      images: images per step, of all seeds together.
    """

    def __init__(self, compiled: Compiled, progress: Progress, feed: Feed, images: int) -> None:
        self.compiled = compiled
        self._progress, self._images = progress, images
        self._calls = _endless(feed)

    def run(self, steps: int, most: int | None = None) -> float:
        """Take some steps, at most `most` per call if given; return their seconds."""
        progress, left = jax.block_until_ready(self._progress), steps
        started = time.perf_counter()
        while left:
            inputs, count = next(self._calls)
            count = min(count, left, most or count)
            progress, _ = self.compiled(progress, inputs, np.int32(count))
            left -= count
        self._progress = jax.block_until_ready(progress)
        return time.perf_counter() - started

    def images_per_second(self, steps: int, rounds: int, most: int | None = None) -> dict[str, Any]:
        """Measure after a warm-up round; return the median over the rounds, and all of them."""
        self.run(steps, most)
        rates = [steps * self._images / self.run(steps, most) for _ in range(rounds)]
        return {"images_per_second": statistics.median(rates), "rounds": rates}


def _endless(feed: Feed) -> Iterator[tuple[Any, int]]:
    """Yield the inputs of one call after the other, and how many steps they are good for."""
    step = 0
    while True:
        for inputs, count in feed.calls(step):
            yield inputs, count
            step += count
