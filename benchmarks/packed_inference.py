"""Compares packed 1-bit networks with engines for float and int8 networks on the same processor.

    pip install -e '.[bench]'
    python -m benchmarks.packed_inference

Each engine (see `engines`) has a process for each number of threads, on as many cores. All
processes stay alive and time calls in turns, round after round, so that drift affects all of them
alike; nothing else runs meanwhile. A call maps normalized float32 images in the host's memory to
logits there. Tables give the median over all calls, the best call, and the ratio of medians to
ours.

Then a new process for each engine and batch size measures memory, and single binary convolutions
are compared with the rate at which this processor counts bits (see `layer_speed`).

With `--before=FOLDER`, another checkout of this project is one more engine. Its native library has
to be built in place; commit ec110da5 is the last one before networks became programs:

    git worktree add ../before ec110da5
    cd ../before && python setup.py build_ext --inplace

This project may run on another Python (`--jax_python`), and Larq Compute Engine needs one
(`--lce_python`, see `larq_network`); both run the files of this folder. Engines that are not
installed are left out and named.
"""

import argparse
import json
import platform
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
from benchmarks.engines import BEFORE, ENGINES, OURS
from benchmarks.inference_report import draw, print_layers, print_memory, print_speed
from benchmarks.origin import commit, origin
from benchmarks.worker_process import WorkerError, WorkerProcess
from siman_jax.cores import usable_cores

REPOSITORY = Path(__file__).parent.parent
CASES = {
    case.network: case
    for case in (
        Case("imagenet.resnet18_1w1a", 224, 1000, 64),
        Case("cifar.resnet20_1w1a", 32, 10, 16),
        Case("cifar.resnet18_1w1a", 32, 10, 64),
        Case("cifar.vgg_small_1w1a", 32, 10, 128),
    )
}
BATCH_SIZES = {"cifar.resnet20_1w1a": (1, 32, 256)}
USUAL_BATCH_SIZES = (1, 32)
MEMORY_BATCH_SIZES = (1, 32)
# Seconds between two turns, since idle threads spin for a while before they sleep.
PAUSE = 0.05


