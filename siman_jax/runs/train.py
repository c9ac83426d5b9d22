"""Train and evaluate the run of a config, or train several seeds of it at once.

A run's folder contains config.json, data.json, log.jsonl, events (TensorBoard), curves.png and
checkpoints.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import load_dataset
from siman_jax.data.dataset import Dataset, Records, Split
from siman_jax.data.feed import Batch, Feed
from siman_jax.data.resident import ResidentFeed, padded_batches
from siman_jax.data.stream import EvaluationStream, StreamFeed
from siman_jax.devices.mesh import is_first_process, make_replica_check
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.models.leaves import shares_flipped
from siman_jax.native.library import describe
from siman_jax.runs.checkpoint import restore_latest
from siman_jax.runs.lock import RunLock
from siman_jax.runs.log import Results
from siman_jax.runs.progress_bar import TrainingProgress
from siman_jax.runs.record import Record
from siman_jax.runs.snapshot import Snapshot, abstract_snapshot, first_snapshot, read_bits
from siman_jax.runs.stored_run import CHECKPOINTS, check_resumable, load_run
from siman_jax.runs.trained_on import check_classes, check_trained_on, read_trained_on
from siman_jax.runs.workdir import check_workdir, check_writable
from siman_jax.stop import Preempted
from siman_jax.training.epoch import (
    Evaluator,
    Progress,
    diverged,
    is_native,
    make_epoch_runner,
    make_evaluator,
    no_sums,
)
from siman_jax.training.seeds import join_keys, make_splitter, no_sums_yet, over_seeds, stack_seeds
from siman_jax.training.task import Task, build_task, model_from_config

_SECONDS_WORTH_A_DRAWING = 30  # after shorter epochs the curves are not drawn again
_log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path, mesh: Mesh, data: Dataset | None = None) -> Results:
    """Train from the start, or from the latest checkpoint in `workdir`.

    All processes of a run must call this with the same arguments; process 0 writes the log.

    Args:
      config: the run's config, as made by the files in configs/.
      workdir: the run's folder, shared by all processes; created if needed.
      mesh: the devices to train on.
      data: the data set, if it is in memory; `config` must come from `arrays.describe`.

    Returns:
      Logged test metrics of the last and the best epoch, in process 0; {} in others.

    Raises:
      UsageError: the config contains an unknown name or does not fit the mesh, its data cannot be
        used, `workdir` is not writable, is in use, or holds the run of another config or a log
        without checkpoints, or the loss is not finite.
      Preempted: stopped by SIGTERM or Ctrl-C with everything saved; call again to continue.
    """
    return train_together({workdir: config}, mesh, data=data)[workdir]


def train_together(
    configs: Mapping[Path, ConfigDict],
    mesh: Mesh,
    stop: StopSignals | None = None,
    data: Dataset | None = None,
) -> dict[Path, Results]:
    """Train runs that differ only in their seeds as one program, mapped over the seeds.

    Each run gives the result of `train`, up to rounding, which binarization amplifies. Each
    continues from its latest checkpoint, and all of these must be at the same step. The log of each
    run has its own rate of images per second.

    Args:
      configs: config of each run, by its folder.
      mesh: the devices to train on.
      stop: handler of SIGTERM and Ctrl-C, for callers that must know of signals after the last
        step.
      data: as for `train`.

    Returns:
      The results of `train`, by the run's folder.

    Raises:
      UsageError: as for `train`, or the runs cannot be trained together.
      Diverged: the loss or a parameter of a run is not finite; no run continues.
      Preempted: as for `train`; all runs are saved.
    """
    for workdir, own in configs.items():
        check_workdir(own, workdir)
        check_writable(workdir / CHECKPOINTS)
        check_resumable(workdir)
    with ExitStack() as stack:
        locks = {workdir: stack.enter_context(RunLock(workdir)) for workdir in configs}
        return _train(configs, locks, mesh, stop or StopSignals(), data)


def _train(
    configs: Mapping[Path, ConfigDict],
    locks: Mapping[Path, RunLock],
    mesh: Mesh,
    stop: StopSignals,
    data: Dataset | None,
) -> dict[Path, Results]:
    """Train runs whose folders are locked, or will be locked once they are created."""
    config, count = next(iter(configs.values())), len(configs)
    task = build_task(config, mesh, data)
    for workdir in configs:
        check_trained_on(task.dataset, workdir)
    if mesh.devices.flat[0].platform == "cpu":
        _log.info("%s", describe(is_native(config, mesh) and count == 1))
    layout = abstract_snapshot(config, task.model, task.optimizer, mesh)
    keys = [jax.random.split(jax.random.key(own.seed), 3) for own in configs.values()]
    snapshots = []
    for workdir, (init_key, _, _) in zip(configs, keys, strict=True):
        snapshot = restore_latest(workdir / CHECKPOINTS, layout)
        if snapshot is None:
            snapshot = first_snapshot(config, task.model, task.optimizer, init_key, layout)
        snapshots.append(snapshot)
    done = _common_step(dict(zip(configs, snapshots, strict=True)))
    if done:
        _log.info("continuing from step %d of %s", done, ", ".join(map(str, configs)))
    # Sums at the end of an epoch mean that it was saved before it was evaluated.
    first, into_epoch = divmod(done, task.steps_per_epoch)
    if into_epoch == 0 and int(snapshots[0].progress.sums.count):
        first -= 1

    _, order_keys, augment_keys = zip(*keys, strict=True)
    feed = _training_feed(config, task.dataset.train, mesh, order_keys, augment_keys)
    progress = stack_seeds([snapshot.progress for snapshot in snapshots])
    split = make_splitter(layout.progress, count)
    step_of_all = over_seeds(task.step, progress.state, count)
    run_epoch = make_epoch_runner(config, step_of_all, feed, progress, mesh)
    evaluate = _evaluator(config, task.model, task.dataset.test, mesh)
    replicas_agree = make_replica_check(mesh)
    counted = [int(snapshot.progress.sums.count) for snapshot in snapshots]

    # Nothing is written before this line, where everything that a config can get wrong is tried.
    records = [
        Record(own, task.dataset, workdir, locks[workdir], done, snapshot.bits)
        for (workdir, own), snapshot in zip(configs.items(), snapshots, strict=True)
    ]
    bar = TrainingProgress(config.epochs * task.steps_per_epoch, done, show=is_first_process())
    try:
        with stop:
            for epoch in range(first, config.epochs):
                started = time.perf_counter()
                if int(progress.state.step) < (epoch + 1) * task.steps_per_epoch:
                    progress = run_epoch(progress, bar.advance, stop.should_stop)
                steps, members = int(progress.state.step), split(progress)
                seconds = time.perf_counter() - started
                if steps < (epoch + 1) * task.steps_per_epoch:
                    for record, member in zip(records, members, strict=True):
                        record.save(member, None)
                    raise _preempted(stop, steps, configs)

                for record, member, before in zip(records, members, counted, strict=True):
                    rate = (int(member.sums.count) - before) / seconds
                    row = _end_epoch(config, task, record, member, evaluate, replicas_agree, rate)
                    record.save(Progress(member.state, no_sums(mesh)), row["test_top1"])
                    bar.report(row, record.workdir.name if count > 1 else "")
                    if seconds > _SECONDS_WORTH_A_DRAWING:
                        record.draw()
                progress = Progress(progress.state, no_sums_yet(no_sums(mesh), count))
                counted = [0] * count
                if stop.should_stop(steps) and epoch + 1 < config.epochs:
                    raise _preempted(stop, steps, configs)
    finally:
        feed.close()
        bar.close()
        for record in records:
            record.close()
    return {record.workdir: record.results() for record in records}


def _common_step(snapshots: Mapping[Path, Snapshot]) -> int:
    """Return the step of all runs.

    Raises:
      UsageError: they are at different steps.
    """
    steps = {workdir: int(snapshot.progress.state.step) for workdir, snapshot in snapshots.items()}
    if len(set(steps.values())) > 1:
        raise UsageError(
            "runs that train together must continue from the same step, but their latest readable"
            " checkpoints are "
            + ", ".join(f"{step} of {workdir}" for workdir, step in steps.items())
            + ". Train them one by one."
        )
    return next(iter(steps.values()))


def _end_epoch(
    config: ConfigDict,
    task: Task,
    record: Record,
    progress: Progress,
    evaluate: Evaluator,
    replicas_agree: Callable[[Any], bool],
    images_per_second: float,
) -> dict[str, Any]:
    """Evaluate a run at the end of an epoch; log and return the epoch's row."""
    state, steps = progress.state, int(progress.state.step)
    try:
        tested = evaluate(state.variables())
    except UsageError:  # test images that cannot be decoded; keep the epoch's training
        record.save(progress, None)
        raise
    if not (math.isfinite(tested["loss"]) and _all_finite(state.params)):
        raise diverged(steps - 1)
    if not replicas_agree(state.variables()):
        raise UsageError(
            f"after step {steps} the devices hold different parameters; training stopped."
            " Checkpoints of earlier steps are kept. Look for a faulty device."
        )
    before, record.bits = record.bits, read_bits(state, config.model.weight_rule)
    row = {
        "step": steps,
        "epoch": steps // task.steps_per_epoch,
        **{name: float(f(jnp.asarray(steps - 1))) for name, f in task.schedules.items()},
        **{f"train_{name}": value for name, value in progress.sums.means().items()},
        **{f"test_{name}": value for name, value in tested.items()},
        "images_per_second": round(images_per_second, 1),
        "flips": {name: float(x) for name, x in shares_flipped(before, record.bits).items()},
        **(_measures(state.params) if config.measure_kernels else {}),
    }
    record.write(row)
    return row


