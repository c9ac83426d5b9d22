"""Train in steps: several runs one after the other, which start from or learn from earlier ones."""

import logging
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.field_names import RUN_FIELDS, find_field
from siman_jax.runs.init_from import check_transfer
from siman_jax.runs.log import Results, last_and_best, read_rows
from siman_jax.runs.stored_run import CHECKPOINTS, check_resumable, is_finished
from siman_jax.runs.train import evaluate_run, train_together
from siman_jax.runs.workdir import check_workdir, check_writable, holds_run
from siman_jax.stop import Preempted
from siman_jax.training.config_check import check_config

# The config of each step and the results of its run, by the folder of the run.
StepResults = dict[Path, tuple[ConfigDict, Results]]

_log = logging.getLogger(__name__)


def link_steps(steps: Mapping[str, ConfigDict], folder: Path) -> dict[Path, ConfigDict]:
    """Replace the names of earlier steps in configs by their folders.

    The fields are `field_names.RUN_FIELDS`.

    Args:
      steps: config of each step by its name, in the order of training.
      folder: the folder of all steps; the run of each lives in the folder of its name in it.

    Returns:
      The config of each step, by its folder.

    Raises:
      UsageError: a name cannot be that of a folder, a step needs one that does not come before it,
        or one before the last is needed by none.
    """
    runs: dict[str, Path] = {}
    linked, needed = {}, set()
    for name, step in steps.items():
        if not name or Path(name).name != name or name.startswith("."):
            raise UsageError(f"the step {name!r} cannot be the name of a folder.")
        config = step.copy_and_resolve_references()
        for field in RUN_FIELDS:
            source = find_field(config, field)
            if source in runs:
                config.update_from_flattened_dict({field: str(runs[source])})
                needed.add(source)
            elif source in steps:
                raise UsageError(
                    f"the step {name} needs the step {source}, which does not come before it;"
                    " change the order."
                )
        # Absolute, so that the same run goes on from any working folder.
        runs[name] = folder.absolute() / name
        linked[folder / name] = config.lock()
    for name in list(runs)[:-1]:
        if name not in needed:
            raise UsageError(
                f"no step needs the step {name}: its name is in no later step's init_from or"
                " distillation.teacher. Leave it out, or train it by itself."
            )
    return linked


def train_steps(steps: Mapping[str, ConfigDict], folder: Path, mesh: Mesh) -> StepResults:
    """Train the steps that are not finished, in order.

    Each step is an ordinary run. Stopped or killed at any time, the same call goes on and ends with
    the same weights. Everything that does not need the result of an earlier step is checked first.

    Args:
      steps: as for `link_steps`.
      folder: as for `link_steps`; created if needed.
      mesh: the devices to train on.

    Returns:
      The results of `train.train` of every step.

    Raises:
      UsageError: as for `link_steps` and `train.train`; or a step's network does not fit the one
        that it starts from.
      Preempted: as for `train.train`.
    """
    linked = link_steps(steps, folder)
    if holds_run(folder):
        raise UsageError(
            f"--workdir={folder} holds a run, and steps live in folders inside theirs; name another"
            " folder."
        )
    sources = {str(workdir.absolute()): config for workdir, config in linked.items()}
    for workdir, config in linked.items():
        check_workdir(config, workdir)
        check_writable(workdir / CHECKPOINTS)
        check_resumable(workdir)
        check_config(config, mesh)
        if config.init_from in sources:
            check_transfer(config, sources[config.init_from])
    results: StepResults = {}
    for workdir, config in linked.items():
        if all_agree(is_finished(workdir, config.epochs)):
            _log.info("%s is finished", workdir)
            own = last_and_best(read_rows(workdir)) if is_first_process() else {}
        else:
            _log.info("training %s", workdir)
            stop = StopSignals()
            own = train_together({workdir: config}, mesh, stop)[workdir]
            if stop.should_stop(0) and len(results) + 1 < len(linked):
                raise Preempted(f"stopped by {stop.name} after {workdir}")
        results[workdir] = (config, own)
    return results


def evaluate_steps(steps: Mapping[str, ConfigDict], folder: Path, mesh: Mesh) -> StepResults:
    """Evaluate the run of every step; see `train.evaluate_run` and `train_steps`."""
    return {
        workdir: (config, evaluate_run(config, workdir, mesh))
        for workdir, config in link_steps(steps, folder).items()
    }