class Benchmark:
    """Runs the measurements, and collects the report."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args, self._folder = args, folder
        self._pythons = {
            "here": sys.executable,
            "jax": args.jax_python,
            "before": args.jax_python if args.before else None,
            "lce": args.lce_python,
        }
        self.left_out: dict[str, dict[str, str]] = {network: {} for network in args.network}
        self.versions: dict[str, dict[str, str]] = {}
        self.kilobytes: list[dict] = []
        self.speed: list[dict] = []
        self.memory: list[dict] = []
        self.layers: list[dict] = []

    def run(self) -> dict:
        """Measure everything, and return the report as plain data."""
        for network in self._args.network:
            case = CASES[network]
            if self._args.quick:
                case = case._replace(image_size=32, num_classes=10, width=8)
            batches = self._args.batch_sizes or BATCH_SIZES.get(network, USUAL_BATCH_SIZES)
            names = [name for name in self._args.engines if self._prepare(name, case)]
            for threads in self._args.threads:
                running = [name for name in names if name not in self.left_out[network]]
                self._time(running, case, threads, batches)
            weighed = () if self._args.speed_only else MEMORY_BATCH_SIZES
            for batch in sorted(set(batches) & set(weighed)):
                for name in names:
                    if name not in self.left_out[network]:
                        self._weigh(name, case, batch)
            print_speed(self.speed, network)
            if weighed:
                print_memory(self.memory, self.kilobytes, network)
        if OURS in self._args.engines and not self._args.speed_only:
            for threads in self._args.threads:
                self._layers(threads)
            print_layers(self.layers)
        results = ("left_out", "versions", "kilobytes", "speed", "memory", "layers")
        return {name: getattr(self, name) for name in results}

    @contextmanager
    def _worker(self, name: str, case: Case, threads: int) -> Iterator[WorkerProcess]:
        python = self._pythons[ENGINES[name].interpreter]
        if python is None:
            raise WorkerError(f"not installed: {ENGINES[name].install}")
        # The other checkout has that engine under the name of ours.
        here, engine = (self._args.before, OURS) if name == BEFORE else (REPOSITORY, name)
        folder = self._folder / case.network
        folder.mkdir(parents=True, exist_ok=True)
        worker = WorkerProcess(
            [python, "-m", "benchmarks.engine_worker", engine, *map(str, (*case, folder, threads))],
            install=ENGINES[name].install,
            folder=here,
            log=folder / f"{name.replace(' ', '_')}.log",
            variables={"OMP_NUM_THREADS": str(max(1, threads)), "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        try:
            yield worker
        finally:
            worker.close()

    @contextmanager
    def _leaving_out(self, name: str, case: Case) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self.left_out[case.network][name] = str(error)
            print(f"{case.network}: {name} is left out. {error}", flush=True)

    @contextmanager
    def _dropping(self, workers: dict[str, WorkerProcess], name: str, case: Case) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            del workers[name]
            with self._leaving_out(name, case):
                raise error

    def _prepare(self, name: str, case: Case) -> bool:
        print(f"{case.network}: preparing {name}", flush=True)
        with self._leaving_out(name, case), self._worker(name, case, threads=0) as worker:
            size = worker.answer()["kilobytes"]
            self.kilobytes.append({"network": case.network, "engine": name, "kilobytes": size})
            return True
        return False

    def _time(self, names: list[str], case: Case, threads: int, batches: tuple[int, ...]) -> None:
        with ExitStack() as stack:
            workers = {}
            for name in names:
                with self._leaving_out(name, case):
                    worker = stack.enter_context(self._worker(name, case, threads))
                    worker.answer()
                    workers[name] = worker
            for batch in batches:
                loaded = {}
                for name in list(workers):
                    with self._dropping(workers, name, case):
                        loaded[name] = workers[name].ask("load", batch=batch)
                        self.versions[name] = loaded[name]["versions"]
                turns: dict[str, list[dict]] = {name: [] for name in workers}
                for round_ in range(self._args.rounds):
                    # In random order, so that no engine always follows the same one.
                    for name in random.Random(round_).sample(list(workers), len(workers)):
                        time.sleep(PAUSE)
                        with self._dropping(workers, name, case):
                            turn = workers[name].ask("time", seconds=self._args.seconds)
                            turns[name].append(turn)
                for name in workers:
                    self.speed.append(
                        {
                            "network": case.network,
                            "batch": batch,
                            "threads": threads,
                            "engine": name,
                            "seconds_to_load": loaded[name]["seconds_to_load"],
                            **_summary(turns[name], batch),
                        }
                    )
                _add_ratios(self.speed, case.network, batch, threads)
                print(f"{case.network}: batch {batch}, threads {threads}: done", flush=True)

    def _weigh(self, name: str, case: Case, batch: int) -> None:
        threads = max(self._args.threads)
        with self._leaving_out(name, case), self._worker(name, case, threads) as worker:
            worker.answer()
            worker.ask("load", batch=batch)
            about = {"network": case.network, "batch": batch, "threads": threads, "engine": name}
            self.memory.append({**about, **worker.ask("memory")})

    def _layers(self, threads: int) -> None:
        case = CASES[self._args.network[0]]  # only for the log; the layers are ResNet-18's
        with self._leaving_out(OURS, case), self._worker(OURS, case, threads) as worker:
            worker.answer()
            seconds = self._args.seconds * (1 if self._args.quick else 4)
            found = worker.ask("layers", seconds=seconds, batches=[1, 32], quick=self._args.quick)
            self.layers.append({"threads": threads, **found})


def _summary(turns: list[dict], batch: int) -> dict[str, Any]:
    """Summarize the turns of one engine."""
    calls = [time for turn in turns for time in turn["milliseconds"]]
    return {
        "n": len(calls),
        "median_ms": median(calls),
        "best_ms": min(calls),
        "images_per_second": 1e3 * batch / median(calls),
        "median_ms_of_rounds": [median(turn["milliseconds"]) for turn in turns],
        "cores_used": median(turn["cores_used"] for turn in turns),
    }


def _add_ratios(rows: list[dict], network: str, batch: int, threads: int) -> None:
    """Add the ratio of each engine's time to ours."""
    same = [
        r for r in rows if (r["network"], r["batch"], r["threads"]) == (network, batch, threads)
    ]
    ours = [row["median_ms"] for row in same if row["engine"] == OURS]
    for row in same:
        row["times_ours"] = row["median_ms"] / ours[0] if ours else None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""

    def listed(text: str) -> list[str]:
        return [part.strip() for part in text.split(",")]

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--engines", type=listed, default=list(ENGINES), help=", ".join(ENGINES))
    add("--network", type=listed, default=list(CASES), help=", ".join(CASES))
    add("--threads", type=numbers, default=tuple(n for n in (1, 2) if n <= len(usable_cores())))
    add("--batch_sizes", type=numbers, help="1,32, and 256 for ResNet-20, unless given")
    add("--rounds", type=int, default=20)
    add("--seconds", type=float, default=0.3, help="approximate length of an engine's turn")
    add("--jax_python", default=sys.executable, help="interpreter that runs siman-jax")
    add("--lce_python", help="interpreter that has Larq Compute Engine")
    add("--before", type=Path, help="folder of another checkout of this project")
    add(
        "--files", type=Path, help="folder for the engines' model files; those there are used again"
    )
    add("--out", type=Path, default=REPOSITORY / "results" / "packed_inference")
    add("--speed_only", action="store_true", help="leave out memory and single convolutions")
    add("--quick", action="store_true", help="tiny networks, two short rounds: does it run?")
    args = parser.parse_args()
    for given, known in ((args.engines, ENGINES), (args.network, CASES)):
        for name in given:
            if name not in known:
                parser.error(f"unknown name {name!r}; known are {', '.join(known)}")
    if args.quick:
        args.rounds, args.seconds = 2, 0.02
    if min(args.rounds, args.seconds, *args.threads, *(args.batch_sizes or (1,))) <= 0:
        parser.error("--rounds, --seconds, --threads and --batch_sizes must be above 0")
    if args.before and not (args.before / "benchmarks" / "engine_worker.py").is_file():
        parser.error(f"{args.before} is not a checkout with benchmarks/engine_worker.py")
    if max(args.threads) > (cores := len(usable_cores())):
        parser.error(
            f"--threads {max(args.threads)} is more than the {cores} cores of this machine"
        )
    return args


def main() -> None:
    """Measure, print, and write `packed_inference.json` and a chart of each network."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.files or Path(temporary)).resolve()  # as workers start in other folders
        report = {
            **origin("packed_inference"),
            "commit_before": commit(args.before) if args.before else None,
            "python": platform.python_version(),
            **Benchmark(args, folder).run(),
        }
    (args.out / "packed_inference.json").write_text(json.dumps(report, indent=1) + "\n")
    for network in args.network:
        draw(report, network, args.out / f"{network}.png")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
