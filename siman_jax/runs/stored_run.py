"""Runs on disk: read their checkpoints, or create a run from given weights."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.errors import UsageError, on_one_line
from siman_jax.outside import is_outside
from siman_jax.runs.checkpoint import (
    CheckpointWriter,
    leaf_shape,
    removed_meanwhile,
    restore_best,
    restore_latest,
    restore_step,
    saved_steps,
)
from siman_jax.runs.lock import RunLock
from siman_jax.runs.log import read_rows
from siman_jax.runs.snapshot import Snapshot, abstract_snapshot, creation, read_bits
from siman_jax.runs.trained_on import read_trained_on
from siman_jax.runs.workdir import claim_workdir
from siman_jax.training.epoch import Progress
from siman_jax.training.metrics import Sums
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import state_from
from siman_jax.training.task import model_from_config

CHECKPOINTS = "checkpoints"
FAILURE_FILE = "failure.txt"  # why a sweep left out a run
_CLASSIFIER_BIAS = "progress/state/params/fc/bias"


def load_run(config: ConfigDict, workdir: Path, mesh: Mesh, *, best: bool = False) -> Snapshot:
    """Read a run's last or best checkpoint; the run's data are not needed.

    Args:
      config: the run's config.
      workdir: the run's folder.
      mesh: the devices that get the arrays.
      best: read the checkpoint with the best test accuracy instead of the last.

    Raises:
      UsageError: `workdir` holds no readable checkpoint, or one of another network, or the config
        is of another version.
    """
    restore = restore_best if best else restore_latest
    snapshot = restore(workdir / CHECKPOINTS, _layout(config, workdir, mesh))
    if snapshot is None:
        raise UsageError(f"{workdir} holds no checkpoints; train first, with --mode=train.")
    return snapshot


def load_step(config: ConfigDict, workdir: Path, mesh: Mesh, step: int) -> Snapshot:
    """Read a run's checkpoint of one step, which must be in `kept_steps`.

    Raises:
      UsageError: it cannot be read or is of another network, or the config is of another version.
    """
    return restore_step(workdir / CHECKPOINTS, step, _layout(config, workdir, mesh))


def kept_steps(workdir: Path) -> list[int]:
    """List the steps of a run's checkpoints, earliest first."""
    return sorted(saved_steps(workdir / CHECKPOINTS))


def is_removed(workdir: Path, step: int) -> bool:
    """Whether a checkpoint that could not be read is gone, because the run still trains."""
    return removed_meanwhile(workdir / CHECKPOINTS / str(step))


def saved_step(workdir: Path) -> int:
    """Return the step of a run's latest checkpoint, 0 if there is none; it is not opened."""
    return max(kept_steps(workdir), default=0)


def is_finished(workdir: Path, epochs: int) -> bool:
    """Whether the last epoch of a run is logged and saved; checkpoints are not opened.

    A run without checkpoints whose log is complete, like those in results/, is finished too.
    """
    rows = read_rows(workdir)
    if not rows or rows[-1]["epoch"] != epochs:
        return False
    return saved_step(workdir) in (0, rows[-1]["step"])


def check_resumable(workdir: Path) -> None:
    """Check that training would not overwrite the log of a run without checkpoints.

    A log of one epoch may be of a run that was killed before its first checkpoint was complete.

    Raises:
      UsageError: epochs are logged, but there is no checkpoint.
    """
    rows = read_rows(workdir)
    if len(rows) > 1 and not kept_steps(workdir):
        raise UsageError(
            f"{workdir} holds the log of {len(rows)} epochs, and no checkpoint to continue from; to"
            " train this config again, name another --workdir."
        )


def create_run(config: ConfigDict, workdir: Path, mesh: Mesh, variables: dict[str, Any]) -> None:
    """Create a run that starts from given weights, by writing a checkpoint of step 0.

    Args:
      config: the run's config.
      workdir: the run's folder, which must not hold a run.
      mesh: the devices that hold the arrays meanwhile.
      variables: `params` and `batch_stats` of the config's network.

    Raises:
      UsageError: the weights do not fit the config's network, or `workdir` cannot be written.
    """
    layout = _layout(config, workdir, mesh)
    state = layout.progress.state
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    given = {name: variables[name] for name in expected}
    if jax.tree.map(jnp.shape, given) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise UsageError(
            "the weights do not fit the network in the config; choose the config of their network."
        )
    floats = jax.tree.map(jnp.float32, given)
    start = state_from(floats, _optimizer(config), averaged=bool(config.average_decay))
    bits = read_bits(start, config.model.weight_rule)
    snapshot = jax.device_put(
        Snapshot(Progress(start, Sums.zero()), bits), jax.tree.map(lambda x: x.sharding, layout)
    )
    with RunLock(workdir) as lock:
        lock.make_folder()
        claim_workdir(config, workdir)
        writer = CheckpointWriter(workdir / CHECKPOINTS, config.keep_checkpoints, step=0)
        try:
            writer.save(0, snapshot, top1=None)
        finally:
            writer.close()


def _layout(config: ConfigDict, workdir: Path, mesh: Mesh) -> Snapshot:
    """Return the layout of a run's checkpoints.

    Raises:
      UsageError: the config is of another version.
    """
    try:
        config = with_stored_classes(config, workdir)
        create = creation(config, model_from_config(config), _optimizer(config))
        return abstract_snapshot(config, create, mesh)
    except UsageError:
        raise
    # A field is missing, unknown to the network, or of another type.
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"the config is of another version: {on_one_line(error)}. Use the"
            " version that wrote it."
        ) from error


def with_stored_classes(config: ConfigDict, workdir: Path) -> ConfigDict:
    """If the config has no number of classes, take the number that the run was trained with.

    Training counts the class folders instead, which need not be on this machine.
    """
    if config.data.num_classes:
        return config
    config = config.copy_and_resolve_references()
    if is_outside(config.model.name):  # its classifier may have any name
        trained_on = read_trained_on(workdir)
        config.data.num_classes = len(trained_on.classes) if trained_on else 1
    else:
        shape = leaf_shape(workdir / CHECKPOINTS, _CLASSIFIER_BIAS)
        config.data.num_classes = shape[0] if shape else 1
    return config


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    return build_optimizer(config.optimizer, lambda _: jnp.zeros(()))