def evaluate_run(
    config: ConfigDict, workdir: Path, mesh: Mesh, data: Dataset | None = None
) -> Results:
    """Evaluate the last and the best checkpoint of a run on the whole test split.

    The arguments are those of `train`.

    Returns:
      Test metrics of both checkpoints.

    Raises:
      UsageError: `workdir` holds no checkpoint or the run of another config, or the data have other
        classes than the run was trained on.
    """
    check_workdir(config, workdir)
    snapshots = {
        "last": load_run(config, workdir, mesh),
        "best": load_run(config, workdir, mesh, best=True),
    }
    dataset = load_dataset(config.data, data)
    check_classes(dataset.classes, workdir)
    evaluate = _evaluator(config, model_from_config(config), dataset.test, mesh)
    trained_on = read_trained_on(workdir)
    examples = trained_on.train_examples if trained_on else len(dataset.train)
    steps_per_epoch = examples // config.batch_size
    results = {}
    for name, snapshot in snapshots.items():
        state = snapshot.progress.state
        epoch = round(int(state.step) / steps_per_epoch, 2)
        results[name] = {"epoch": epoch, **evaluate(state.variables())}
    return results


def _measures(params: Any) -> dict[str, dict[str, float]]:
    # Imported late: SciPy takes a second to import, and most runs do not need it.
    from siman_jax.analysis.measures import measure_kernels

    return measure_kernels(params)


