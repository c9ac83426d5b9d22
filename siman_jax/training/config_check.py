"""Check a run's config before any work starts."""

import math

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data.defaults import are_files
from siman_jax.devices.mesh import check_divides
from siman_jax.errors import UsageError, choose
from siman_jax.models.leaves import LEAF_NAMES
from siman_jax.rules import REAL
from siman_jax.training.field_types import check_fields, flat
from siman_jax.training.optimizer import OPTIMIZERS
from siman_jax.training.schedules import CURVES

# Smallest allowed values.
_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "accumulation_steps": 1,
    "batch_norm_devices": 0,
    "steps_per_dispatch": 0,
    "keep_checkpoints": 1,
    "model.width": 1,
    "data.image_size": 1,
    "optimizer.learning_rate": 0,
    "optimizer.reference_batch_size": 0,
    "optimizer.warmup_epochs": 0,
    "optimizer.step_factor": 0,
    "optimizer.momentum": 0,
    "optimizer.beta1": 0,
    "optimizer.beta2": 0,
    "optimizer.epsilon": 1e-30,  # 0 in float32 would be a division by 0
    "optimizer.clip_norm": 0,
    "optimizer.gradient_floor": 0,
    "optimizer.weight_decay": 0,
    "optimizer.kernel_decay": 0,
    "optimizer.bop_threshold": 0,
    "data.crop_padding": 0,
    "data.cutout": 0,
    "data.train_examples": 0,
    "data.validation_examples": 0,
}
_LEAST_OF_FILES = {"data.workers": 0, "data.damaged_limit": 0, "data.shorter_side": 1}
# Largest allowed values. Larger ones are typing errors, and would exhaust the memory or int32.
# Model files have the same limits for width and image size.
_MOST = {"model.width": 4096, "data.image_size": 4096, "data.crop_padding": 4096}
_COLDEST, _HOTTEST = 0.01, 1000.0  # temperatures of distillation whose losses are finite
_ALPHAS = 0.01, 100.0  # of Beta distributions that float32 can draw from
_MOST_WHOLE, _MOST_NUMBER = 2**31 - 1, 1e30


def check_config(config: ConfigDict, mesh: Mesh | None = None) -> None:
    """Check the numbers and names in a config.

    Args:
      config: the run's config.
      mesh: devices to train on, which the batch must fit; None to train nothing.

    Raises:
      UsageError: one of them cannot be used.
    """
    check_fields(config)
    _check_numbers(config)
    choose(
        dict.fromkeys(("last", "best")),
        config.init_checkpoint,
        "checkpoint in --config.init_checkpoint",
    )
    _check_augmentation(config.data)
    _check_loss(config.loss, config.distillation)
    if not 0 <= np.float32(config.average_decay) < 1:
        raise UsageError(
            f"--config.average_decay is {config.average_decay}; it must be at least 0 and below 1,"
            " in float32 too."
        )
    _check_optimizer(config)
    _check_estimator(config)
    if mesh is not None:
        _check_batch(config, mesh)


def _check_numbers(config: ConfigDict) -> None:
    more = _LEAST_OF_FILES if are_files(config.data) else {}
    values = flat(config.to_dict())
    for field, least in (_LEAST | more).items():
        value = values[field]
        if not value >= least:  # true for NaN too
            raise UsageError(f"--config.{field} is {value}; it must be at least {least}.")
        if value == math.inf:
            raise UsageError(f"--config.{field} is {value}; it must be finite.")
        most = _MOST.get(field, _MOST_WHOLE if isinstance(value, int) else _MOST_NUMBER)
        if value > most:
            raise UsageError(f"--config.{field} is {value}; it must be at most {most}.")
    if not config.data.resident and config.data.image_size > config.data.shorter_side:
        raise UsageError(
            f"--config.data.image_size is {config.data.image_size}; it must be at most"
            f" --config.data.shorter_side, {config.data.shorter_side}, from which evaluation crops."
        )
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--config.seed is {config.seed}; it must be from 0 to 2**32 - 1.")
    if not config.data.resident and not 0 < config.data.min_area <= config.data.max_area:
        raise UsageError(
            f"--config.data.min_area is {config.data.min_area} and --config.data.max_area"
            f" {config.data.max_area}; the first must be above 0 and at most the second."
        )


def _check_augmentation(data: ConfigDict) -> None:
    for name, least, most in (
        ("color_jitter", 0, 1),
        ("lighting", 0, 10),
        ("mixup", *_ALPHAS),
        ("cutmix", *_ALPHAS),
    ):
        if data[name] != 0 and not least <= data[name] <= most:
            raise UsageError(
                f"--config.data.{name} is {data[name]}; it must be 0, for off, or from {least} to"
                f" {most}."
            )
    if data.lighting and data.channels != 3:
        raise UsageError(
            f"--config.data.lighting is {data.lighting}, but --config.data.channels is"
            f" {data.channels}. Lighting shifts colours; set it to 0 for images without them."
        )
    if data.cutout > data.image_size:
        raise UsageError(
            f"--config.data.cutout is {data.cutout}; it must be at most --config.data.image_size,"
            f" {data.image_size}."
        )


