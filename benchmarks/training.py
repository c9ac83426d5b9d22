"""Compares training speed on a CPU: this project, natively and by XLA alone, and PyTorch.

    pip install -e . 'torch>=2.6'
    python -m benchmarks.training --json training.json --chart training.png
    python -m benchmarks.training --networks=cifar.resnet20_1w1a --threads=2 --rounds=9
    python -m benchmarks.training --sides=siman-jax --before=OTHER_CHECKOUT

All sides take the same step of the published recipe in float32 (projection, bits, both passes,
update), on one random batch in memory. This project's step is the one that `siman_jax.main` runs,
starting from uint8 images, with its sums of loss and hits. PyTorch's step is `torch_training`,
plain and by `torch.compile`, starting from normalized images. With --before, the step of another
checkout of this project is one more side; its native library has to be built in place
(`pip install -e` there).

Each side has a process (see `training_worker`) for each network and number of threads, on as many
cores. All processes stay alive and take steps in turns, round after round, so that drift affects
all of them alike; nothing else should run meanwhile. Speeds are medians over the rounds, and ratios
are medians of the ratios within a round. Memory is the peak beyond the imports, up to the first
step and in later ones. The time to the first step starts after the imports and includes
compilation. Sides that are not installed are left out and named.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.case import Case
from benchmarks.origin import commit, origin
from benchmarks.training_worker import OURS, SIDES
from benchmarks.worker_process import WorkerError, WorkerProcess
from siman_jax.cores import usable_cores

REPOSITORY = Path(__file__).parent.parent
BEFORE = f"{OURS} (before)"
# A case and its batch size, by the network's name.
NETWORKS = {
    case.network: (case, batch)
    for case, batch in (
        (Case("cifar.resnet20_1w1a", 32, 10, 16), 256),
        (Case("cifar.resnet18_1w1a", 32, 10, 64), 64),
        (Case("cifar.vgg_small_1w1a", 32, 10, 128), 64),
        (Case("imagenet.resnet18_1w1a", 224, 1000, 64), 32),
        (Case("imagenet.resnet34_1w1a", 224, 1000, 64), 32),
    )
}
# Seconds between two turns, since idle threads spin for a while before they sleep.
PAUSE = 0.1

# Blue for this project, grey for the rest; darker means more threads.
_OUR_COLOURS = ("#6fa0e6", "#1f4e9c", "#12305f")
_OTHER_COLOURS = ("#bdbdbd", "#757575", "#424242")


def measure(
    case: Case, batch: int, threads: int, args: argparse.Namespace, report: dict[str, Any]
) -> list[dict[str, Any]]:
    """Measure one network with one number of threads.

    Args:
      case: the network and its input.
      batch: images per step.
      threads: of each side.
      args: with `sides`, `before`, `steps` and `rounds`.
      report: receives the versions of each side, and why sides were left out.

    Returns:
      A row for each side that could be measured.
    """
    built: dict[str, dict] = {}
    workers: dict[str, WorkerProcess] = {}

    @contextmanager
    def leaving_out(name: str) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            workers.pop(name, None)
            report["left_out"][case.network][name] = str(error)
            print(f"{case.network}: {name} is left out. {error}", flush=True)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in [*args.sides, *([BEFORE] if args.before else [])]:
            side = OURS if name == BEFORE else name
            with leaving_out(name):
                own = Path(tempfile.mkdtemp(dir=folder))
                worker = WorkerProcess(
                    [sys.executable, "-m", "benchmarks.training_worker", side]
                    + [str(argument) for argument in (*case, batch, threads)],
                    install=SIDES[side].install,
                    folder=args.before if name == BEFORE else REPOSITORY,
                    log=own / "log.txt",
                    variables={
                        "OMP_NUM_THREADS": str(threads),
                        "JAX_ENABLE_COMPILATION_CACHE": "false",
                        "TORCHINDUCTOR_CACHE_DIR": str(own),
                    },
                )
                stack.callback(worker.close)
                worker.answer()
                built[name] = worker.ask("build")
                report["versions"][name] = built[name].pop("versions")
                worker.ask("time", steps=1)
                workers[name] = worker
        turns: dict[str, list[dict]] = {name: [] for name in workers}
        for round_ in range(args.rounds):
            # In random order, so that no side always follows the same one.
            for name in random.Random(round_).sample(list(workers), len(workers)):
                time.sleep(PAUSE)
                with leaving_out(name):
                    turns[name].append(workers[name].ask("time", steps=args.steps))
        about = {"network": case.network, "batch": batch, "threads": threads}
        return [
            {
                **about,
                "side": name,
                **summarize(turns[name], turns.get(OURS) if OURS in workers else None),
                **built[name],
                **worker.ask("memory"),
            }
            for name, worker in workers.items()
        ]


def summarize(turns: list[dict], ours: list[dict] | None) -> dict[str, Any]:
    """Compute medians over the rounds; ratios are taken within a round."""
    rates = [turn["images_per_second"] for turn in turns]
    ratio = None
    if ours:
        ratio = median(
            own["images_per_second"] / rate for own, rate in zip(ours, rates, strict=True)
        )
    return {
        "images_per_second": median(rates),
        "ours_is_faster_by": ratio,
        "cores_used": median(turn["cores_used"] for turn in turns),
        "rounds": rates,
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""

    def listed(text: str) -> list[str]:
        return [part.strip() for part in text.split(",")]

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--networks", type=listed, default=list(NETWORKS), help=", ".join(NETWORKS))
    add(
        "--batch",
        type=numbers,
        help="one for all networks, or one for each; else 256, 64, 64, 32, 32",
    )
    add("--threads", type=numbers, default=[n for n in (1, 2) if n <= len(usable_cores())])
    add("--sides", type=listed, default=list(SIDES), help=", ".join(SIDES))
    add("--before", type=Path, help="folder of another checkout of this project, one more side")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=3, help="a side's turn in a round")
    add("--json", type=Path, help="file to write the result to")
    add("--chart", type=Path, help="PNG file to draw it in")
    add("--quick", action="store_true", help="tiny networks, two short rounds: does it run?")
    args = parser.parse_args()
    for given, known in ((args.networks, NETWORKS), (args.sides, SIDES)):
        for name in given:
            if name not in known:
                parser.error(f"unknown name {name!r}; known are {', '.join(known)}")
    if args.quick:
        args.rounds, args.steps, args.threads = 2, 1, args.threads[:1]
    if args.batch is None:
        args.batch = [8 if args.quick else NETWORKS[name][1] for name in args.networks]
    if len(args.batch) == 1:
        args.batch *= len(args.networks)
    if len(args.batch) != len(args.networks):
        parser.error(f"--batch has {len(args.batch)} numbers for {len(args.networks)} networks")
    if min(args.rounds, args.steps, *args.threads, *args.batch) <= 0:
        parser.error("--rounds, --steps, --threads and --batch must be above 0")
    if max(args.threads) > (cores := len(usable_cores())):
        parser.error(
            f"--threads {max(args.threads)} is more than the {cores} cores of this machine"
        )
    if args.before and not (args.before / "benchmarks" / "training_worker.py").is_file():
        parser.error(f"{args.before} is not a checkout with benchmarks/training_worker.py")
    for path in (args.json, args.chart):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"there is no folder {path.absolute().parent} to write {path} to")
    return args


def main() -> None:
    """Measure every network, print tables, and write the --json and --chart files."""
    args = parse_arguments()
    report: dict[str, Any] = {
        **origin("training"),
        "commit_before": commit(args.before) if args.before else None,
        "rounds": args.rounds,
        "steps": args.steps,
        "versions": {},
        "left_out": {network: {} for network in args.networks},
        "speed": [],
    }
    for network, batch in zip(args.networks, args.batch, strict=True):
        case = NETWORKS[network][0]
        if args.quick:
            case = case._replace(image_size=32, num_classes=10, width=8)
        for threads in args.threads:
            rows = measure(case, batch, threads, args, report)
            print_table(rows)
            report["speed"] += rows
            if args.json:  # after each network, so that an interrupted run leaves results
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.chart and report["speed"]:
        draw(report, args.chart)


def print_table(rows: list[dict]) -> None:
    """Print a line for each side of one network with one number of threads."""
    if not rows:
        return
    first = rows[0]
    print(
        f"\n{first['network']}, batch {first['batch']}, {first['threads']} thread"
        f"{'s' * (first['threads'] > 1)}\n"
        f"{'':22} {'images/s':>9} {'ours / it':>10} {'first step':>11} {'memory, MB: building':>21}"
        f" {'in steps':>9} {'XLA temporaries':>16} {'cores used':>11}"
    )
    for row in rows:
        ratio, temporaries = row["ours_is_faster_by"], row.get("xla_temporaries_mb")
        print(
            f"{row['side']:22} {row['images_per_second']:9.2f}"
            f" {'-' if ratio is None else f'{ratio:.2f}':>10}"
            f" {row['seconds_to_first_step']:9.1f} s"
            f" {row['peak_building_mb'] - row['imported_mb']:21.0f}"
            f" {row['peak_in_steps_mb'] - row['imported_mb']:9.0f}"
            f" {'-' if temporaries is None else f'{temporaries:.0f}':>16}"
            f" {row['cores_used']:11.2f}",
            flush=True,
        )


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw images per second, one panel for each network."""
    from matplotlib.figure import Figure

    rows = report["speed"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    sides = [name for name in (*SIDES, BEFORE) if any(row["side"] == name for row in rows)]
    size = (2 + 3.2 * len(networks), 1.4 + 0.24 * len(sides) * (len(threads) + 0.6))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    height = 0.8 / len(threads)
    for axes, network in zip(panels, networks, strict=True):
        here = [row for row in rows if row["network"] == network]
        for row in here:
            shade = threads.index(row["threads"])
            colours = _OUR_COLOURS if row["side"].startswith(OURS) else _OTHER_COLOURS
            place = sides.index(row["side"]) + (shade + 0.5) * height - 0.4
            rate, ratio = row["images_per_second"], row["ours_is_faster_by"]
            axes.barh(place, rate, height * 0.92, color=colours[shade % len(colours)])
            text = f" {rate:.3g}"
            if ratio is not None and row["side"] != OURS:
                text += f"  ({ratio:.2f})"
            axes.text(rate, place, text, va="center", fontsize=8)
        axes.set_xlim(0, 1.45 * max(row["images_per_second"] for row in here))
        axes.set_title(f"{network}, batch {here[0]['batch']}", fontsize=9)
        axes.set_xlabel("images/s, median", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(sides)), sides, fontsize=9)
    panels[0].invert_yaxis()
    count = ", ".join(map(str, threads))
    bars = f"threads, upper bar first: {count}" if len(threads) > 1 else f"threads: {count}"
    figure.suptitle(
        f"Training on {report['machine']['cpu']}, float32\n({bars}; in brackets: siman-jax / it)",
        fontsize=10,
    )
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
