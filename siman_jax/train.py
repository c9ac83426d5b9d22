"""Training and evaluation of the run that a config describes.

A run's folder holds config.json, log.jsonl, events (TensorBoard), curves.png and checkpoints.
"""

import logging
import math
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.checkpoint import CheckpointWriter, restore_latest
from siman_jax.curves import draw_curves
from siman_jax.data import load_dataset
from siman_jax.data.dataset import Records, Split
from siman_jax.data.feed import Batch, Feed
from siman_jax.data.resident import ResidentFeed, padded_batches
from siman_jax.data.stream import EvaluationStream, StreamFeed
from siman_jax.devices import is_first_process, make_replica_check, replicated
from siman_jax.epoch import (
    Evaluator,
    Progress,
    diverged,
    make_epoch_runner,
    make_evaluator,
    no_sums,
)
from siman_jax.errors import UsageError
from siman_jax.flips import shares_flipped
from siman_jax.metrics import METRICS
from siman_jax.preemption import Preempted, SigtermWatch
from siman_jax.progress import TrainingProgress
from siman_jax.runlog import RunLog, best_row, read_rows
from siman_jax.snapshot import Snapshot, abstract_snapshot, first_snapshot, read_bits
from siman_jax.step import train_step
from siman_jax.stored_run import CHECKPOINTS, load_run
from siman_jax.task import Task, build_task, model_from_config
from siman_jax.workdir import check_workdir, check_writable, claim_workdir

_SECONDS_WORTH_A_DRAWING = 30
_log = logging.getLogger(__name__)

# Of the "last" and the "best" epoch: "epoch", "loss", "top1" and "top5" (percent).
Results = dict[str, dict[str, float]]


def train(config: ConfigDict, workdir: Path, mesh: Mesh) -> Results:
    """Train from the start, or on from the latest checkpoint in `workdir`.

    All processes of a run call it alike; the first one writes the log.

    Args:
      config: as the files in configs/ make it.
      workdir: the run's folder, the same for all processes; made if there is none.
      mesh: the devices to train on.

    Returns:
      Test metrics of the last and of the best epoch, as they were logged; of several processes,
      the first one gets them.

    Raises:
      UsageError: the config names something unknown, does not fit the mesh, its data cannot be
        used, `workdir` cannot be written or holds a run of another config, or the loss stopped
        being finite.
      Preempted: SIGTERM came; everything is saved, and the same call goes on from there.
    """
    check_workdir(config, workdir)
    check_writable(workdir)
    task = build_task(config, mesh)
    init_key, order_key, augment_key = jax.random.split(jax.random.key(config.seed), 3)
    layout = abstract_snapshot(config, task.model, task.optimizer, mesh)
    snapshot = restore_latest(workdir / CHECKPOINTS, layout)
    if snapshot is None:
        snapshot = first_snapshot(config, task.model, task.optimizer, init_key, layout)
    progress, bits = snapshot.progress, snapshot.bits
    done = int(progress.state.step)
    if done:
        _log.info("going on from step %d of %s", done, workdir)
    # Sums at an epoch's end mean that it was saved before it could be evaluated.
    first, into_epoch = divmod(done, task.steps_per_epoch)
    if into_epoch == 0 and int(progress.sums.count):
        first -= 1

    step = partial(
        train_step,
        model=task.model,
        optimizer=task.optimizer,
        clip_percent=task.clip_percent,
        schedule=task.schedule,
        steps_per_epoch=task.steps_per_epoch,
        accumulation=config.accumulation_steps,
        replicate=lambda tree: lax.with_sharding_constraint(tree, replicated(mesh)),
    )
    feed = _training_feed(config, task.dataset.train, mesh, order_key, augment_key)
    run_epoch = make_epoch_runner(config, step, feed, progress, mesh)
    evaluate = _evaluator(config, task.model, task.dataset.test, mesh)
    replicas_agree = make_replica_check(mesh)

    # Nothing is written before here, where all that a config can get wrong has been tried.
    claim_workdir(config, workdir)
    checkpoints = CheckpointWriter(workdir / CHECKPOINTS, config.keep_checkpoints, done)
    run_log = RunLog(workdir, done, write=is_first_process())
    bar = TrainingProgress(config.epochs * task.steps_per_epoch, done, show=is_first_process())
    try:
        with SigtermWatch() as watch:
            for epoch in range(first, config.epochs):
                started, counted = time.perf_counter(), int(progress.sums.count)
                if int(progress.state.step) < (epoch + 1) * task.steps_per_epoch:
                    progress = run_epoch(progress, bar.advance, watch.should_stop)
                trained = progress.sums.means()
                seconds = time.perf_counter() - started
                images_per_second = (int(progress.sums.count) - counted) / seconds
                state, steps = progress.state, int(progress.state.step)
                if steps < (epoch + 1) * task.steps_per_epoch:
                    checkpoints.save(steps, Snapshot(progress, bits), None)
                    raise _preempted(steps, workdir)

                try:
                    tested = evaluate(state.variables())
                except UsageError:  # images that cannot be decoded; the epoch is not to be lost
                    checkpoints.save(steps, Snapshot(progress, bits), None)
                    raise
                if not (math.isfinite(tested["loss"]) and _all_finite(state.params)):
                    raise diverged(steps - 1)
                if not replicas_agree(state.variables()):
                    raise UsageError(
                        f"after step {steps} the devices hold different parameters; training"
                        " stopped. Checkpoints are from before. Look for a faulty device."
                    )
                before, bits = bits, read_bits(state, config.model.weight_rule)
                row = {
                    "step": steps,
                    "epoch": epoch + 1,
                    "learning_rate": float(task.learning_rate(jnp.asarray(steps - 1))),
                    **_projection_and_schedule(task, jnp.asarray(steps - 1)),
                    **{f"train_{name}": value for name, value in trained.items()},
                    **{f"test_{name}": value for name, value in tested.items()},
                    "images_per_second": round(images_per_second, 1),
                    "flips": {name: float(x) for name, x in shares_flipped(before, bits).items()},
                }
                run_log.write(row)
                progress = Progress(state, no_sums(mesh))
                checkpoints.save(steps, Snapshot(progress, bits), tested["top1"])
                bar.report(row)
                if seconds > _SECONDS_WORTH_A_DRAWING:
                    _draw(workdir)
                if watch.should_stop(steps) and epoch + 1 < config.epochs:
                    raise _preempted(steps, workdir)
    finally:
        feed.close()
        bar.close()
        run_log.close()
        checkpoints.close()
        _draw(workdir)
    return _results(read_rows(workdir)) if is_first_process() else {}


