"""Command line: train, evaluate or summarize a network, or verify a run's files.

    python -m siman_jax.main --config=configs/digits.py
    python -m siman_jax.main --config=configs/cifar10.py:resnet18 --workdir=runs/mine
    python -m siman_jax.main --config=configs/cifar10_strong.py --steps=teacher,real_weights,binary

Exit status: 0, success; 2, bad input; 69, another process of the run is gone (134, SIGABRT, if
JAX's runtime notices first); 75, stopped by SIGTERM or Ctrl-C with everything saved.
"""

if __name__ == "__main__":  # a signal may arrive during the imports below, which take seconds
    from siman_jax.stop import stop_at_once

    stop_at_once()

import os
import time
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from siman_jax.command import load_variant, lock_config, run
from siman_jax.data.defaults import evaluated_images
from siman_jax.devices.mesh import is_first_process, join_hosts, make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.summary import print_summary, summarize
from siman_jax.paths import local_path
from siman_jax.runs.log import Results
from siman_jax.runs.steps import evaluate_steps, train_steps
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.verify import verify_run
from siman_jax.runs.workdir import default_workdir
from siman_jax.streams import outlive_streams
from siman_jax.terminal import say, shown, wide_console
from siman_jax.training.config_check import check_config
from siman_jax.training.task import image_shape, model_from_config

# Exit status of a process that lost contact with another process of its run (EX_UNAVAILABLE).
LOST_A_PROCESS = 69

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's settings: configs/NAME.py or configs/NAME.py:VARIANT."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run: log, curves, checkpoints. Default: runs/NAME or runs/NAME-VARIANT, named"
    " after the config.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "summary", "verify"],
    "What to do; verify checks a run's files, and needs no --config.",
)
_STEPS = flags.DEFINE_list(
    "steps",
    [],
    "Variants of the config to train one after the other, separated by commas, each in the folder"
    " of its name in --workdir. Where its init_from or distillation.teacher is the name of an"
    " earlier one, that run is taken.",
)
_DEVICES = flags.DEFINE_integer("devices", 0, "Number of devices to use; 0: all.", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the processes that a scheduler started for this run (SLURM, Open MPI, Kubernetes, Cloud"
    " TPU); implied by --coordinator.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", 0)
_HOST_TIMEOUT = flags.DEFINE_integer(
    "host_timeout", 60, "Seconds after which a silent process counts as lost.", 5
)


def main(argv: list[str]) -> None:
    """Run the mode that the flags select."""
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; flags are written --NAME=VALUE.")
    if _STEPS.value and _MODE.value not in ("train", "eval"):
        raise UsageError(f"--steps does not go with --mode={_MODE.value}; leave it out.")
    if _MODE.value == "verify":
        _verify(_workdir())
        return
    config = _config()
    if _MODE.value == "summary":
        check_config(config)
        print_summary(summarize(model_from_config(config), image_shape(config)))
        return
    workdir, steps = _workdir(), _steps()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        join_hosts(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HOST_TIMEOUT.value)
    do = train if _MODE.value == "train" else evaluate_run
    do_steps = train_steps if _MODE.value == "train" else evaluate_steps
    try:
        mesh = make_mesh(_DEVICES.value)
        if steps:
            results = do_steps(steps, workdir, mesh)
        else:
            results = {workdir: (config, do(config, workdir, mesh))}
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        _leave_the_others(error)
    except UsageError as error:
        if jax.process_count() == 1:
            raise
        say(f"error: {error}")
        # A normal exit would wait for the other processes. Process 0 serves their runtime and
        # would abort them by exiting, so it lets those that hit the same error exit first.
        time.sleep(5 if is_first_process() else 0)
        os._exit(2)
    if is_first_process():
        for workdir, (config, own) in results.items():
            _print_results(own, config, workdir.name if steps else "")


def _leave_the_others(error: Exception) -> NoReturn:
    """Exit at once; a normal exit would wait for the process that is gone."""
    say(
        f"{error}\nerror: process {jax.process_index()} stopped, most likely because another"
        " process of this run did; see their output for the cause. Start all of them again to"
        " continue from the latest checkpoint."
    )
    os._exit(LOST_A_PROCESS)


def _config() -> ConfigDict:
    config = _CONFIG.value
    if config is None:
        raise UsageError("--config is missing; an example is --config=configs/digits.py.")
    return lock_config(config)


def _steps() -> dict[str, ConfigDict]:
    """Load the config of each step; {} without --steps."""
    names = _STEPS.value
    if len(set(names)) < len(names):
        raise UsageError(f"--steps={','.join(names)} names a step twice.")
    flag = flags.FLAGS["config"]
    if names and ":" in config_flags.get_config_filename(flag):
        raise UsageError(
            "--steps names variants of the config, so leave out the variant in --config="
            f"{config_flags.get_config_filename(flag)}."
        )
    if names and "init_from" in config_flags.get_override_values(flag):
        raise UsageError(
            "--config.init_from would hold for all of --steps; set it in the config of the step."
        )
    return {name: load_variant(name) for name in names}


def _workdir() -> Path:
    if _WORKDIR.value:
        return local_path(_WORKDIR.value, "--workdir")
    if _CONFIG.value is None:
        raise UsageError(
            "--workdir is missing; name the folder of a run, such as --workdir=runs/digits."
        )
    workdir = default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not _PROCESS_ID.value:
        print(shown(f"the run's folder is {workdir}; to change it, set --workdir"), flush=True)
    return workdir


def _verify(workdir: Path) -> None:
    findings = verify_run(workdir)
    table = Table(title=shown(str(workdir)))
    for heading in ("file", "state", "found"):
        table.add_column(heading, overflow="fold")
    for name, whole, text in findings:
        table.add_row(shown(name), "whole" if whole else "damaged", shown(text))
    wide_console().print(table)
    damaged = [name for name, whole, _ in findings if not whole]
    if damaged:
        raise UsageError(
            f"damaged in {workdir}: {', '.join(damaged)}. Training and evaluation skip damaged"
            " checkpoints; restore other files from a copy."
        )


def _print_results(results: Results, config: ConfigDict, step: str) -> None:
    title = f"{step + ': ' if step else ''}{config.model.name}, {evaluated_images(config.data)}"
    table = Table(title=title)
    for heading in ("checkpoint", "epoch", "loss", "top-1 (%)", "top-5 (%)"):
        table.add_column(heading, justify="right")
    for name, row in results.items():
        numbers = (f"{row['loss']:.4f}", f"{row['top1']:.2f}", f"{row['top5']:.2f}")
        table.add_row(name, f"{row['epoch']:g}", *numbers)
    wide_console().print(table)


if __name__ == "__main__":
    outlive_streams()
    run(main)
