"""What a training step of ImageNet's ResNet-18 costs: images/s, memory, and what it is spent on.

    python -m benchmarks.train_step --json train_step.json
    python -m benchmarks.train_step --folder=ROOT/train --json train_step.json

The step is the one that training runs: projection, bits, both passes and the update. It is timed
with one batch that lies on the device, and with --folder also as fed by the loader with the CPU
cores at hand, decoding, crops and all. How much of it is spent outside convolutions is read from a
profile: kernels of the device are summed by whether the instruction that they belong to holds a
convolution. To see every part work on a small machine:

    python -m benchmarks.train_step --batch=4 --size=64 --width=16 --steps=2 --rounds=2
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Compiled
from ml_collections import ConfigDict

from benchmarks.input_pipeline import cpu_name
from configs import imagenet
from siman_jax.data import image_folder
from siman_jax.data.feed import Batch, Feed
from siman_jax.data.stream import StreamFeed
from siman_jax.devices.mesh import make_mesh, put_local_rows
from siman_jax.runs.snapshot import abstract_snapshot, first_snapshot
from siman_jax.training.epoch import Progress, compile_steps, no_sums
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import train_step
from siman_jax.training.task import DTYPES, image_shape, model_from_config


def main() -> None:
    """Measure, print a table, and write it where --json says."""
    args = parse_arguments()
    config, mesh = make_config(args), make_mesh(1)
    feed: Feed = OneBatch(config, mesh)
    compiled, progress = compile_training(config, feed, mesh)
    trainer = Trainer(compiled, progress, config, mesh)
    rates = {"from device memory": trainer.images_per_second(feed, args.steps, args.rounds)}
    report = {
        "peak_bytes": peak_bytes(),
        "kernels": profile_kernels(trainer, feed, args.steps),
    }
    feed.close()
    if args.folder:
        feed = open_folder(args.folder, config, mesh)
        rates["from the loader"] = trainer.images_per_second(feed, args.steps, args.rounds)
        feed.close()
    report |= {"images_per_second": rates, "settings": settings(args), **describe_machine()}
    print_table(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="class folders of images, for the loader")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--steps", type=int, default=20, help="of a round, and of the profile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="reading processes; 0: threads"
    )
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    if min(args.batch, args.size, args.width, args.steps, args.rounds) <= 0 or args.workers < 0:
        parser.error("--workers must be at least 0, all other numbers above 0")
    if args.folder and not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}; name one that holds class folders")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {args.json.absolute().parent} to write {args.json} to")
    return args


def make_config(args: argparse.Namespace) -> ConfigDict:
    """ImageNet's config, with what the command line changes."""
    config = imagenet.get_config()
    config.batch_size, config.epochs = args.batch, 10**6
    config.model.dtype, config.model.width = args.dtype, args.width
    config.data.image_size, config.data.workers = args.size, args.workers
    return config


class OneBatch:
    """A feed of one random batch that lies on the device, over and over."""

    steps_per_epoch = 2**30
    steps_per_call = 1

    def __init__(self, config: ConfigDict, mesh: Mesh) -> None:
        rng, n = np.random.default_rng(0), config.batch_size
        images = rng.integers(0, 256, (n, *image_shape(config)), np.uint8)
        labels = rng.integers(0, config.data.num_classes, n, np.int32)
        self.abstract = Batch(*put_local_rows(mesh, (images, labels)))

    def calls(self, step: int) -> Iterator[tuple[Batch, int]]:
        """The batch for every call."""
        for _ in range(step, self.steps_per_epoch):
            yield self.abstract, 1

    def take(self, inputs: Batch, step: Array) -> Batch:
        """The batch as it is."""
        del step
        return inputs

    def close(self) -> None:
        """Nothing reads ahead."""


def open_folder(folder: Path, config: ConfigDict, mesh: Mesh) -> Feed:
    """A feed of the images in a folder, the one that training has."""
    config = config.copy_and_resolve_references()
    config.data.root = str(folder.absolute().parent)
    config.data.train_split = config.data.test_split = folder.absolute().name
    dataset = image_folder.load(config.data)
    if len(dataset.train) < config.batch_size:
        sys.exit(f"{folder} holds {len(dataset.train)} images; a batch is {config.batch_size}")
    return StreamFeed(dataset.train, mesh, config)


def compile_training(config: ConfigDict, feed: Feed, mesh: Mesh) -> tuple[Compiled, Progress]:
    """Compile a step, and make the state that it starts from."""
    model = model_from_config(config)
    optimizer = build_optimizer(config.optimizer, config.optimizer.learning_rate)
    layout = abstract_snapshot(config, model, optimizer, mesh)
    progress = first_snapshot(config, model, optimizer, jax.random.key(0), layout).progress
    step = partial(train_step, model=model, optimizer=optimizer, clip_percent=lambda _: 10.0)
    return compile_steps(config, step, feed, layout.progress, mesh), progress


