"""Checks and measures an accelerator in one run of limited time.

    python -m benchmarks.accelerator --minutes=9 --data=FOLDER --out=results/accelerator_NAME
    python -m benchmarks.accelerator --quick --out=DIR      # every part in small, on a CPU

For one GPU or TPU chip that is available for a quarter of an hour. The most valuable parts run
first. Each is a process of its own, is stopped when its share of the time is over, and writes
results to DIR as soon as it has them:

    checks.json         integers, bits, gradients and losses compared with the CPU's
    steps.json          training: images/s, memory, and where the time of ImageNet's step goes
    torch_steps.json    two of these steps in PyTorch, if it is installed
    packed.json         packed inference compared with the real-valued network in bfloat16
    decoding.json       images/s that this host decodes, from FOLDER/photographs/**/*.jpg
    training_run.json   a run of ResNet-20 by the published recipe, in the remaining time, on
                        FOLDER/cifar10/{train,test}/CLASS/*
    run.tar.gz          folder, log and checkpoints of that run; the next call continues from this
                        file in DIR or FOLDER
    summary.json        all results

Anything missing or left out for lack of time is named. Checks, steps and packed inference need JAX,
Flax, Optax and ml-collections; decoding needs simplejpeg and OpenCV; the run needs all these, Orbax
and tensorboardX. On a GPU do not set JAX_PLATFORMS, since the device is compared with the CPU. Each
part is a module of `benchmarks.accelerator_parts`.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.origin import origin
from siman_jax.output import write_whole

REPOSITORY = Path(__file__).parent.parent
MINUTES, QUICK_MINUTES = 9.0, 3.0
# A part with less time than this is left out.
LEAST_SECONDS = 10.0
# How long a part may exceed its time before it is killed.
GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class PartOfRun:
    """A part, and when it has to end.

    Attributes:
      name: of its module and its file.
      until: when it ends, as a share of the whole time, 0 to 1.
    """

    name: str
    until: float


# The most valuable first. Time that a part does not use goes to the next ones.
PARTS = (
    PartOfRun("checks", 0.18),
    PartOfRun("steps", 0.6),
    PartOfRun("torch_steps", 0.75),
    PartOfRun("packed", 0.85),
    PartOfRun("decoding", 0.88),
    PartOfRun("training_run", 1.0),
)


def main() -> None:
    """Run the parts, and print the summary."""
    args = parse_arguments()
    started, whole = time.monotonic(), 60 * args.minutes - GRACE_SECONDS
    # Exit by an exception, so that the running part is killed too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    summary: dict[str, Any] = {
        **origin("accelerator"),
        "python": platform.python_version(),
        "minutes": args.minutes,
        "parts": {
            part.name: {"seconds": 0.0, "left_out": {part.name: "the run was ended before it"}}
            for part in PARTS
        },
    }
    try:
        for part in PARTS:
            # Quick parts are so small that they need no limits of their own.
            until = 1.0 if args.quick else part.until
            seconds = started + until * whole - time.monotonic()
            summary["parts"][part.name] = run_part(part.name, seconds, args)
            write_whole(args.out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    finally:
        print_summary(summary)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help=f"{MINUTES:g}, or {QUICK_MINUTES:g} if quick")
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="made if missing")
    parser.add_argument("--quick", action="store_true", help="tiny networks: does it run?")
    args = parser.parse_args()
    args.minutes = args.minutes or (QUICK_MINUTES if args.quick else MINUTES)
    if args.minutes <= 0:
        parser.error("--minutes must be above 0")
    if args.data and not args.data.is_dir():
        parser.error(f"there is no folder {args.data}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def run_part(name: str, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own.

    Returns:
      The results that it wrote, by name; the "seconds" that it took; and in "left_out", what is
      missing, and why.
    """
    file = args.out / f"{name}.json"
    file.unlink(missing_ok=True)  # from an earlier run
    if seconds < LEAST_SECONDS:
        return {"seconds": 0.0, "left_out": {name: "no time was left for it"}}
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.accelerator_parts.{name}"]
    command += [f"--out={file.absolute()}", f"--seconds={seconds:.1f}"]
    command += [f"--data={args.data.absolute()}"] if args.data else []
    command += ["--quick"] if args.quick else []
    reason = ""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(args.quick),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if process.wait(timeout=seconds + GRACE_SECONDS):
                output.seek(0)
                lines = [line.strip() for line in output if line.strip()]
                reason = " | ".join(lines[-3:])[-1000:] or f"it ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"it was ended after {seconds:.0f} s"
        finally:
            end_with_children(process)
    results = json.loads(file.read_text()) if file.exists() else {}
    if reason:
        results.setdefault("left_out", {})[f"the rest of {name}"] = reason
    return {"seconds": time.monotonic() - started, **results}


