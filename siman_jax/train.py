"""Training and evaluation of the run that a config describes.

A run's folder holds config.json, log.jsonl, events (TensorBoard), curves.png and checkpoints.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from ml_collections import ConfigDict

from siman_jax.binarize import ACTIVATION_RULES, WEIGHT_RULES
from siman_jax.checkpoint import CheckpointWriter, restore_best, restore_latest
from siman_jax.curves import draw_curves
from siman_jax.data import load_dataset, num_classes
from siman_jax.data.augment import augment, normalize
from siman_jax.data.dataset import Dataset, Split
from siman_jax.data.resident import Resident, epoch_order, padded_batches, take_batch, upload
from siman_jax.errors import UsageError, choose
from siman_jax.flips import binary_bits, shares_flipped
from siman_jax.metrics import METRICS, Sums
from siman_jax.models import build_model
from siman_jax.optimizer import (
    Schedule,
    build_optimizer,
    clip_schedule,
    learning_rate_schedule,
)
from siman_jax.progress import TrainingProgress
from siman_jax.runlog import RunLog, best_row, read_rows
from siman_jax.step import TrainState, create_state, eval_step, train_step

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_CONFIG_FILE = "config.json"
_CHECKPOINTS = "checkpoints"
_SECONDS_WORTH_A_DRAWING = 30
# A run may go on with other values of these: no number depends on them.
_OPERATIONAL = {
    "config.eval_batch_size",
    "config.steps_per_dispatch",
    "config.keep_checkpoints",
    "config.data.cache_dir",
    "config.data.tfds_dir",
}
# Least value of what counts something.
_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "steps_per_dispatch": 0,
    "keep_checkpoints": 1,
    "model.width": 1,
    "optimizer.warmup_epochs": 0,
}
_log = logging.getLogger(__name__)

# Of the "last" and the "best" epoch: "epoch", "loss", "top1" and "top5" (percent).
Results = dict[str, dict[str, float]]
Step = Callable[[TrainState, Array, Array], tuple[TrainState, Sums]]
Evaluator = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """What a config describes, built.

    Attributes:
      model: the network.
      dataset: training and test split.
      steps_per_epoch: full batches in the training split.
      learning_rate, clip_percent: functions from the step, counted from 0.
      optimizer: the optax chain, with that learning rate.
    """

    model: nn.Module
    dataset: Dataset
    steps_per_epoch: int
    learning_rate: Schedule
    clip_percent: Schedule
    optimizer: optax.GradientTransformation


def build_task(config: ConfigDict) -> Task:
    """Build what `config` describes.

    Raises:
      UsageError: the config names something unknown, or its data cannot be used.
    """
    _check_numbers(config)
    model = model_from_config(config)
    dataset = load_dataset(config.data)
    if config.batch_size > len(dataset.train):
        raise UsageError(
            f"--config.batch_size is {config.batch_size}, but the training split has only"
            f" {len(dataset.train)} examples."
        )
    steps_per_epoch = len(dataset.train) // config.batch_size
    learning_rate = learning_rate_schedule(config.optimizer, config.epochs, steps_per_epoch)
    return Task(
        model,
        dataset,
        steps_per_epoch,
        learning_rate,
        clip_schedule(config.optimizer, config.epochs, steps_per_epoch),
        build_optimizer(config.optimizer, learning_rate),
    )


def train(config: ConfigDict, workdir: Path) -> Results:
    """Train from the start, or on from the latest checkpoint in `workdir`.

    Args:
      config: as the files in configs/ make it.
      workdir: the run's folder; made if there is none.

    Returns:
      Test metrics of the last and of the best epoch, as they were logged.

    Raises:
      UsageError: the config names something unknown, its data cannot be used, `workdir` holds
        a run of another config, or the loss stopped being finite.
    """
    _check_workdir(config, workdir)
    task = build_task(config)
    init_key, order_key, augment_key = jax.random.split(jax.random.key(config.seed), 3)
    state = _initial_state(config, task, init_key)

    restored = restore_latest(workdir / _CHECKPOINTS, state)
    if restored is not None:
        state = restored
        _log.info("going on from step %d of %s", int(state.step), workdir)
    done = int(state.step)

    step = partial(
        train_step, model=task.model, optimizer=task.optimizer, clip_percent=task.clip_percent
    )
    run_epoch = _make_epoch_runner(
        config, step, upload(task.dataset.train), state, order_key, augment_key
    )
    evaluate = make_evaluator(config, task.model, task.dataset.test)
    read_bits = jax.jit(partial(binary_bits, weight_rule=config.model.weight_rule))
    bits = read_bits(state.params)

    # Nothing is written before here, where all that a config can get wrong has been tried.
    _claim_workdir(config, workdir)
    checkpoints = CheckpointWriter(workdir / _CHECKPOINTS, config.keep_checkpoints, done)
    run_log = RunLog(workdir, done)
    progress = TrainingProgress(config.epochs * task.steps_per_epoch, done)
    try:
        for epoch in range(done // task.steps_per_epoch, config.epochs):
            started = time.perf_counter()
            state, sums = run_epoch(state, epoch, progress.advance)
            trained = sums.means()
            seconds = time.perf_counter() - started
            tested = evaluate(state.variables())
            last_step = int(state.step) - 1
            if not (math.isfinite(tested["loss"]) and _all_finite(state.params)):
                raise _diverged(last_step)
            before, bits = bits, read_bits(state.params)
            row = {
                "step": last_step + 1,
                "epoch": epoch + 1,
                "learning_rate": float(task.learning_rate(jnp.asarray(last_step))),
                "clip_percent": float(task.clip_percent(jnp.asarray(last_step))),
                **{f"train_{name}": value for name, value in trained.items()},
                **{f"test_{name}": value for name, value in tested.items()},
                "images_per_second": round(int(sums.count) / seconds, 1),
                "flips": {name: float(x) for name, x in shares_flipped(before, bits).items()},
            }
            run_log.write(row)
            checkpoints.save(last_step + 1, state, tested["top1"])
            progress.report(row)
            if seconds > _SECONDS_WORTH_A_DRAWING:
                draw_curves(workdir)
    finally:
        progress.close()
        run_log.close()
        checkpoints.close()
        draw_curves(workdir)
    return _results(read_rows(workdir))


def evaluate_run(config: ConfigDict, workdir: Path) -> Results:
    """Evaluate the last and the best checkpoint of a run on the whole test split.

    Returns:
      Their test metrics, computed anew.

    Raises:
      UsageError: `workdir` holds no checkpoint, or the run of another config.
    """
    _check_workdir(config, workdir)
    folder = workdir / _CHECKPOINTS
    if not folder.is_dir():
        raise UsageError(f"{workdir} holds no checkpoints; train there first, with --mode=train.")
    task = build_task(config)
    like = _initial_state(config, task, jax.random.key(config.seed))
    evaluate = make_evaluator(config, task.model, task.dataset.test)
    results = {}
    for name, restore in (("last", restore_latest), ("best", restore_best)):
        state = restore(folder, like)
        if state is None:
            raise UsageError(f"{folder} is empty; train there first, with --mode=train.")
        epoch = int(state.step) // task.steps_per_epoch
        results[name] = {"epoch": epoch, **evaluate(state.variables())}
    return results


def model_from_config(config: ConfigDict) -> nn.Module:
    """Build the network of `config.model` for the classes of `config.data`.

    Raises:
      UsageError: the network, a rule or the dtype is unknown.
    """
    arguments = dict(config.model)
    name = arguments.pop("name")
    arguments["dtype"] = choose(DTYPES, config.model.dtype, "dtype")
    choose(WEIGHT_RULES, config.model.weight_rule, "weight rule")
    choose(ACTIVATION_RULES, config.model.activation_rule, "activation rule")
    return build_model(name, num_classes(config.data), **arguments)


def make_evaluator(config: ConfigDict, model: nn.Module, split: Split) -> Evaluator:
    """Compile a function from variables to mean loss, top-1 and top-5 (percent) on `split`."""
    batches = list(padded_batches(split, min(config.eval_batch_size, len(split))))

    @jax.jit
    def step(variables: Any, batch: Resident) -> Sums:
        images = normalize(batch.images, config.data.mean, config.data.std)
        return eval_step(variables, images, batch.labels, model=model)

    def evaluate(variables: Any) -> dict[str, float]:
        return sum((step(variables, batch) for batch in batches), Sums.zero()).means()

    return evaluate


def _results(rows: list[dict[str, Any]]) -> Results:
    return {
        name: {"epoch": row["epoch"], **{key: row[f"test_{key}"] for key in METRICS}}
        for name, row in (("last", rows[-1]), ("best", best_row(rows)))
    }


def _initial_state(config: ConfigDict, task: Task, key: Array) -> TrainState:
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    create = partial(create_state, task.model, task.optimizer, image_shape=shape)
    # It runs once, so it should compile fast: optimised, XLA's CPU backend takes ten times longer.
    return jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})(key)


def _make_epoch_runner(
    config: ConfigDict,
    step: Step,
    data: Resident,
    state: TrainState,
    order_key: Array,
    augment_key: Array,
) -> Callable[[TrainState, int, Callable[[int], None]], tuple[TrainState, Sums]]:
    """Compile what trains for the rest of an epoch, on data that lie on the device.

    Shuffling, cropping and flipping are part of the compiled program, and one call of it takes
    many steps, so that the host has next to nothing to do.

    An epoch's order depends on `order_key` and its number alone, a batch's augmentation on
    `augment_key` and its step alone, so that a resumed run goes on as if it had never stopped.

    Returns:
      Function of the state, the epoch, and a callback that is told how many steps were
      dispatched; gives the state after the epoch and the sums over it.
    """
    n, size = len(data.labels), config.batch_size
    steps_per_epoch = n // size
    # XLA's CPU backend runs convolutions inside a loop far slower than outside.
    automatic = 1 if jax.default_backend() == "cpu" else 100
    steps_per_call = min(config.steps_per_dispatch or automatic, steps_per_epoch)

    @partial(jax.jit, donate_argnums=0)
    def run(carry: tuple[TrainState, Sums], data: Resident, order: Array, count: Array) -> Any:
        def one(_: Any, carry: tuple[TrainState, Sums, Array]) -> tuple[TrainState, Sums, Array]:
            before, sums, bad = carry
            batch = take_batch(data, order, before.step % steps_per_epoch, size)
            images = augment(
                jax.random.fold_in(augment_key, before.step),
                batch.images,
                config.data.crop_padding,
                config.data.flip,
            )
            images = normalize(images, config.data.mean, config.data.std)
            after, step_sums = step(before, images, batch.labels)
            failed = (bad < 0) & ~jnp.isfinite(step_sums.loss)
            return after, sums + step_sums, jnp.where(failed, before.step, bad)

        start = (*carry, jnp.full((), -1, jnp.int32))
        many = steps_per_call > 1
        after, sums, bad = lax.fori_loop(0, count, one, start) if many else one(0, start)
        return (after, sums), bad

    order_of = jax.jit(partial(epoch_order, order_key, n=n))
    started = time.perf_counter()
    compiled = run.lower((state, Sums.zero()), data, order_of(0), jnp.int32(1)).compile()
    _log.info("compiled the training step in %.1f s", time.perf_counter() - started)

    def run_epoch(
        state: TrainState, epoch: int, advance: Callable[[int], None]
    ) -> tuple[TrainState, Sums]:
        order = order_of(epoch)
        carry, unchecked = (state, Sums.zero()), jnp.int32(-1)
        for first in range(int(state.step) % steps_per_epoch, steps_per_epoch, steps_per_call):
            count = min(steps_per_call, steps_per_epoch - first)
            carry, bad = compiled(carry, data, order, jnp.int32(count))
            # The call before the last: waiting for the last would leave the device idle.
            _stop_at(unchecked)
            unchecked = bad
            advance(count)
        _stop_at(unchecked)
        return carry

    return run_epoch


def _stop_at(bad_step: Array) -> None:
    if (step := int(bad_step)) >= 0:
        raise _diverged(step)


def _diverged(step: int) -> UsageError:
    return UsageError(
        f"the loss or a parameter is not finite at step {step}; training stopped. Checkpoints, if"
        " there are any, are from before. Lower --config.optimizer.learning_rate, in a new workdir."
    )


@jax.jit
def _all_finite(params: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _check_numbers(config: ConfigDict) -> None:
    for field, least in _LEAST.items():
        *folders, name = field.split(".")
        holder = config[folders[0]] if folders else config
        if holder[name] < least:
            raise UsageError(f"--config.{field} is {holder[name]}; it must be at least {least}.")
    percent = config.optimizer.clip_percent
    if not 0 <= percent < 50:
        raise UsageError(
            f"--config.optimizer.clip_percent is {percent}; it must be at least 0 and less than"
            " 50, where both percentiles would meet."
        )


def _check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Refuse a folder that holds the run of another config."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder.")
    path = workdir / _CONFIG_FILE
    if not path.exists():
        return
    try:
        saved = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise UsageError(
            f"{path} is damaged ({error}); restore it, or use another workdir."
        ) from None
    given = _flat(_plain(config))
    different = [
        f"{key}: {saved.get(key)} there, {given.get(key)} here"
        for key in sorted((saved.keys() | given.keys()) - _OPERATIONAL)
        if saved.get(key) != given.get(key)
    ]
    if different:
        raise UsageError(
            f"{workdir} holds a run of another config:\n  "
            + "\n  ".join(different)
            + "\nGo on with its own config, or name another --workdir."
        )


def _claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Write the config whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    draft = workdir / f"{_CONFIG_FILE}.draft"
    draft.write_text(json.dumps(_plain(config), indent=2) + "\n")
    draft.replace(workdir / _CONFIG_FILE)


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json(sort_keys=True))


def _flat(fields: dict[str, Any], prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        path = f"{prefix}.{name}"
        flat.update(_flat(value, path) if isinstance(value, dict) else {path: value})
    return flat
