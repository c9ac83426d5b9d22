"""Command line: train a grid of variants and seeds, and summarize the accuracy of each variant.

    python -m siman_jax.sweep configs/sweeps/digits.py --workdir=runs/sweep

Each run is an ordinary run, in WORKDIR/VARIANT/seedN. The same command skips finished runs and
continues the others. Exit status: 0, success; 2, bad input, or a run that failed; 75, stopped by
SIGTERM or Ctrl-C with everything saved.
"""

if __name__ == "__main__":  # a signal may arrive during the imports below, which take seconds
    from siman_jax.stop import stop_at_once

    stop_at_once()

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.command import run
from siman_jax.data.defaults import evaluated_images
from siman_jax.devices.mesh import make_mesh
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError, choose
from siman_jax.output import write_whole
from siman_jax.paths import local_path
from siman_jax.runs.log import last_and_best, read_rows
from siman_jax.runs.stored_run import FAILURE_FILE, check_resumable, is_finished, saved_step
from siman_jax.runs.sweep_plan import Sweep, load_sweep, with_settings
from siman_jax.runs.sweep_summary import summarize_variant, summary_table
from siman_jax.runs.train import train_together
from siman_jax.runs.workdir import check_workdir, check_writable
from siman_jax.shipped import find_config
from siman_jax.stop import Preempted
from siman_jax.streams import outlive_streams
from siman_jax.terminal import shown, wide_console
from siman_jax.training.epoch import Diverged
from siman_jax.training.task import build_task

SWEEP_FILE = "sweep.json"
SUMMARY_FILE = "summary.json"

# Tests import several commands, and other commands have flags with some of these names.
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the sweep, with a run in each VARIANT/seedN.", allow_override=True
)
_SET = flags.DEFINE_multi_string(
    "set", [], "FIELD=VALUE to set in the config of all runs, such as --set=epochs=2; repeatable."
)
_SEEDS_AT_ONCE = flags.DEFINE_integer(
    "seeds_at_once",
    0,
    "Number of seeds of a variant to train as one program; 0: one on the CPU, all elsewhere.",
    lower_bound=0,
)
_ONLY = flags.DEFINE_list("only", [], "Variants to train now, separated by commas; default: all.")
_DEVICES = flags.DEFINE_integer(
    "devices", 0, "Number of devices to use; 0: all.", lower_bound=0, allow_override=True
)


def main(argv: list[str]) -> None:
    """Run the sweep and print its summary."""
    if len(argv) != 2:
        raise UsageError(
            "name one sweep's file, such as configs/sweeps/digits.py; flags are --NAME=VALUE."
        )
    if not _WORKDIR.value:
        raise UsageError("--workdir is missing: name the sweep's folder, such as runs/sweep.")
    file = find_config(local_path(argv[1], "sweep"))
    sweep = with_settings(load_sweep(file), _SET.value)
    workdir = local_path(_WORKDIR.value, "--workdir")
    for name in _ONLY.value:
        choose(sweep.variants, name, "variant")
    mesh = make_mesh(_DEVICES.value)
    summary = run_sweep(sweep, workdir, mesh, _SEEDS_AT_ONCE.value, _ONLY.value)
    images = evaluated_images(sweep.base.data)
    wide_console().print(summary_table(sweep.name, images, summary["variants"]))
    failures = {
        f"{variant}/seed{seed}": text
        for variant, row in summary["variants"].items()
        for seed, text in row["failures"].items()
    }
    if failures:
        lines = [f"{name}: {text}" for name, text in failures.items()]
        raise UsageError(
            "\n  ".join([f"{len(failures)} runs failed:", *lines])
            + f"\nTo try one again, remove {FAILURE_FILE} from its folder."
        )


