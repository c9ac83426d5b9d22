"""Measures training speed, and where the time of a step of ImageNet's ResNet-18 goes.

Each program is the one that a run of this project compiles. CIFAR's networks take their batches
from 50,000 random images on the device, shuffled, cropped and mirrored there, up to 100 steps per
dispatch. ImageNet's network takes one batch that is already on the device. A few programs are
compiled at a time; they are timed one after the other when all are compiled.
"""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.accelerator_parts.part import Part, describe_device, peak_bytes, run
from benchmarks.kernel_profile import profile_kernels
from benchmarks.training_program import OneBatch, Trainer, compile_training
from siman_jax.configs import cifar10, imagenet
from siman_jax.cores import usable_cores
from siman_jax.data.dataset import Split
from siman_jax.data.feed import Feed
from siman_jax.data.resident import ResidentFeed
from siman_jax.devices.mesh import make_mesh
from siman_jax.training.seeds_together import join_keys

# Time reserved to measure each program, however long compilation takes.
SECONDS_OF_A_PROGRAM = 8.0
# How many programs to compile at a time; more would delay the first ones.
AT_A_TIME = 4
ROUNDS = 5
IMAGENET = "imagenet.resnet18"


@dataclass(frozen=True)
class TrainingStep:
    """A training step to measure.

    Attributes:
      network: a config and its variant.
      batch: images per step and seed.
      dtype: dtype to compute in.
      seeds: how many seeds are trained at once.
    """

    network: str
    batch: int
    dtype: str = "bfloat16"
    seeds: int = 1

    @property
    def name(self) -> str:
        """Its name in tables."""
        seeds = f", {self.seeds} seeds at once" if self.seeds > 1 else ""
        return f"{self.network}, batch {self.batch}, {self.dtype}{seeds}"

    def config(self, quick: bool) -> ConfigDict:
        """Return the config of the published recipe."""
        recipe, _, variant = self.network.partition(".")
        config = {"cifar": cifar10, "imagenet": imagenet}[recipe].get_config(variant)
        config.batch_size, config.epochs = self.batch, 10**6
        config.model.dtype = self.dtype
        if quick:
            config.batch_size, config.model.width, config.data.image_size = 4, 4, 16
        return config


# The most valuable first.
PROGRAMS = (
    TrainingStep("cifar.resnet20", 256),
    TrainingStep(IMAGENET, 256),
    TrainingStep("cifar.resnet20", 256, seeds=8),
    TrainingStep("cifar.resnet20", 256, "float32"),
    TrainingStep("cifar.resnet18", 256),
    TrainingStep("cifar.resnet20", 1024),
    TrainingStep("cifar.vgg_small", 256),
)
# One of each kind.
QUICK_PROGRAMS = PROGRAMS[:3]


@dataclass(frozen=True)
class Compiled:
    """A compiled program, ready to be timed, and the seconds that it took to compile."""

    trainer: Trainer
    seconds: float


def main(part: Part) -> None:
    """Compile all programs, then time them."""
    part.write(**describe_device())
    mesh = make_mesh(1)
    split = random_images(64 if part.quick else 50_000, 16 if part.quick else 32)
    programs = QUICK_PROGRAMS if part.quick else PROGRAMS
    pool = ThreadPoolExecutor(min(AT_A_TIME, len(usable_cores())))
    futures = {
        program: pool.submit(build, program, split, mesh, part.quick) for program in programs
    }
    # Compiling would disturb the measurements, so wait until it is done.
    seconds = SECONDS_OF_A_PROGRAM if not part.quick else 1
    wait(futures.values(), timeout=part.seconds_left - seconds * len(programs))
    late = sum(not future.done() for future in futures.values())
    if late:
        part.write(compiling_while_timed=late)
    for program, future in futures.items():
        measure(part, program, future)


def build(program: TrainingStep, split: Split, mesh: Mesh, quick: bool) -> Compiled:
    """Compile a program."""
    started = time.monotonic()
    config = program.config(quick)
    keys = join_keys([jax.random.key(seed) for seed in range(program.seeds)])
    feed: Feed
    if program.network == IMAGENET:
        feed = OneBatch(config, mesh)
    else:
        feed = ResidentFeed(
            split,
            mesh,
            keys,
            keys,
            batch_size=config.batch_size,
            crop_padding=config.data.crop_padding,
            flip=config.data.flip,
            steps_per_dispatch=config.steps_per_dispatch,
        )
    compiled, progress = compile_training(config, feed, mesh, program.seeds)
    trainer = Trainer(compiled, progress, feed, config.batch_size * program.seeds)
    return Compiled(trainer, time.monotonic() - started)


def measure(part: Part, program: TrainingStep, future: Future[Compiled]) -> None:
    """Time a program if it has been compiled and there is time left."""
    if part.seconds_left < 2:
        return part.leave_out(program.name, "no time was left to take its steps")
    if not future.done():
        return part.leave_out(program.name, "it was still being compiled")
    if (error := future.exception()) is not None:
        return part.leave_out(program.name, f"{type(error).__name__}: {error}")
    trainer, seconds = future.result().trainer, future.result().seconds
    try:
        row = time_steps(trainer, part.quick)
        row |= {"seconds_to_compile": seconds, **program_bytes(trainer.compiled)}
        row["peak_bytes_of_all_programs_so_far"] = peak_bytes()
        part.add("programs", program.name, row)
        if program is PROGRAMS[0]:
            # The same program, so that only the dispatch differs.
            row["one_step_a_dispatch"] = time_steps(trainer, part.quick, most=1)
        if program.network == IMAGENET:
            text = trainer.compiled.as_text() or ""
            row["kernels"] = profile_kernels(lambda: trainer.run(3), text, 3)
        part.add("programs", program.name, row)
    except Exception as error:  # for example out of memory; the others may fit
        part.leave_out(program.name, f"{type(error).__name__}: {error}")


def time_steps(trainer: Trainer, quick: bool, most: int | None = None) -> dict[str, Any]:
    """Measure images/s in rounds of about half a second."""
    trainer.run(2, most)
    seconds = trainer.run(2, most) / 2
    steps = 2 if quick else max(2, math.ceil(0.5 / seconds))
    rates = trainer.images_per_second(steps, 2 if quick else ROUNDS, most)
    return {**rates, "steps_of_a_round": steps}


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Return the memory that a program needs: all of it, and its share of temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:
        return {}
    shared = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = memory.argument_size_in_bytes + shared + memory.temp_size_in_bytes
    return {"needed_bytes": needed, "temporary_bytes": memory.temp_size_in_bytes}


def random_images(n: int, size: int) -> Split:
    """Draw images of ten classes, in the host's memory."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    return Split(images, rng.integers(0, 10, n).astype(np.int32))


if __name__ == "__main__":
    run(main)
