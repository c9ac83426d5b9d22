"""Measures the time that selecting order statistics saves compared with sorting, by XLA alone.

    python -m benchmarks.order_statistics

Both sides are compiled once and run in turns in one process; a row gives both medians and their
ratio. "bits" is the half-half rule with its standardization, and "projection" is the clipping to
two percentiles, both for all binary kernels of the network, as in a training step. "step" is a
whole training step.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.origin import origin
from siman_jax.configs import cifar10, imagenet
from siman_jax.models.leaves import binary_bits
from siman_jax.native.dispatch import native
from siman_jax.rules import magnitude_bits, siman
from siman_jax.training.optimizer import build_optimizer, project_binary_kernels
from siman_jax.training.step import create_state, train_step
from siman_jax.training.task import model_from_config


def exceeds_by_sorting(x: Array, k: Array | int) -> Array:
    """Do what `order_statistics.exceeds_kth_smallest` does, by a sort."""
    return x > jnp.sort(x, axis=0)[k][None]


def interpolated_by_sorting(x: Array, ranks: Array, weights: Array) -> Array:
    """Do what `order_statistics.interpolated` does, by a sort."""
    below, above = jnp.sort(x, axis=None)[ranks].reshape(2, -1)
    return below * (1 - weights) + above * weights


def by_selecting(function: Callable) -> Callable:
    """Return the same function, traced without the native library."""

    def traced(*arguments: object) -> object:
        with native(False):
            return function(*arguments)

    return traced


def by_sorting(function: Callable) -> Callable:
    """Return the same function, traced without the native library and with sorts."""

    def traced(*arguments: object) -> object:
        with (
            native(False),
            mock.patch.object(magnitude_bits, "exceeds_kth_smallest", exceeds_by_sorting),
            mock.patch.object(siman, "interpolated", interpolated_by_sorting),
        ):
            return function(*arguments)

    return traced


def cases(batch: int) -> dict[str, tuple[Callable, tuple]]:
    """Return functions to time and their arguments, by name."""
    found: dict[str, tuple[Callable, tuple]] = {}
    for label, config in (
        ("CIFAR ResNet-20", cifar10.get_config()),
        ("ImageNet ResNet-18", imagenet.get_config()),
    ):
        optimizer = build_optimizer(config.optimizer, 0.1)
        model = model_from_config(config)
        shape = (config.data.image_size, config.data.image_size, 3)
        create = partial(create_state, model, optimizer, image_shape=shape)
        options = {"xla_backend_optimization_level": 0}
        state = jax.jit(create, compiler_options=options)(jax.random.key(0))
        found[f"{label}, bits"] = (partial(binary_bits, weight_rule="half_half"), (state.params,))
        found[f"{label}, projection"] = (
            project_binary_kernels,
            (state.params, jnp.float32(10)),
        )
        if label.startswith("CIFAR"):
            step = partial(
                train_step,
                model=model,
                optimizer=optimizer,
                schedules={"clip_percent": lambda _: 10.0},
            )
            images = jax.random.normal(jax.random.key(1), (batch, *shape))
            labels = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
            found[f"{label}, step of batch {batch}"] = (step, (state, images, labels))
    return found


def seconds(function: Callable, arguments: tuple) -> float:
    """Measure the time of one call."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def main() -> None:
    """Time all cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="calls of each side")
    parser.add_argument("--batch", type=int, default=64, help="of the training step")
    parser.add_argument("--json", type=Path, help="file to write the medians to")
    arguments = parser.parse_args()

    device = jax.devices()[0]
    print(f"JAX {jax.__version__}, {device.device_kind}, Python {platform.python_version()}")
    print(f"{'':44} {'sort':>9} {'select':>9} {'ratio':>6}")
    rows = {}
    for name, (function, inputs) in cases(arguments.batch).items():
        sides = {
            "sort": jax.jit(by_sorting(function)),
            "select": jax.jit(by_selecting(function)),
        }
        for side in sides.values():
            seconds(side, inputs)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for key, side in sides.items():
                times[key].append(1e3 * seconds(side, inputs))
        row = {key: statistics.median(values) for key, values in times.items()}
        rows[name] = row
        ratio = row["sort"] / row["select"]
        print(f"{name:44} {row['sort']:6.1f} ms {row['select']:6.1f} ms {ratio:6.2f}")
    if arguments.json:
        report = {**origin("order_statistics"), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
