"""Compiles the training step for a TPU or GPU on a machine without one, and counts its costs.

    pip install 'jax[tpu]'                          # brings the TPU's compiler
    pip install jax-cuda13-plugin jax-cuda13-pjrt   # brings the GPU's; CUDA has to be installed
    python -m benchmarks.compile_ahead --json compile_ahead.json

A row gives, for one chip and one step: arithmetic and bytes read and written, as the compiler
counts them; bytes of temporary arrays; loops with their trips, fusions, launches; the data that
devices exchange; and the time that the bytes or the arithmetic alone would take at the chip's peak.
The TPU's compiler also counts accesses to on-chip memory, so its "HBM GB" is an upper bound; "off
chip" is counted here, from the shapes in the program. The GPU's compiler reports neither, so its
bytes are those counted here, and its arithmetic is shown as 0.

The instructions that move most bytes are listed, with similar layers together (--movers). A step
takes from ten seconds to some minutes to compile. Each row is written as soon as it is ready, and
rows that the --json file already holds are not compiled again. Failures are named, and the others
continue. No time here is measured on a chip.
"""

import argparse
import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

# Set before JAX is imported: no device is used, and the TPU's compiler must not look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from benchmarks.compiled_program import Instruction, Program, read_program
from benchmarks.origin import origin
from siman_jax.configs import cifar10
from siman_jax.devices.communication import communication
from siman_jax.models import MODELS, build_model
from siman_jax.models.images import default_images
from siman_jax.output import write_whole
from siman_jax.rules import WEIGHT_RULES, resolve_activation_rule
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import create_state, train_step

DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Target:
    """A chip to compile for, with its vendor's figures.

    Attributes:
      name: of the chip.
      platform: JAX's name of the platform.
      topology: the chips that the program runs on.
      bytes_per_second: of the chip's memory.
      operations_per_second: in bfloat16, without sparsity.
    """

    name: str
    platform: str
    topology: str
    bytes_per_second: float
    operations_per_second: float

    def devices(self) -> list:
        """Return descriptions of the chips; they need not exist here."""
        if self.platform == "tpu":
            return topologies.get_topology_desc(
                topology_name=self.topology, platform=self.platform
            ).devices
        description = Path(__file__).with_name("h100_target.txtpb").read_text()
        return topologies.get_topology_desc(
            self.name, self.platform, target_config=description, topology=self.topology
        ).devices


TARGETS = {
    "v5e": Target("v5e", "tpu", "v5e:2x2", 819e9, 197e12),
    "h100": Target("h100", "cuda", "1x1x1", 3.35e12, 989e12),
}


@dataclass(frozen=True)
class Row:
    """The costs of one program, for one chip and one step; bytes and operations are counts."""

    target: str
    network: str
    weight_rule: str
    images: int
    dtype: str
    operations: float
    bytes_by_compiler: float
    bytes_off_chip: int
    temporary_bytes: int
    loops: int
    loop_trips: int
    fusions: int
    launches: int
    collectives: dict[str, tuple[int, int]]
    seconds_to_compile: float
    movers: list[tuple[str, int, int]]

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """Identifies the program."""
        return self.target, self.network, self.weight_rule, self.images, self.dtype


def main() -> None:
    """Compile the requested programs, print a line for each, and write JSON."""
    args = parse_arguments()
    rows, commits = read_report(args.json) if args.json and args.json.exists() else ([], [])
    made = origin("compile_ahead")
    made["commit"] = ", ".join(dict.fromkeys([*commits, str(made["commit"])]))
    known = {row.key: row for row in rows}
    print_head()
    for target, network, rule in product(args.targets, args.networks, args.rules):
        images = args.images or (256 if network.startswith("cifar") else 64)
        row = known.get((target, network, rule, images, args.dtype))
        if row is None:
            try:
                row = compile_row(TARGETS[target], network, rule, images, args)
            except Exception as error:  # a compiler is missing, or fails
                print(f"{target:5} {network:22} {rule:10} FAILED: {error}", flush=True)
                continue
            rows.append(row)
            if args.json:
                report = {
                    **made,
                    "jax": jax.__version__,
                    "targets": {name: asdict(target) for name, target in TARGETS.items()},
                    "rows": [asdict(row) for row in rows],
                }
                write_whole(args.json, (json.dumps(report, indent=1) + "\n").encode())
        print_row(row, args.movers)


def read_report(path: Path) -> tuple[list[Row], list[str]]:
    """Read an earlier run's rows and their commits; none if it had another version of JAX."""
    report = json.loads(path.read_text())
    if report["jax"] != jax.__version__:
        return [], []
    return [Row(**row) for row in report["rows"]], report["commit"].split(", ")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--networks", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--rules", nargs="+", choices=WEIGHT_RULES, default=["half_half", "bnn", "real"]
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--images", type=int, help="per chip; by default 256 of 32x32 and 64 of 224x224"
    )
    parser.add_argument("--movers", type=int, default=3, help="how many to list")
    parser.add_argument("--programs", type=Path, help="folder to write the programs' text to")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    return parser.parse_args()


