"""Measures the cost of checksums when restoring a checkpoint and loading a model file.

    python -m benchmarks.checked_loading

Both sides take turns in one process, and each is first in half of the rounds. A row gives both
medians and their ratio. Without checksums, a checkpoint is restored by comparing orbax's
description of it with the network, and loading it by orbax. A model file without a digest is read
in the same way as one with a digest, except for the digest.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from benchmarks.origin import origin
from siman_jax.configs import cifar10, imagenet
from siman_jax.devices.mesh import make_mesh, replicated
from siman_jax.packed.model import load_model
from siman_jax.packed.notes import Notes
from siman_jax.packed.program_file import PackedProgram, encode_program
from siman_jax.program.trace import trace
from siman_jax.runs.checkpoint import CheckpointWriter, restore_latest
from siman_jax.runs.checksums import leaf_shapes
from siman_jax.runs.snapshot import Snapshot, abstract_snapshot, creation
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.task import image_shape, model_from_config

CONFIGS: dict[str, Callable[[], ConfigDict]] = {
    "CIFAR ResNet-20": cifar10.get_config,
    "ImageNet ResNet-18": imagenet.get_config,
}
Side = Callable[[], Any]


def example(config: ConfigDict) -> Snapshot:
    """Create a snapshot of random numbers."""
    config.data.num_classes = config.data.num_classes or 1000
    optimizer = build_optimizer(config.optimizer, 0.1)
    mesh, rng = make_mesh(1), np.random.default_rng(0)
    layout = abstract_snapshot(config, creation(config, model_from_config(config), optimizer), mesh)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        numbers = rng.standard_normal(leaf.shape) > 0 if leaf.dtype == bool else None
        if numbers is None:
            numbers = np.abs(rng.standard_normal(leaf.shape))
        return jax.device_put(numbers.astype(leaf.dtype), replicated(mesh))

    return jax.tree.map(fill, layout)


def restoring(snapshot: Snapshot, folder: Path) -> tuple[Side, Side]:
    """Return functions that restore a checkpoint with and without checksums."""
    writer = CheckpointWriter(folder, keep=1, step=0)
    writer.save(1, snapshot, top1=None)
    writer.close()
    path = (folder / "1").absolute()

    def without() -> Any:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            snapshot,
        )
        assert leaf_shapes(ocp.metadata(path).metadata) == leaf_shapes(abstract)
        return ocp.load(path, abstract)

    return lambda: restore_latest(folder, snapshot), without


def loading(config: ConfigDict, snapshot: Snapshot, folder: Path) -> tuple[Side, Side]:
    """Return functions that load a model file with and without a digest."""
    variables = snapshot.progress.state.variables()
    program = trace(model_from_config(config), variables, image_shape(config))
    data = encode_program(PackedProgram(program, Notes((0.5,) * 3, (0.5,) * 3).as_json()))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    del header["__metadata__"]["sha256"]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "with").write_bytes(data)
    (folder / "without").write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return lambda: load_model(folder / "with"), lambda: load_model(folder / "without")


def compare(sides: tuple[Side, Side], rounds: int) -> dict[str, float]:
    """Measure both sides: median milliseconds, their ratio, and the median of ratios."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            result = sides[which]()
            jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if _is_array(leaf)])
            del result
            if number:  # the first round warms up
                times[which].append(1000 * (time.perf_counter() - start))
    checked, unchecked = map(statistics.median, times)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return {
        "with_ms": checked,
        "without_ms": unchecked,
        "ratio": checked / unchecked,
        "median_ratio": statistics.median(ratios),
    }


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--networks", default=",".join(CONFIGS))
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        **origin("checked_loading"),
        "device": str(jnp.zeros(()).device),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "rows": {},
    }
    for name in arguments.networks.split(","):
        config = CONFIGS[name]()
        with tempfile.TemporaryDirectory() as folder:
            snapshot = example(config)
            for what, sides in (
                ("restore", restoring(snapshot, Path(folder) / "checkpoints")),
                ("load", loading(config, snapshot, Path(folder))),
            ):
                row = compare(sides, arguments.rounds)
                report["rows"][f"{name}, {what}"] = row
                print(
                    f"{name}, {what}: {row['with_ms']:.1f} ms with, {row['without_ms']:.1f} ms"
                    f" without; ratio {row['ratio']:.3f}, median of ratios"
                    f" {row['median_ratio']:.3f}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
