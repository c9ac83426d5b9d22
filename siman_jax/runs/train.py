"""Train and evaluate the run of a config, or train several seeds of it at once.

A run's folder contains config.json, data.json, log.jsonl, events (TensorBoard), curves.png and
checkpoints.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import load_dataset
from siman_jax.data.batches import damaged_limit, evaluation_feed, training_feed
from siman_jax.data.dataset import Dataset, Records, Split
from siman_jax.devices.mesh import is_first_process, make_replica_check, on_cpus
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.models.leaves import Bits, shares_flipped
from siman_jax.native.library import describe
from siman_jax.runs.checkpoint import restore_latest
from siman_jax.runs.init_from import start_from_weights
from siman_jax.runs.lock import RunLock
from siman_jax.runs.log import Results
from siman_jax.runs.progress_bar import ProgressBar
from siman_jax.runs.record import RunRecord
from siman_jax.runs.snapshot import (
    Create,
    Snapshot,
    abstract_snapshot,
    creation,
    first_snapshot,
    read_bits,
)
from siman_jax.runs.stored_run import CHECKPOINTS, check_resumable, load_run
from siman_jax.runs.teacher import Teacher, check_teacher, read_teacher, write_teacher
from siman_jax.runs.trained_on import check_classes, check_trained_on, read_trained_on
from siman_jax.runs.workdir import check_workdir, check_writable
from siman_jax.stop import Preempted
from siman_jax.training.config_check import check_config
from siman_jax.training.epoch import (
    Evaluator,
    Progress,
    diverged,
    make_epoch_runner,
    make_evaluator,
    no_sums,
)
from siman_jax.training.seeds_together import (
    join_keys,
    make_splitter,
    no_sums_yet,
    over_seeds,
    stack_seeds,
)
from siman_jax.training.step import AveragedState, Step, TrainState
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
      data: the data set, if it is in memory; `config` must come from `arrays.config_for`.

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
    teachers = {own.distillation.teacher for own in configs.values()}
    if len(teachers) > 1:
        raise UsageError(
            f"the runs learn from different teachers, {', '.join(sorted(teachers))}, so they cannot"
            " be trained as one program. Train them one by one."
        )
    for workdir, own in configs.items():
        check_workdir(own, workdir)
        check_writable(workdir / CHECKPOINTS)
        check_resumable(workdir)
    with ExitStack() as stack:
        locks = {workdir: stack.enter_context(RunLock(workdir)) for workdir in configs}
        config = next(iter(configs.values()))
        task = build_task(config, mesh, data)
        for workdir in configs:
            check_trained_on(task.dataset, workdir)
        teacher = read_teacher(config, task.dataset.classes, mesh)
        for workdir in configs:
            check_teacher(teacher, workdir)
        create = creation(config, task.model, task.optimizer)
        layout = abstract_snapshot(config, create, mesh)
        runs = [
            _open_run(own, workdir, locks[workdir], task, create, layout, mesh)
            for workdir, own in configs.items()
        ]
        return _train(runs, task, teacher, layout, mesh, stop or StopSignals())


@dataclass(frozen=True)
class _Run:
    """One of the runs that train together, at the step from which it continues.

    Attributes:
      config: the run's config.
      workdir: the run's folder.
      lock: lock of the folder.
      snapshot: the latest checkpoint, or a new state.
      order_key, augment_key: PRNG keys for the order of the examples and their augmentation.
      save_start: whether the snapshot is to be saved before training, so that the weights that it
        starts from are not needed again.
    """

    config: ConfigDict
    workdir: Path
    lock: RunLock
    snapshot: Snapshot
    order_key: Array
    augment_key: Array
    save_start: bool


def _open_run(
    config: ConfigDict,
    workdir: Path,
    lock: RunLock,
    task: Task,
    create: Create,
    layout: Snapshot,
    mesh: Mesh,
) -> _Run:
    init_key, order_key, augment_key = jax.random.split(jax.random.key(config.seed), 3)
    snapshot = restore_latest(workdir / CHECKPOINTS, layout)
    save_start = snapshot is None and bool(config.init_from)
    if save_start:
        snapshot = start_from_weights(config, create, task.optimizer, init_key, layout, mesh)
    elif snapshot is None:
        snapshot = first_snapshot(config, create, init_key, layout)
    return _Run(config, workdir, lock, snapshot, order_key, augment_key, save_start)


def _train(
    runs: Sequence[_Run],
    task: Task,
    teacher: Teacher | None,
    layout: Snapshot,
    mesh: Mesh,
    stop: StopSignals,
) -> dict[Path, Results]:
    """Train runs that differ only in their seeds; their folders are locked or do not exist yet."""
    config, count, done = runs[0].config, len(runs), _common_step(runs)
    if on_cpus(mesh):
        _log.info("%s", describe(_use_native(config, mesh) and count == 1))
    if done:
        _log.info("continuing from step %d of %s", done, _folders(runs))
    # Sums at the end of an epoch mean that it was saved before it was evaluated.
    first, into_epoch = divmod(done, task.steps_per_epoch)
    if into_epoch == 0 and int(runs[0].snapshot.progress.sums.count):
        first -= 1

    feed = training_feed(
        task.dataset.train,
        mesh,
        config.data,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        steps_per_dispatch=config.steps_per_dispatch,
        order_key=join_keys([run.order_key for run in runs]),
        augment_key=join_keys([run.augment_key for run in runs]),
    )
    progress = stack_seeds([run.snapshot.progress for run in runs])
    split = make_splitter(layout.progress, count)
    step: Step = task.step
    constants: list[Any] = []
    if teacher:
        step = partial(step, distillation=teacher.distillation)
        constants.append(teacher.variables)
    run_epoch = make_epoch_runner(
        over_seeds(step, progress.state, count),
        feed,
        progress,
        mesh,
        config.data,
        batch_size=config.batch_size,
        damaged_limit=damaged_limit(config.data),
        use_native=_use_native(config, mesh),
        constants=constants,
    )
    evaluate = evaluator_of(config, task.model, task.dataset.test, mesh)
    replicas_agree = make_replica_check(mesh)

    # Nothing is written before this line, where everything that a config can get wrong is tried.
    records = [
        RunRecord(run.config, task.dataset, run.workdir, run.lock, done, run.snapshot.bits)
        for run in runs
    ]
    if teacher:
        for run in runs:
            write_teacher(teacher, run.workdir)
    bar = ProgressBar(config.epochs * task.steps_per_epoch, done, show=is_first_process())
    try:
        with stop:
            for record, run in zip(records, runs, strict=True):
                if run.save_start:
                    record.save(run.snapshot.progress, None)
            for epoch in range(first, config.epochs):
                started = time.perf_counter()
                counted = int(np.min(progress.sums.count))  # the same for all runs
                if int(progress.state.step) < (epoch + 1) * task.steps_per_epoch:
                    progress = run_epoch(progress, bar.advance, stop.should_stop)
                steps, members = int(progress.state.step), split(progress)
                seconds = time.perf_counter() - started
                if steps < (epoch + 1) * task.steps_per_epoch:
                    for record, member in zip(records, members, strict=True):
                        record.save(member, None)
                    raise _preempted(stop, steps, runs)

                for record, member in zip(records, members, strict=True):
                    rate = (int(member.sums.count) - counted) / seconds
                    row = _end_epoch(config, task, record, member, evaluate, replicas_agree, rate)
                    record.save(Progress(member.state, no_sums(mesh)), row["test_top1"])
                    bar.report(row, record.workdir.name if count > 1 else "")
                    if seconds > _SECONDS_WORTH_A_DRAWING:
                        record.draw()
                progress = Progress(progress.state, no_sums_yet(no_sums(mesh), count))
                if stop.should_stop(steps) and epoch + 1 < config.epochs:
                    raise _preempted(stop, steps, runs)
    finally:
        feed.close()
        bar.close()
        for record in records:
            record.close()
    return {record.workdir: record.results() for record in records}


def _common_step(runs: Sequence[_Run]) -> int:
    """Return the step of all runs.

    Raises:
      UsageError: they are at different steps.
    """
    steps = {run.workdir: int(run.snapshot.progress.state.step) for run in runs}
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
    record: RunRecord,
    progress: Progress,
    evaluate: Evaluator,
    replicas_agree: Callable[[Any], bool],
    images_per_second: float,
) -> dict[str, Any]:
    """Evaluate a run at the end of an epoch; log and return the epoch's row."""
    state, steps = progress.state, int(progress.state.step)
    averaged = isinstance(state, AveragedState)
    try:
        tested = evaluate(state.evaluated())
        unaveraged = evaluate(state.variables()) if averaged else {}
    except UsageError:  # test images that cannot be decoded; keep the epoch's training
        record.save(progress, None)
        raise
    if not (math.isfinite(tested["loss"]) and all_finite(state.params)):
        raise diverged(steps - 1)
    held = [state.variables(), *([state.evaluated()] if averaged else [])]
    if not all(map(replicas_agree, held)):
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
        **{f"unaveraged_test_{name}": value for name, value in unaveraged.items()},
        "images_per_second": round(images_per_second, 1),
        "flips": {name: float(x) for name, x in shares_flipped(before, record.bits).items()},
        **(_of_average(state, record.bits, config.model.weight_rule) if averaged else {}),
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
      UsageError: the config cannot be used, `workdir` holds no checkpoint or the run of another
        config, or the data have other classes than the run was trained on.
    """
    check_workdir(config, workdir)
    check_config(config)
    snapshots = {
        "last": load_run(config, workdir, mesh),
        "best": load_run(config, workdir, mesh, best=True),
    }
    dataset = load_dataset(config.data, data)
    check_classes(dataset.classes, workdir)
    evaluate = evaluator_of(config, model_from_config(config), dataset.test, mesh)
    trained_on = read_trained_on(workdir)
    examples = trained_on.train_examples if trained_on else len(dataset.train)
    steps_per_epoch = examples // config.batch_size
    results = {}
    for name, snapshot in snapshots.items():
        state = snapshot.progress.state
        epoch = round(int(state.step) / steps_per_epoch, 2)
        results[name] = {"epoch": epoch, **evaluate(state.evaluated())}
    return results


def _of_average(state: TrainState, bits: Bits, weight_rule: str) -> dict[str, dict[str, float]]:
    """Compute the share of bits in each layer that differ between the average and the weights."""
    average = read_bits(replace(state, params=state.evaluated()["params"]), weight_rule)
    shares = shares_flipped(bits, average)
    return {"average_differs": {name: float(share) for name, share in shares.items()}}


def _measures(params: Any) -> dict[str, dict[str, float]]:
    # Imported late: SciPy takes a second to import, and most runs do not need it.
    from siman_jax.analysis.measures import measure_kernels

    return measure_kernels(params)


def evaluator_of(
    config: ConfigDict, model: nn.Module, split: Split | Records, mesh: Mesh
) -> Evaluator:
    """Compile the evaluation of a run's network on a split; see `epoch.make_evaluator`."""
    # The smallest sufficient multiple of the number of devices.
    batch_size = -(-min(config.eval_batch_size, len(split)) // mesh.size) * mesh.size
    return make_evaluator(
        model,
        evaluation_feed(split, mesh, config.data, batch_size),
        len(split),
        mesh,
        config.data,
        damaged_limit=damaged_limit(config.data),
        use_native=_use_native(config, mesh),
    )


def _use_native(config: ConfigDict, mesh: Mesh) -> bool:
    """Whether a run uses the C++ library, which computes on one device only."""
    return config.native and mesh.size == 1


def _folders(runs: Iterable[_Run]) -> str:
    return ", ".join(str(run.workdir) for run in runs)


def _preempted(stop: StopSignals, step: int, runs: Iterable[_Run]) -> Preempted:
    return Preempted(f"stopped by {stop.name}; step {step} is saved in {_folders(runs)}")


@jax.jit
def all_finite(params: Any) -> Array:
    """Whether all parameters are finite; a binarized NaN may not show in the loss."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
