"""Schedules: values that change during training, as functions of the step, by name."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from siman_jax.errors import choose
from siman_jax.rules import SHARPNESS, TAU
from siman_jax.rules.estimators import sharpness_at
from siman_jax.rules.sign_kernels import tau_at

# Names of schedules; all others are inputs of gradient estimators, by their names in `rules`.
LEARNING_RATE = "learning_rate"
CLIP_PERCENT = "clip_percent"

# Function from the step, int32 and counted from 0, to a float32 value.
Schedule = Callable[[Array], Array]
Schedules = Mapping[str, Schedule]


def build_schedules(
    optimizer: ConfigDict,
    estimator: ConfigDict,
    *,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
) -> dict[str, Schedule]:
    """Build all schedules of a training.

    Args:
      optimizer: `config.optimizer`; see the functions below.
      estimator: `config.estimator`; see `estimator_schedules`.
      epochs: length of the training.
      steps_per_epoch: optimizer steps in an epoch.
      batch_size: examples in a step, over all devices.
    """
    scale = linear_scale(optimizer, batch_size)
    return {
        LEARNING_RATE: learning_rate_schedule(optimizer, epochs, steps_per_epoch, scale),
        CLIP_PERCENT: clip_schedule(optimizer, epochs, steps_per_epoch),
        **estimator_schedules(estimator, epochs, steps_per_epoch, optimizer.staircase),
    }


def linear_scale(config: ConfigDict, batch_size: int) -> float:
    """Return the factor by which a larger batch raises the learning rate, arXiv 1706.02677.

    Args:
      config: with `reference_batch_size`, the batch size for which `learning_rate` is meant; 0: no
        scaling.
      batch_size: examples in a step, over all devices.
    """
    return batch_size / config.reference_batch_size if config.reference_batch_size else 1.0


def learning_rate_schedule(
    config: ConfigDict, epochs: int, steps_per_epoch: int, scale: float = 1.0
) -> Schedule:
    """Linear warm-up, then a curve.

        e <  s:  lr = base * (e + 1) / W,   s = max(W - 1, 0)
        e >= s:  cosine:    lr = base / 2 * (1 + cos(pi * (e - s) / (epochs - s)))
                 linear:    lr = base * (1 - (e - s) / (epochs - s))
                 step:      lr = base * step_factor ^ (how many of `step_epochs` are at most e)
                 constant:  lr = base

    e is the epoch, from 0. With `config.staircase` it is a whole number, so the rate is constant
    within an epoch, as published; otherwise it grows with every step.

    Args:
      config: with `learning_rate`; `schedule`, a key of `CURVES`; `warmup_epochs`, W, which is 0 or
        at least 1, and may be a fraction (0 and 1 both mean none); `staircase`; and, for "step",
        `step_epochs` and `step_factor`.
      epochs: length of the training.
      steps_per_epoch: optimizer steps in an epoch.
      scale: factor; base is `config.learning_rate` times this.

    Raises:
      UsageError: no schedule has that name.
    """
    base, warmup = scale * config.learning_rate, config.warmup_epochs
    start = max(warmup - 1, 0)
    curve = choose(CURVES, config.schedule, "schedule")(config, base, start, epochs)

    def schedule(step: Array) -> Array:
        epoch = _epoch(step, steps_per_epoch, config.staircase)
        return jnp.where(epoch < start, base * (epoch + 1) / max(warmup, 1), curve(epoch))

    return schedule


def _cosine(_: ConfigDict, base: float, start: float, epochs: int) -> Schedule:
    # Not optax's, whose float32 result differs in the last bit from that of published runs.
    return lambda epoch: base / 2 * (1 + jnp.cos(jnp.pi * (epoch - start) / (epochs - start)))


def _linear(_: ConfigDict, base: float, start: float, epochs: int) -> Schedule:
    falling = optax.linear_schedule(base, 0.0, epochs - start)
    return lambda epoch: falling(epoch - start)


def _steps(config: ConfigDict, base: float, *_: float) -> Schedule:
    return optax.piecewise_constant_schedule(
        base, dict.fromkeys(config.step_epochs, config.step_factor)
    )


def _constant(_: ConfigDict, base: float, *__: float) -> Schedule:
    return optax.constant_schedule(base)


# Functions from the epoch, a float32, to the learning rate after the warm-up.
CURVES: dict[str, Callable[..., Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "step": _steps,
    "constant": _constant,
}


def clip_schedule(config: ConfigDict, epochs: int, steps_per_epoch: int) -> Schedule:
    """Percentage of the projection: `config.clip_percent` * (1 - epoch / epochs).

    Args:
      config: with `clip_percent`; `clip_decays`, False for a constant percentage; and `staircase`.
      epochs: length of the training.
      steps_per_epoch: optimizer steps in an epoch.
    """

    def schedule(step: Array) -> Array:
        if not config.clip_decays:
            return jnp.float32(config.clip_percent)
        return config.clip_percent * (1 - _epoch(step, steps_per_epoch, config.staircase) / epochs)

    return schedule


def estimator_schedules(
    config: ConfigDict, epochs: int, steps_per_epoch: int, staircase: bool
) -> dict[str, Schedule]:
    """Sharpness and tau, inputs of the gradient estimators of some rules.

    Args:
      config: with `first_sharpness`, `last_sharpness`, `first_tau` and `last_tau`.
      epochs: length of the training.
      steps_per_epoch: optimizer steps in an epoch.
      staircase: whether they are constant within an epoch, as published.
    """

    def progress(step: Array) -> Array:
        return _epoch(step, steps_per_epoch, staircase) / epochs

    return {
        SHARPNESS: lambda step: sharpness_at(
            progress(step), config.first_sharpness, config.last_sharpness
        ),
        TAU: lambda step: tau_at(progress(step), config.first_tau, config.last_tau),
    }


def _epoch(step: Array, steps_per_epoch: int, staircase: bool) -> Array:
    step = jnp.asarray(step)
    if staircase:
        return (step // steps_per_epoch).astype(jnp.float32)
    return step.astype(jnp.float32) / steps_per_epoch