def lower_step(
    network: str, weight_rule: str, images: int, dtype: str, mesh: Mesh, **options: object
) -> Lowered:
    """Lower a network's training step for a mesh; only the batch is divided.

    Args:
      network: key of `MODELS`.
      weight_rule: key of `WEIGHT_RULES`; activations use the rule published with it.
      images: number of images per step, on all chips together.
      dtype: one of `DTYPES`.
      mesh: with the axis `data`.
      **options: of `jax.stages.Traced.lower`.
    """
    classes = 10 if network.startswith("cifar") else 1000
    size = default_images(MODELS[network], classes).size
    activation_rule = resolve_activation_rule("default", weight_rule)
    model = build_model(
        network,
        classes,
        weight_rule=weight_rule,
        activation_rule=activation_rule,
        dtype=jnp.dtype(dtype),
    )
    optimizer = build_optimizer(cifar10.get_config().optimizer, 0.1)
    projected = WEIGHT_RULES[weight_rule].projected
    schedules = {"clip_percent": lambda _: jnp.float32(10)} if projected else {}
    create = partial(create_state, model, optimizer, image_shape=(size, size, 3))
    everywhere = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("data"))
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(create, jax.random.key(0)),
    )
    step = partial(train_step, model=model, optimizer=optimizer, schedules=schedules)
    return (
        jax.jit(step, donate_argnums=0)
        .trace(
            state,
            jax.ShapeDtypeStruct((images, size, size, 3), jnp.float32, sharding=divided),
            jax.ShapeDtypeStruct((images,), jnp.int32, sharding=divided),
        )
        .lower(**options)
    )


def compile_row(
    target: Target, network: str, weight_rule: str, images: int, args: argparse.Namespace
) -> Row:
    """Compile one step with the given number of images per chip, and count its costs."""
    devices = target.devices()
    mesh = Mesh(np.array(devices).reshape(-1), ("data",))
    lowered = lower_step(network, weight_rule, images * len(devices), args.dtype, mesh)
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    text = compiled.as_text() or ""
    if args.programs:
        args.programs.mkdir(parents=True, exist_ok=True)
        name = f"{target.name}_{network}_{weight_rule}.txt"
        (args.programs / name).write_text(text)
    cost = compiled.cost_analysis() or {}
    program = read_program(text)
    moved = program.bytes_moved()
    memory = compiled.memory_analysis()
    return Row(
        target.name,
        network,
        weight_rule,
        images,
        args.dtype,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
        sum(moved.values()),
        memory.temp_size_in_bytes if memory else 0,
        program.count("while"),
        program.loop_trips,
        program.count("fusion"),
        program.launches,
        {kind: tuple(traffic) for kind, traffic in communication(text).items()},
        seconds,
        biggest_movers(program, moved),
    )


def biggest_movers(
    program: Program, moved: dict[Instruction, int], count: int = 15
) -> list[tuple[str, int, int]]:
    """List the parts of the network that move most bytes: name, instructions, bytes.

    Layers of one kind count together, since digits in their names are ignored.
    """
    times, sizes = Counter[str](), Counter[str]()
    for instruction, size in moved.items():
        name = re.sub(r"(?<=[a-z])\d+(_\d+)?", "", instruction.source)
        times[name] += 1
        sizes[name] += size
    return [(name, times[name], size) for name, size in sizes.most_common(count)]


def print_head() -> None:
    """Print the first line of the table."""
    print(f"JAX {jax.__version__}")
    print(
        f"{'chip':5} {'network':22} {'rule':10} {'GFLOP':>6} {'HBM GB':>7} {'off chip':>8}"
        f" {'temp MB':>7} {'loops':>5} {'trips':>5} {'fusions':>7} {'launches':>8}"
        f" {'ms by bytes':>11} {'ms by FLOP':>10}"
    )


def print_row(row: Row, movers: int) -> None:
    """Print one line of the table, and the biggest movers if requested."""
    target = TARGETS[row.target]
    size = row.bytes_by_compiler or row.bytes_off_chip
    print(
        f"{row.target:5} {row.network:22} {row.weight_rule:10} {row.operations / 1e9:6.0f}"
        f" {row.bytes_by_compiler / 1e9:7.2f} {row.bytes_off_chip / 1e9:8.2f}"
        f" {row.temporary_bytes / 1e6:7.0f} {row.loops:5} {row.loop_trips:5} {row.fusions:7}"
        f" {row.launches:8} {1e3 * size / target.bytes_per_second:11.2f}"
        f" {1e3 * row.operations / target.operations_per_second:10.2f}",
        flush=True,
    )
    for kind, (operations, exchanged) in row.collectives.items():
        print(f"      {operations} {kind}, {exchanged / 1e6:.2f} MB")
    for name, instructions, moved in row.movers[:movers]:
        print(f"      {moved / 1e6:8.1f} MB in {instructions:3} of {name}")


if __name__ == "__main__":
    main()