def end_with_children(process: subprocess.Popen) -> None:
    """Kill a process and all processes that it has started."""
    with suppress(ProcessLookupError):  # all have already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(quick: bool) -> dict[str, str]:
    """Return the environment variables of a part's process."""
    variables = dict(os.environ)
    # PyTorch and the compiler's autotuning also need memory.
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    platforms = variables.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):  # to compare with, and to create states
        variables["JAX_PLATFORMS"] = f"{platforms},cpu"
    if quick:
        flags = variables.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
    return variables


def print_summary(summary: dict[str, Any]) -> None:
    """Print the results, and what is missing."""
    parts = summary["parts"]
    steps, torch = parts["steps"], parts["torch_steps"]
    versions = steps.get("versions", {}) | torch.get("versions", {})
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"\n{steps.get('device', 'no device')}; {known}; Python {summary['python']}")
    for name, row in parts["checks"].get("checks", {}).items():
        print_check(name, row)
    for name, row in steps.get("programs", {}).items():
        print_program(name, row, torch.get("programs", {}).get(name))
    for name, row in parts["packed"].get("calls", {}).items():
        rate = f"{row['images_per_second']:12.0f} images/s"
        print(f"{name:48} {rate}, {row['median_ms']:.3f} ms a call")
    for name, row in parts["decoding"].get("processes", {}).items():
        label = f"decoding in {name} process{'es' * (name != '1')}"
        print(f"{label:48} {row['images_per_second']:12.0f} images/s")
    run = parts["training_run"]
    if "epochs" in run:
        print(
            f"the run of ResNet-20 has taken {run['epochs']} epochs, {run['epochs_before']} of them"
            f" before; test top-1 {run.get('test_top1', 0):.2f} %, best"
            f" {run.get('best_test_top1', 0):.2f} %"
        )
    for name, part in parts.items():
        print(f"{name} took {part['seconds']:.0f} s")
        for what, why in part.get("left_out", {}).items():
            print(f"  LEFT OUT: {what}: {why}")


def print_check(name: str, row: dict[str, Any]) -> None:
    """Print a line for a check, or for the losses on each device."""
    if "passed" in row:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        told = ", ".join(f"{k} {v:g}" for k, v in numbers.items() if k != "passed")
        print(f"{name}: {'passed' if row['passed'] else 'FAILED'} ({told})")
    else:
        for place, values in row.items():
            print(f"{name}, {place}: " + " ".join(f"{value:.4f}" for value in values))


def print_program(name: str, row: dict[str, Any], torch: dict[str, Any] | None) -> None:
    """Print lines for a training step, and for PyTorch's."""
    line = f"{name:48} {row['images_per_second']:12.0f} images/s"
    line += f", compiled in {row['seconds_to_compile']:.0f} s"
    if "needed_bytes" in row:
        line += f", {row['needed_bytes'] / 1e9:.2f} GB"
    print(line)
    if single := row.get("one_step_a_dispatch"):
        print(f"{'  one step a dispatch':48} {single['images_per_second']:12.0f} images/s")
    if kernels := row.get("kernels"):
        print(
            f"  {kernels['share_outside_convolutions']:.1%} of its kernels' time outside"
            f" convolutions; the profile assigns {kernels['share_told']:.1%} to the program"
        )
    if torch:
        ratio = row["images_per_second"] / torch["images_per_second"]
        rate = torch["images_per_second"]
        print(f"{'  PyTorch':48} {rate:12.0f} images/s, of which ours is {ratio:.2f} times")


if __name__ == "__main__":
    main()
