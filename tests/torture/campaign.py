"""A campaign: kinds one after the other, each for its share of the time, and what came of it."""

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from .case import random
from .kinds import KINDS, load_kind
from .pool import REPOSITORY, Result, run_cases

FINDINGS = Path(__file__).parent / "findings"
_SECONDS_BETWEEN_SAVES = 20
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "pillow"),
    *("opencv-python-headless", "simplejpeg", "grain", "ml-collections"),
)


def run_campaign(
    minutes: float,
    only: Collection[str],
    seed: int,
    most: int,
    keep: Path | None,
    save: Callable[[dict[str, Any]], None] = lambda run: None,
) -> dict[str, Any]:
    """Try kinds for as long as given; the time to set them up is not counted.

    Args:
      minutes: for all together.
      only: names of kinds; all if empty.
      seed: what cases follow from, with their kind and number.
      most: cases of each kind; 0: what time allows.
      keep: folder for cases that find a fault; None: they are not stored.
      save: gets the results so far, now and then, so that a kill loses few of them.

    Returns:
      Values for JSON: "seed", "minutes", "command", "commit", "date", "versions", and "kinds" by
      name, each with "cases", "seconds", "counts", "findings" and "unavailable".
    """
    names = [name for name in KINDS if (name in only if only else KINDS[name].share)]
    shares = {name: KINDS[name].share or 1 for name in names}
    run: dict[str, Any] = {
        "seed": seed,
        "minutes": minutes,
        "command": "python -m tests.torture " + _command(),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": _versions(),
        "kinds": {},
    }
    for name, share in shares.items():
        seconds = minutes * 60 * share / sum(shares.values())
        saved = time.monotonic()
        for row in _run_kind(name, seed, seconds, most, keep):
            run["kinds"][name] = row
            if time.monotonic() > saved + _SECONDS_BETWEEN_SAVES:
                save(run)
                saved = time.monotonic()
        save(run)
        print_kind(name, run["kinds"][name])
    return run


def _run_kind(
    name: str, seed: int, seconds: float, most: int, keep: Path | None
) -> Iterator[dict[str, Any]]:
    """The kind's results after each case."""
    row: dict[str, Any] = {
        "cases": 0,
        "seconds": 0.0,
        "counts": Counter(),
        "findings": [],
        "unavailable": "",
    }
    started = 0.0
    numbers = range(most) if most else count()
    for result in run_cases(name, seed, numbers):
        if result.word == "unavailable":
            row["unavailable"] = result.text
            yield row
            return
        started = started or time.monotonic()
        row["cases"] += 1
        row["seconds"] = round(time.monotonic() - started, 1)
        row["counts"].update(result.counts)
        if result.word == "finding":
            row["findings"].append({"case": f"{name}/{seed}/{result.case}", "text": result.text})
            print(f"{name}/{seed}/{result.case}: {result.text}", file=sys.stderr, flush=True)
            if keep:
                _store(name, seed, result, keep)
        yield row
        if row["seconds"] > seconds:
            return


def _store(name: str, seed: int, result: Result, folder: Path) -> None:
    """Keep a case as a file; a kind makes it anew without being set up."""
    kind = load_kind(name)
    case = kind.make(kind.__new__(kind), random(name, seed, int(result.case)))
    path = folder / name / f"{seed}-{result.case}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case)
    path.with_suffix(".txt").write_text(result.text)


def print_kind(name: str, row: dict[str, Any]) -> None:
    """A line of the table."""
    if row["unavailable"]:
        print(f"{name:16} left out: {row['unavailable']}", flush=True)
        return
    counts = ", ".join(f"{number:,} {word}" for word, number in row["counts"].items())
    print(
        f"{name:16} {row['cases']:8,} cases  {row['seconds']:8.1f} s"
        f"  {len(row['findings']):4} findings  {counts}",
        flush=True,
    )


def add_up(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sums by kind over several campaigns."""
    total: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, row in run["kinds"].items():
            mine = total.setdefault(
                name,
                {
                    "cases": 0,
                    "seconds": 0.0,
                    "counts": Counter(),
                    "findings": [],
                    "unavailable": "",
                },
            )
            mine["cases"] += row["cases"]
            mine["seconds"] = round(mine["seconds"] + row["seconds"], 1)
            mine["counts"].update(row["counts"])
            mine["findings"].extend(row["findings"])
            mine["unavailable"] = mine["unavailable"] or row["unavailable"]
    return {name: total[name] for name in KINDS if name in total}


def _command() -> str:
    """The flags, but for those that name files of this machine."""
    return " ".join(flag for flag in sys.argv[1:] if not flag.startswith(("--json", "--keep")))


def _commit() -> str:
    line = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for name in _LIBRARIES:
        versions[name] = importlib.metadata.version(name)
    return versions


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON."""
    path.write_text(json.dumps(values, indent=1) + "\n")
