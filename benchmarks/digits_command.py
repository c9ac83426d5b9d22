"""Compares how long the README's training on the digits takes, here and in another checkout.

    python -m benchmarks.digits_command --before=OTHER_CHECKOUT --json=digits_command.json

The whole command is timed, with imports and compilation, in turns: the other checkout, this one,
this one, the other one, and so on. Nothing else should run meanwhile. The native library of both
checkouts has to be built in place (`pip install -e` there).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.origin import commit, origin

HERE = Path(__file__).parent.parent


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--pairs", type=int, default=4, help="how often each is timed")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    if not (args.before / "configs" / "digits.py").is_file():
        parser.error(f"{args.before} is not a checkout with configs/digits.py")
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")
    seconds: dict[str, list[float]] = {"before": [], "now": []}
    for pair in range(args.pairs):
        turns = [("before", args.before), ("now", HERE)]
        for side, checkout in turns if pair % 2 == 0 else reversed(turns):
            seconds[side].append(seconds_of_command(checkout))
            print(f"{side}: {seconds[side][-1]:.1f} s", flush=True)
    report = {
        **origin("digits_command"),
        "commit_before": commit(args.before),
        "versions": {"python": sys.version.split()[0], "jax": version("jax")},
        "seconds": seconds,
        "share_of_the_time_before": median(seconds["now"]) / median(seconds["before"]),
    }
    print(f"now {report['share_of_the_time_before']:.2f} of the time before")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def seconds_of_command(checkout: Path) -> float:
    """Time the README's command in a checkout, with a new workdir."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "siman_jax.main", "--config=configs/digits.py", f"--workdir={folder}/run"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *command],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout.absolute())},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