def run_sweep(
    sweep: Sweep,
    folder: Path,
    mesh: Mesh,
    seeds_at_once: int = 0,
    only: Collection[str] = (),
) -> dict[str, Any]:
    """Train the runs that are not finished.

    A run fails if its loss stops being finite, or if it is trained but the end of its log is lost.
    Failed runs are skipped, now and in later calls; the others continue.

    Args:
      sweep: the grid.
      folder: the sweep's folder; created if needed.
      mesh: the devices to train on.
      seeds_at_once: number of seeds of a variant to train as one program; 0: one on the CPU, whose
        cores a single run keeps busy, and all elsewhere. Seeds with teachers of their own are
        trained one by one.
      only: variants to train now; all if empty.

    Returns:
      The summary that is written to `folder`/summary.json: "name", and "variants" with the result
      of `summarize_variant` over the finished runs.

    Raises:
      UsageError: a variant or its data cannot be used, or `folder` is not this sweep's; raised
        before any training.
      Preempted: stopped by SIGTERM or Ctrl-C with everything saved; call again to continue.
    """
    _check_folder(sweep, folder)
    runs = {variant: sweep.runs(variant, folder) for variant in sweep.variants}
    for configs in runs.values():
        for workdir, config in configs.items():
            check_workdir(config, workdir)
    pending = {variant: _unfinished(runs[variant]) for variant in only or runs}
    for configs in pending.values():
        for workdir in configs:
            check_resumable(workdir)
        for config in list(configs.values())[:1]:  # one is enough: seeds cannot be wrong
            build_task(config, mesh)
    _write_json(folder / SWEEP_FILE, _description(sweep))

    stop = StopSignals()
    for variant, configs in pending.items():
        count = len(runs[variant])
        print(shown(f"{variant}: {count - len(configs)} of {count} seeds done"))
        for group in training_groups(configs, _at_once(runs[variant], seeds_at_once)):
            if stop.should_stop(0):  # a signal came after the last step of the previous run
                raise Preempted(f"stopped by {stop.name} between runs")
            _train_group(group, mesh, stop)
    summary = {
        "name": sweep.name,
        "variants": {
            variant: _summary(sweep, variant, configs) for variant, configs in runs.items()
        },
    }
    _write_json(folder / SUMMARY_FILE, summary)
    return summary


def _at_once(configs: Mapping[Path, ConfigDict], asked: int) -> int:
    """Return how many seeds of a variant to train as one program; `asked`: of `run_sweep`."""
    if len({config.distillation.teacher for config in configs.values()}) > 1:
        return 1  # one program has one teacher
    return asked or (1 if jax.default_backend() == "cpu" else len(configs))


def training_groups(
    configs: dict[Path, ConfigDict], at_once: int
) -> Iterator[dict[Path, ConfigDict]]:
    """Group runs to train together: at most `at_once`, all at the same step.

    Runs that were stopped midway come first.
    """
    by_step: dict[int, list[Path]] = {}
    for workdir in configs:
        by_step.setdefault(saved_step(workdir), []).append(workdir)
    for _, workdirs in sorted(by_step.items(), reverse=True):
        for start in range(0, len(workdirs), at_once):
            yield {workdir: configs[workdir] for workdir in workdirs[start : start + at_once]}


def _train_group(group: dict[Path, ConfigDict], mesh: Mesh, stop: StopSignals) -> None:
    """Train runs together; write a file with the reason for those that fail."""
    print(shown(f"training {', '.join(map(str, group))}"), flush=True)
    try:
        train_together(group, mesh, stop)
    except Diverged as error:
        if len(group) == 1:
            (workdir,) = group
            _write_failure(workdir, str(error))
            return
        for workdir, config in _unfinished(group).items():  # one by one: only some diverge
            _train_group({workdir: config}, mesh, stop)
        return
    for workdir in _unfinished(group):  # trained to the end, but not logged to the end
        _write_failure(workdir, "its log lacks the last epoch, which is trained; restore log.jsonl")


def _write_failure(workdir: Path, reason: str) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / FAILURE_FILE, f"{reason}\n".encode())


def _unfinished(configs: dict[Path, ConfigDict]) -> dict[Path, ConfigDict]:
    return {
        workdir: config
        for workdir, config in configs.items()
        if not (is_finished(workdir, config.epochs) or (workdir / FAILURE_FILE).exists())
    }


def _summary(sweep: Sweep, variant: str, configs: dict[Path, ConfigDict]) -> dict[str, Any]:
    results = {
        config.seed: last_and_best(read_rows(workdir))
        for workdir, config in configs.items()
        if is_finished(workdir, config.epochs)
    }
    failures = {
        config.seed: (workdir / FAILURE_FILE).read_text().strip()
        for workdir, config in configs.items()
        if (workdir / FAILURE_FILE).exists()
    }
    return summarize_variant(sweep.variants[variant], results, failures)


def _description(sweep: Sweep) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "seeds": list(sweep.seeds),
        "variants": {name: dict(fields) for name, fields in sweep.variants.items()},
        "base": json.loads(sweep.base.to_json()),
    }


def _check_folder(sweep: Sweep, folder: Path) -> None:
    """Refuse a folder that is not this sweep's; nothing is written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--workdir={folder} is a file; name a folder.")
    check_writable(folder)
    path = folder / SWEEP_FILE
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no sweep; name a new folder.")
        return
    try:
        name = json.loads(path.read_text())["name"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error!r}); restore it, or use another folder."
        ) from None
    if name != sweep.name:
        raise UsageError(
            f"{folder} holds the sweep {name!r}, and this is {sweep.name!r}; name another"
            " folder with --workdir."
        )


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(fields, indent=2) + "\n").encode())


if __name__ == "__main__":
    outlive_streams()
    run(main)