def _training_feed(
    config: ConfigDict,
    split: Split | Records,
    mesh: Mesh,
    order_keys: Sequence[Array],
    augment_keys: Sequence[Array],
) -> Feed:
    if isinstance(split, Split):
        return ResidentFeed(split, mesh, config, join_keys(order_keys), join_keys(augment_keys))
    if len(order_keys) > 1:
        raise UsageError(
            "seeds can train together only on data in memory; set data.resident=True, or train them"
            " one by one."
        )
    return StreamFeed(split, mesh, config)


def _evaluator(
    config: ConfigDict, model: nn.Module, split: Split | Records, mesh: Mesh
) -> Evaluator:
    # The smallest sufficient multiple of the number of devices.
    batch_size = -(-min(config.eval_batch_size, len(split)) // mesh.size) * mesh.size
    batches: Iterable[Batch]
    if isinstance(split, Split):
        batches = padded_batches(split, mesh, batch_size)
    else:
        batches = EvaluationStream(split, mesh, config, batch_size)
    return make_evaluator(config, model, batches, len(split), mesh)


def _preempted(stop: StopSignals, step: int, workdirs: Iterable[Path]) -> Preempted:
    where = ", ".join(map(str, workdirs))
    return Preempted(f"stopped by {stop.name}; step {step} is saved in {where}")


@jax.jit
def _all_finite(params: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
