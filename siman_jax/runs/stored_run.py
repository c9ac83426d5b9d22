"""A run on disk, without training: its checkpoints read, or a first one written."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.errors import UsageError
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
from siman_jax.runs.snapshot import Snapshot, abstract_snapshot, read_bits
from siman_jax.runs.workdir import claim_workdir
from siman_jax.training.epoch import Progress
from siman_jax.training.metrics import Sums
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import TrainState
from siman_jax.training.task import model_from_config

CHECKPOINTS = "checkpoints"
FAILURE_FILE = "failure.txt"  # why a sweep left out a run
_CLASSIFIER_BIAS = "progress/state/params/fc/bias"


def load_run(config: ConfigDict, workdir: Path, mesh: Mesh, *, best: bool = False) -> Snapshot:
    """Read a run's last or best checkpoint; its data are not needed.

    Args:
      config: of the run.
      workdir: the run's folder.
      mesh: the devices to lay it out on.
      best: read the one with the best test accuracy instead of the last.

    Raises:
      UsageError: `workdir` holds no checkpoint that can be read, or of another network, or its
        config is of another version.
    """
    restore = restore_best if best else restore_latest
    snapshot = restore(workdir / CHECKPOINTS, _layout(config, workdir, mesh))
    if snapshot is None:
        raise UsageError(f"{workdir} holds no checkpoints; train there first, with --mode=train.")
    return snapshot


def load_step(config: ConfigDict, workdir: Path, mesh: Mesh, step: int) -> Snapshot:
    """Read a run's checkpoint of one step, of those that `kept_steps` lists.

    Raises:
      UsageError: it cannot be read, or is of another network; or the config is of another version.
    """
    return restore_step(workdir / CHECKPOINTS, step, _layout(config, workdir, mesh))


def kept_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints that a run kept, earliest first."""
    return sorted(saved_steps(workdir / CHECKPOINTS))


def is_removed(workdir: Path, step: int) -> bool:
    """Whether a checkpoint that could not be read is gone, since the run still trains."""
    return removed_meanwhile(workdir / CHECKPOINTS / str(step))


def saved_step(workdir: Path) -> int:
    """The step of a run's latest checkpoint, 0 where there is none; it is not opened."""
    return max(kept_steps(workdir), default=0)


def is_finished(workdir: Path, epochs: int) -> bool:
    """Whether the last of a run's epochs is logged and saved, or no checkpoint was kept at all.

    None is opened. A run of which only config and log are kept, as in results/, is finished too.
    """
    rows = read_rows(workdir)
    if not rows or rows[-1]["epoch"] != epochs:
        return False
    return saved_step(workdir) in (0, rows[-1]["step"])


def check_resumable(workdir: Path) -> None:
    """Refuse a run of which only the log is kept, which training would write anew.

    A log of one epoch may be that of a run killed before its first checkpoint was whole.

    Raises:
      UsageError: epochs are logged, but no checkpoint is there.
    """
    rows = read_rows(workdir)
    if len(rows) > 1 and not kept_steps(workdir):
        raise UsageError(
            f"{workdir} holds the log of {len(rows)} epochs, and no checkpoint to go on from; to"
            " train this config again, name another --workdir."
        )


def found_run(config: ConfigDict, workdir: Path, mesh: Mesh, variables: dict[str, Any]) -> None:
    """Write the checkpoint of step 0 from which a run trains given weights on.

    Args:
      config: of the run.
      workdir: its folder, which holds no run yet.
      mesh: the devices to lay it out on meanwhile.
      variables: `params` and `batch_stats` of the config's network.

    Raises:
      UsageError: the weights are not of the config's network, or `workdir` cannot be written.
    """
    layout = _layout(config, workdir, mesh)
    state = layout.progress.state
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    given = {name: variables[name] for name in expected}
    if jax.tree.map(jnp.shape, given) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise UsageError("the weights are not of the network that the config describes.")
    params, batch_stats = (jax.tree.map(jnp.float32, given[name]) for name in expected)
    start = TrainState(jnp.int32(0), params, batch_stats, _optimizer(config).init(params))
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
    """The layout of a run's checkpoints.

    Raises:
      UsageError: the config is of another version.
    """
    try:
        config = _with_stored_classes(config, workdir)
        return abstract_snapshot(config, model_from_config(config), _optimizer(config), mesh)
    except UsageError:
        raise
    # A field that is missing, that the network does not take, or of another type.
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"the config is of another version: {'. '.join(str(error).splitlines())}"
        ) from error


def _with_stored_classes(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config with the number of classes that its checkpoints have, where it names none.

    Elsewhere they are counted in the folders of images, which need not be here.
    """
    if config.data.num_classes:
        return config
    config = config.copy_and_resolve_references()
    shape = leaf_shape(workdir / CHECKPOINTS, _CLASSIFIER_BIAS)
    config.data.num_classes = shape[0] if shape else 1
    return config


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    return build_optimizer(config.optimizer, lambda _: jnp.zeros(()))