def _check_loss(loss: ConfigDict, distillation: ConfigDict) -> None:
    if not 0 <= loss.label_smoothing < 1:
        raise UsageError(
            f"--config.loss.label_smoothing is {loss.label_smoothing}; it must be at least 0 and"
            " below 1."
        )
    if not 0 < distillation.weight <= 1:
        raise UsageError(
            f"--config.distillation.weight is {distillation.weight}; it must be above 0 and at most"
            " 1. To train without a teacher, leave --config.distillation.teacher empty."
        )
    if not _COLDEST <= distillation.temperature <= _HOTTEST:
        raise UsageError(
            f"--config.distillation.temperature is {distillation.temperature}; it must be from"
            f" {_COLDEST} to {_HOTTEST}."
        )


def _check_optimizer(config: ConfigDict) -> None:
    optimizer = config.optimizer
    for name in optimizer.undecayed:
        choose(dict.fromkeys(LEAF_NAMES), name, "leaf in --config.optimizer.undecayed")
    choose(OPTIMIZERS, optimizer.name, "optimizer")
    for name in ("momentum", "beta1", "beta2"):
        if np.float32(optimizer[name]) >= 1:
            raise UsageError(
                f"--config.optimizer.{name} is {optimizer[name]}; it must be at least 0 and below"
                " 1, in float32 too."
            )
    if 0 < optimizer.warmup_epochs < 1:
        raise UsageError(
            f"--config.optimizer.warmup_epochs is {optimizer.warmup_epochs}; it must be 0 or at"
            " least 1. Warm-up starts at learning_rate / warmup_epochs, so less than one epoch"
            " would start above the rate; set 0 for no warm-up."
        )
    if optimizer.warmup_epochs > config.epochs:
        raise UsageError(
            f"--config.optimizer.warmup_epochs is {optimizer.warmup_epochs}, more than"
            f" --config.epochs, {config.epochs}. Lower the first or raise the second."
        )
    _check_schedule(optimizer, config.epochs)
    _check_gradient_floor(config)
    if not 0 <= optimizer.clip_percent < 50:
        raise UsageError(
            f"--config.optimizer.clip_percent is {optimizer.clip_percent}; it must be at least 0"
            " and below 50, where both percentiles would be equal."
        )


def _check_gradient_floor(config: ConfigDict) -> None:
    floor = config.optimizer.gradient_floor
    if floor and config.optimizer.bop:
        raise UsageError(
            f"--config.optimizer.gradient_floor is {floor}, but --config.optimizer.bop is True. Bop"
            " averages the gradients of the kernels themselves; set one of the two to 0 or False."
        )
    if floor and config.model.weight_rule == REAL:
        raise UsageError(
            f"--config.optimizer.gradient_floor is {floor}, but --config.model.weight_rule is"
            f" {REAL!r}. It acts on binary kernels alone; set it to 0, or choose a binary rule."
        )


def _check_schedule(optimizer: ConfigDict, epochs: int) -> None:
    choose(CURVES, optimizer.schedule, "schedule in --config.optimizer.schedule")
    steps = list(optimizer.step_epochs)
    if optimizer.schedule != "step":
        if steps:
            raise UsageError(
                f"--config.optimizer.step_epochs is {tuple(steps)}, but --config.optimizer.schedule"
                f" is {optimizer.schedule!r}, which has no steps. Set the schedule to step, or"
                " leave out the epochs."
            )
        return
    # False for NaN too.
    rising = all(a < b for a, b in zip([0, *steps], [*steps, epochs], strict=True))
    if not (steps and rising):
        raise UsageError(
            f"--config.optimizer.step_epochs is {tuple(steps)}; for the schedule step it must be"
            f" rising numbers of epochs above 0 and below --config.epochs, {epochs}, such as"
            " 10,20."
        )


def _check_estimator(config: ConfigDict) -> None:
    for name in ("first_sharpness", "last_sharpness"):
        if not config.estimator[name] > 0:
            raise UsageError(
                f"--config.estimator.{name} is {config.estimator[name]}; it must be above 0."
            )
    for name in ("first_tau", "last_tau"):
        if not 0.5 < config.estimator[name] < 1:
            raise UsageError(
                f"--config.estimator.{name} is {config.estimator[name]}; it must be between 0.5"
                " and 1, so that ReCU's limit is above 0."
            )
    if config.optimizer.bop and config.model.weight_rule != "bnn":
        raise UsageError(
            "--config.optimizer.bop is True, but --config.model.weight_rule is"
            f" {config.model.weight_rule!r}. Bop flips signs, which are the bits only by the rule"
            " bnn; set the rule to bnn, or bop to False."
        )
    if not 0 < config.optimizer.bop_adaptivity <= 1:
        raise UsageError(
            f"--config.optimizer.bop_adaptivity is {config.optimizer.bop_adaptivity}; it must be"
            " above 0 and at most 1."
        )


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
    check_divides(mesh, config.batch_size, "--config.batch_size")
    if config.batch_size % (config.accumulation_steps * mesh.size):
        raise UsageError(
            f"--config.accumulation_steps is {config.accumulation_steps}, but a batch of"
            f" {config.batch_size} on {mesh.size} devices cannot be divided into so many equal"
            " parts. Change one of the two."
        )
    if config.batch_norm_devices and mesh.size % config.batch_norm_devices:
        raise UsageError(
            f"--config.batch_norm_devices is {config.batch_norm_devices}, but {mesh.size} devices"
            " cannot be divided into groups of that size; set it to a divisor of their number."
        )