class Trainer:
    """A state, and the compiled step that moves it on."""

    def __init__(
        self, compiled: Compiled, progress: Progress, config: ConfigDict, mesh: Mesh
    ) -> None:
        self.compiled = compiled
        self._state, self._sums = progress.state, partial(no_sums, mesh)
        self._batch_size = config.batch_size
        self._inputs: Iterator[Any] = iter(())

    def start(self, feed: Feed) -> None:
        """Take batches from `feed` from now on."""
        self._inputs = endless(feed)

    def run(self, steps: int) -> float:
        """Take some steps; return their seconds."""
        jax.block_until_ready(self._state)
        started, progress = time.perf_counter(), Progress(self._state, self._sums())
        for _ in range(steps):
            progress, _ = self.compiled(progress, next(self._inputs), np.int32(1))
        self._state = jax.block_until_ready(progress).state
        return time.perf_counter() - started

    def images_per_second(self, feed: Feed, steps: int, rounds: int) -> dict[str, Any]:
        """Median over the rounds, and all of them, after a round that warms up."""
        self.start(feed)
        self.run(steps)
        rates = [steps * self._batch_size / self.run(steps) for _ in range(rounds)]
        return {"median": statistics.median(rates), "rounds": rates}


def endless(feed: Feed) -> Iterator[Any]:
    """Inputs of one call after the other, epoch after epoch."""
    step = 0
    while True:
        for inputs, count in feed.calls(step):
            yield inputs
            step += count


def peak_bytes() -> int | None:
    """The most memory that the device has held; None where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def profile_kernels(trainer: Trainer, feed: Feed, steps: int) -> dict[str, float] | None:
    """Where the time of a step's kernels goes, by a profile.

    Returns:
      "seconds_per_step" of all kernels, those that run at the same time each for itself, and the
      "share_outside_convolutions" of it, from 0 to 1. None where the profile does not say which of
      the step's instructions a kernel belongs to.
    """
    trainer.start(feed)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            trainer.run(steps)
        (path,) = Path(folder).rglob("*.xplane.pb")
        kernels = list(read_kernels(path))
    is_convolution = read_instructions(trainer.compiled.as_text() or "")
    seconds = {True: 0.0, False: 0.0}
    for name, nanoseconds in kernels:
        if name in is_convolution:
            seconds[is_convolution[name]] += nanoseconds / 1e9
    total = sum(seconds.values())
    if not total:
        return None
    return {
        "seconds_per_step": total / steps,
        "share_outside_convolutions": seconds[False] / total,
    }


def read_kernels(path: Path) -> Iterator[tuple[str, float]]:
    """Instruction and nanoseconds of each kernel in a profile, of whatever program."""
    warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)  # about JAX's own types
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    # An accelerator has a plane of its own; the host's then holds only what dispatches.
    own = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    for plane in own:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name is not None:
                    yield name, event.duration_ns


def read_instructions(program: str) -> dict[str, bool]:
    """Names of the instructions of a compiled program, and whether each holds a convolution.

    Those that only call others, which have kernels of their own, are left out.
    """
    found: dict[str, bool] = {}
    computation, with_convolution = "", set()
    for line in program.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*{$", line):
            computation = start[1]
        elif part := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(", line):
            name, opcode = part.groups()
            target = re.search(r'custom_call_target="[^"]*conv', line, re.IGNORECASE)
            called = re.search(r"calls=%?([\w.-]+)", line)
            convolves = (
                opcode == "convolution"
                or target is not None
                or (called is not None and called[1] in with_convolution)
            )
            if convolves:
                with_convolution.add(computation)
            if opcode not in {"call", "while", "conditional"}:
                found[name] = convolves
    return found


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for."""
    return {
        name: getattr(args, name)
        for name in ("batch", "size", "width", "dtype", "steps", "rounds", "workers")
    }


def describe_machine() -> dict[str, Any]:
    """Devices, processor and versions."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu_name(),
        "cores": available_cores(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def print_table(report: dict[str, Any]) -> None:
    """Print what was measured."""
    sizes, versions = report["settings"], report["versions"]
    print(
        f"ResNet-18, width {sizes['width']}, {sizes['size']}x{sizes['size']}, batch"
        f" {sizes['batch']}, {sizes['dtype']}; {report['device']}, {report['cores']} cores of"
        f" {report['cpu']}; JAX {versions['jax']}, Python {versions['python']}"
    )
    for name, rates in report["images_per_second"].items():
        print(f"images/s {name:31} {rates['median']:10.1f}")
    peak = report["peak_bytes"]
    told = "   not told by this device" if peak is None else f"{peak / 1e9:10.2f} GB"
    print(f"{'peak device memory':40} {told}")
    if kernels := report["kernels"]:
        print(f"{'time of the kernels':40} {1e3 * kernels['seconds_per_step']:10.1f} ms a step")
        print(f"{'of it outside convolutions':40} {kernels['share_outside_convolutions']:10.1%}")
    else:
        print("the profile does not say which instructions kernels belong to")


if __name__ == "__main__":
    main()
