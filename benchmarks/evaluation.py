"""Measures the evaluation of a network on a test set in memory, natively and by XLA alone.

    python -m benchmarks.evaluation --json evaluation.json

Both sides call the function that `siman_jax.main` calls after each epoch, on 10,000 random images,
in turns in one process. The first call, which compiles, is shown separately; times of later calls
are medians. Nothing else should run meanwhile.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.origin import origin
from siman_jax.configs import cifar10
from siman_jax.data.dataset import Split
from siman_jax.data.resident import padded_batches
from siman_jax.devices.mesh import make_mesh, replicated
from siman_jax.training.epoch import make_evaluator
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import create_state
from siman_jax.training.task import image_shape, model_from_config

NETWORKS = ("cifar.resnet20_1w1a", "cifar.resnet18_1w1a", "cifar.vgg_small_1w1a")


def settings(network: str, native: bool) -> ConfigDict:
    """Return the config of a run on CIFAR-10."""
    config = cifar10.get_config()
    config.model.name, config.native, config.data.num_classes = network, native, 10
    return config


def compare(network: str, images: int, rounds: int) -> dict[str, Any]:
    """Measure the seconds of an evaluation on each side: the first, and the median of others."""
    rng, mesh = np.random.default_rng(0), make_mesh(1)
    config = settings(network, native=True)
    model = model_from_config(config)
    optimizer = build_optimizer(config.optimizer, 0.1)
    state = create_state(model, optimizer, jax.random.key(0), image_shape=image_shape(config))
    variables = jax.device_put(state.variables(), replicated(mesh))
    split = Split(
        rng.integers(0, 256, (images, *image_shape(config)), np.uint8),
        rng.integers(0, 10, images, np.int32),
    )
    batches = padded_batches(split, mesh, config.eval_batch_size)
    sides = {
        name: make_evaluator(
            model, batches, images, mesh, config.data, damaged_limit=0, use_native=native
        )
        for name, native in (("native", True), ("XLA", False))
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, evaluate in sides.items():
            started = time.perf_counter()
            evaluate(variables)
            times[name].append(time.perf_counter() - started)
    row: dict[str, Any] = {"network": network, "images": images, "rounds": rounds}
    for name, seconds in times.items():
        row[name] = {"first_s": seconds[0], "later_s": statistics.median(seconds[1:])}
    row["ratio"] = statistics.median(
        slow / fast for fast, slow in zip(times["native"][1:], times["XLA"][1:], strict=True)
    )
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    report: dict[str, Any] = {**origin("evaluation"), "rows": []}
    for network in arguments.networks.split(","):
        row = compare(network, arguments.images, arguments.rounds)
        report["rows"].append(row)
        print(
            f"{network}: native {row['native']['later_s']:.2f} s (first"
            f" {row['native']['first_s']:.1f}), XLA {row['XLA']['later_s']:.2f} s (first"
            f" {row['XLA']['first_s']:.1f}); ratio {row['ratio']:.2f}",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