def evaluate_run(config: ConfigDict, workdir: Path, mesh: Mesh) -> Results:
    """Evaluate the last and the best checkpoint of a run on the whole test split.

    Returns:
      Their test metrics, computed anew.

    Raises:
      UsageError: `workdir` holds no checkpoint, or the run of another config.
    """
    check_workdir(config, workdir)
    snapshots = {
        "last": load_run(config, workdir, mesh),
        "best": load_run(config, workdir, mesh, best=True),
    }
    dataset = load_dataset(config.data)
    evaluate = _evaluator(config, model_from_config(config), dataset.test, mesh)
    steps_per_epoch = len(dataset.train) // config.batch_size
    results = {}
    for name, snapshot in snapshots.items():
        state = snapshot.progress.state
        epoch = round(int(state.step) / steps_per_epoch, 2)
        results[name] = {"epoch": epoch, **evaluate(state.variables())}
    return results


def _projection_and_schedule(task: Task, step: Array) -> dict[str, float]:
    """What the weight rule's method schedules, as it was at `step`."""
    values = dict(task.schedule(step))
    if task.clip_percent is not None:
        values["clip_percent"] = task.clip_percent(step)
    return {name: float(value) for name, value in values.items()}


def _results(rows: list[dict[str, Any]]) -> Results:
    return {
        name: {"epoch": row["epoch"], **{key: row[f"test_{key}"] for key in METRICS}}
        for name, row in (("last", rows[-1]), ("best", best_row(rows)))
    }


def _training_feed(
    config: ConfigDict, split: Split | Records, mesh: Mesh, order_key: Array, augment_key: Array
) -> Feed:
    if isinstance(split, Split):
        return ResidentFeed(split, mesh, config, order_key, augment_key)
    return StreamFeed(split, mesh, config)


def _evaluator(
    config: ConfigDict, model: nn.Module, split: Split | Records, mesh: Mesh
) -> Evaluator:
    # A multiple of the devices, no larger than need be.
    batch_size = -(-min(config.eval_batch_size, len(split)) // mesh.size) * mesh.size
    batches: Iterable[Batch]
    if isinstance(split, Split):
        batches = padded_batches(split, mesh, batch_size)
    else:
        batches = EvaluationStream(split, mesh, config, batch_size)
    return make_evaluator(config, model, batches, len(split), mesh)


def _draw(workdir: Path) -> None:
    """Draw the curves; a disk that is full is no reason to stop."""
    try:
        if is_first_process():
            draw_curves(workdir)
    except OSError as error:
        _log.warning("the curves could not be drawn: %s", error)


def _preempted(step: int, workdir: Path) -> Preempted:
    return Preempted(f"stopped by SIGTERM; step {step} is saved in {workdir}")


@jax.jit
def _all_finite(params: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
