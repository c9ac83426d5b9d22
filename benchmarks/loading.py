"""Measures how a packed ResNet-20 starts, and its memory in calls of changing size.

    pip install -e '.[bench]'
    python -m benchmarks.loading

For this project, by `siman_jax.load`, and for float and int8 networks of the same depth and width
in ONNX Runtime and OpenVINO:

- In new processes, in turns: the time from NumPy's import to the first prediction of one image, the
  time of the whole process, and the memory beyond NumPy's import.
- In one more process, calls with batches of 1 to 256 images at random: the memory after each tenth
  of the calls.

OpenVINO's 1-bit convolution is not here: it needs a fixed batch size.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.case import Case
from benchmarks.engines import ENGINES
from benchmarks.loading_worker import LOADERS
from benchmarks.origin import origin
from benchmarks.worker_process import REPOSITORY, WorkerError, WorkerProcess

CASE = Case("cifar.resnet20_1w1a", 32, 10, 16)


class Benchmark:
    """Runs the measurements, and collects the report."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args, self._folder = args, folder
        self.left_out: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Measure everything, and return the report as plain data."""
        self._folder.mkdir(parents=True, exist_ok=True)
        names = self._args.engines
        for name in names:
            with self._leaving_out(name):
                self._ask(name, "engine_worker", "0")  # writes the model file
        turns: dict[str, list[dict]] = {name: [] for name in names}
        for round_ in range(self._args.rounds):
            for name in random.Random(round_).sample(names, len(names)):
                if name not in self.left_out:
                    with self._leaving_out(name):
                        turns[name].append(self._load(name, calls=0))
        for name in names:
            if name not in self.left_out:
                with self._leaving_out(name):
                    called = self._load(name, calls=self._args.calls)
                    self.rows.append(_summary(name, turns[name], called))
                    print(f"{name}: done", flush=True)
        return {"calls": self._args.calls, "left_out": self.left_out, "rows": self.rows}

    @contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self.left_out[name] = str(error)
            print(f"{name} is left out. {error}", flush=True)

    def _load(self, name: str, *, calls: int) -> dict[str, Any]:
        start = time.perf_counter()
        found = self._ask(name, "loading_worker", str(self._args.threads), str(calls))
        return {"seconds_of_process": time.perf_counter() - start, **found}

    def _ask(self, name: str, module: str, *last: str) -> dict[str, Any]:
        case = map(str, (*CASE, self._folder))
        worker = WorkerProcess(
            [sys.executable, "-m", f"benchmarks.{module}", name, *case, *last],
            install=ENGINES[name].install,
            log=self._folder / f"{name.replace(' ', '_')}.log",
            variables={},
        )
        try:
            return worker.answer()
        finally:
            worker.close()


def _summary(name: str, turns: list[dict], called: dict) -> dict[str, Any]:
    """Summarize the turns of one engine, and its process of many calls."""
    return {
        "engine": name,
        "versions": called["versions"],
        "seconds_to_first_prediction": median(turn["seconds"] for turn in turns),
        "seconds_of_rounds": [turn["seconds"] for turn in turns],
        "seconds_of_process": median(turn["seconds_of_process"] for turn in turns),
        "megabytes_beyond_numpy": median(turn["megabytes"] for turn in turns),
        "megabytes_after_tenths": called["memory"],
    }


def print_report(rows: list[dict]) -> None:
    """Print a table with a row for each engine."""
    table = Table(title=f"{CASE.network}, a new process", title_justify="left")
    for name in (
        "",
        "first prediction, ms",
        "process, ms",
        "MB beyond NumPy",
        "MB after a tenth of the calls",
        "after all",
    ):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        memory = row["megabytes_after_tenths"]
        table.add_row(
            row["engine"],
            f"{1e3 * row['seconds_to_first_prediction']:.0f}",
            f"{1e3 * row['seconds_of_process']:.0f}",
            f"{row['megabytes_beyond_numpy']:.1f}",
            f"{memory[0]:.1f}",
            f"{memory[-1]:.1f}",
        )
    Console(width=max(110, Console().width)).print(table)


def main() -> None:
    """Measure, print, and write `loading.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--engines", default=",".join(LOADERS), help="separated by commas")
    add("--rounds", type=int, default=9)
    add("--calls", type=int, default=10_000, help="with random batch sizes; at least 10")
    add("--threads", type=int, default=1)
    add("--files", type=Path, help="folder for the model files; those there are used again")
    add("--out", type=Path, default=REPOSITORY / "results" / "packed_loading")
    args = parser.parse_args()
    args.engines = args.engines.split(",")
    for name in args.engines:
        if name not in LOADERS:
            parser.error(f"unknown engine {name!r}; known are {', '.join(LOADERS)}")
    if min(args.rounds, args.threads) < 1 or args.calls < 10:
        parser.error("--rounds and --threads must be above 0, and --calls at least 10")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        report = {
            **origin("loading"),
            "python": platform.python_version(),
            "threads": args.threads,
            **Benchmark(args, (args.files or Path(temporary)).resolve()).run(),
        }
    print_report(report["rows"])
    (args.out / "loading.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
