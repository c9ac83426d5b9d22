"""What training several seeds as one program saves against training them one after the other.

    python -m benchmarks.seeds_at_once

Both sides are the program that training runs, ResNet-20 by half-half with shuffling, crops and the
projection, on random images held in memory. They take turns in one process; a row gives the median
images/s of each side, all seeds' together, and their ratio: above 1, several at once are faster.
Without their compilation, which is once a run.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import cifar10, digits
from siman_jax.data.dataset import Split
from siman_jax.data.resident import ResidentFeed
from siman_jax.devices.mesh import make_mesh
from siman_jax.runs.snapshot import abstract_snapshot, first_snapshot
from siman_jax.training.epoch import make_epoch_runner
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.seeds import join_keys, over_seeds, stack_seeds
from siman_jax.training.step import train_step
from siman_jax.training.task import image_shape, model_from_config


def make_epoch(config: ConfigDict, split: Split, seeds: int, mesh: Mesh) -> Callable[[], None]:
    """Compile a function that trains `seeds` seeds for an epoch and waits for its end."""
    model = model_from_config(config)
    optimizer = build_optimizer(config.optimizer, 0.1)
    layout = abstract_snapshot(config, model, optimizer, mesh)
    keys: list[Array] = [jax.random.key(seed) for seed in range(seeds)]
    starts = [first_snapshot(config, model, optimizer, key, layout).progress for key in keys]
    progress = stack_seeds(starts)
    feed = ResidentFeed(split, mesh, config, join_keys(keys), join_keys(keys))
    step = partial(train_step, model=model, optimizer=optimizer, clip_percent=lambda _: 10.0)
    step_of_all = over_seeds(step, progress.state, seeds)
    run_epoch = make_epoch_runner(config, step_of_all, feed, progress, mesh)

    def epoch() -> None:
        nonlocal progress
        progress = jax.block_until_ready(run_epoch(progress, lambda _: None, lambda _: False))

    return epoch


def seconds(function: Callable[[], None], times: int) -> float:
    """Time of `times` calls."""
    started = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - started


def main() -> None:
    """Time all cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trained at once")
    parser.add_argument("--steps", type=int, default=10, help="of an epoch that is timed")
    parser.add_argument("--rounds", type=int, default=5, help="such epochs of each side")
    parser.add_argument("--batch", type=int, default=64, help="of each seed at 32x32; digits: 16")
    parser.add_argument("--json", type=Path, help="file to write the medians to")
    arguments = parser.parse_args()

    mesh = make_mesh(1)
    setting = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "steps": arguments.steps,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(f"{'ResNet-20, images/s':28} {'one by one':>12} {'at once':>12} {'ratio':>6}")
    rows = {}
    small, large = digits.get_config(), cifar10.get_config()
    large.batch_size = arguments.batch
    for config in (small, large):
        n = arguments.steps * config.batch_size
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (n, *image_shape(config)), np.uint8)
        split = Split(images, rng.integers(0, 10, n).astype(np.int32))
        one = make_epoch(config, split, 1, mesh)
        many = make_epoch(config, split, arguments.seeds, mesh)
        one(), many()  # a first call is slower
        times: dict[str, list[float]] = {"one by one": [], "at once": []}
        for _ in range(arguments.rounds):
            times["one by one"].append(seconds(one, arguments.seeds))
            times["at once"].append(seconds(many, 1))
        row = {
            side: arguments.seeds * n / statistics.median(values) for side, values in times.items()
        }
        row["ratio"] = row["at once"] / row["one by one"]
        size = config.data.image_size
        name = f"{arguments.seeds} seeds, {size}x{size}, batch {config.batch_size}"
        rows[name] = row
        print(
            f"{name:28} {row['one by one']:12.0f} {row['at once']:12.0f} {row['ratio']:6.2f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({**setting, "images_per_second": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
