"""Build the network, data, schedules and optimizer that a config describes."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import load_dataset, num_classes
from siman_jax.data.dataset import Dataset, steps_in_epoch
from siman_jax.devices.mesh import replicated
from siman_jax.errors import UsageError, choose
from siman_jax.models import build_model
from siman_jax.models.own import build_own, check_model
from siman_jax.outside import is_outside
from siman_jax.rules import ACTIVATION_RULES, WEIGHT_RULES, resolve_activation_rule
from siman_jax.training.config_check import check_config
from siman_jax.training.metrics import Loss, cross_entropy, smoothed_cross_entropy
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.schedules import CLIP_PERCENT, LEARNING_RATE, Schedules, build_schedules
from siman_jax.training.step import Step, train_step

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Task:
    """A network, its data and its training step, as a config describes them.

    Attributes:
      model: the network.
      dataset: training and test split.
      steps_per_epoch: full batches in the training split.
      schedules: functions from the step, counted from 0: the learning rate, the percentage of the
        projection if the weight rule has one, and the inputs of the two rules.
      optimizer: the optimizer, with that learning rate.
      step: a training step.
    """

    model: nn.Module
    dataset: Dataset
    steps_per_epoch: int
    schedules: Schedules
    optimizer: optax.GradientTransformation
    step: Step


def build_task(config: ConfigDict, mesh: Mesh, given: Dataset | None = None) -> Task:
    """Build the task that `config` describes, for a run on `mesh`.

    Args:
      config: the run's config.
      mesh: the devices.
      given: the data set, if the source is `arrays`.

    Raises:
      UsageError: the config contains an unknown name, does not fit the mesh, or its data cannot be
        used.
    """
    check_config(config, mesh)
    groups = mesh.size // config.batch_norm_devices if config.batch_norm_devices else 1
    model = model_from_config(config, norm_groups=groups)
    dataset = load_dataset(config.data, given)
    if config.batch_size > len(dataset.train):
        raise UsageError(
            f"--config.batch_size is {config.batch_size}, but the training split has only"
            f" {len(dataset.train)} examples; set it to at most that number."
        )
    steps_per_epoch = steps_in_epoch(dataset.train, config.batch_size)
    steps = config.epochs * steps_per_epoch
    if steps >= 2**31:
        raise UsageError(
            f"--config.epochs is {config.epochs}, or {steps} steps; it must be less than 2**31"
            " steps."
        )
    schedules = _schedules(config, steps_per_epoch)
    optimizer = build_optimizer(config.optimizer, schedules[LEARNING_RATE])
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedules=schedules,
        steps_per_epoch=steps_per_epoch,
        accumulation=config.accumulation_steps,
        loss=_loss(config.loss),
        average_decay=config.average_decay,
        replicate=lambda tree: lax.with_sharding_constraint(tree, replicated(mesh)),
    )
    return Task(model, dataset, steps_per_epoch, schedules, optimizer, step)


def _schedules(config: ConfigDict, steps_per_epoch: int) -> Schedules:
    """The schedules that the config's two rules use."""
    schedules = build_schedules(
        config.optimizer,
        config.estimator,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
    )
    weight_rule = WEIGHT_RULES[config.model.weight_rule]
    inputs = {*weight_rule.inputs, *ACTIVATION_RULES[activation_rule(config)].inputs}
    used = {LEARNING_RATE, *inputs} | ({CLIP_PERCENT} if weight_rule.projected else set())
    return {name: schedule for name, schedule in schedules.items() if name in used}


def _loss(config: ConfigDict) -> Loss:
    if not config.label_smoothing:
        return cross_entropy
    return partial(smoothed_cross_entropy, share=config.label_smoothing)


def activation_rule(config: ConfigDict) -> str:
    """Return the name of the activation rule; "default" stands for the weight rule's own.

    Raises:
      UsageError: it or the weight rule is unknown.
    """
    return resolve_activation_rule(config.model.activation_rule, config.model.weight_rule)


def model_from_config(
    config: ConfigDict, norm_groups: int = 1, classes: int | None = None
) -> nn.Module:
    """Build the network of `config.model` for the classes of `config.data`.

    Args:
      config: the run's config.
      norm_groups: number of parts of the batch that batch norm normalizes separately.
      classes: another number of classes than that of the data.

    Raises:
      UsageError: the network, a rule or the dtype is unknown, or a network outside this package
        does not fit the config.
    """
    arguments = dict(config.model)
    name = arguments.pop("name")
    arguments["dtype"] = choose(DTYPES, config.model.dtype, "dtype")
    arguments["activation_rule"] = activation_rule(config)
    classes = classes or num_classes(config.data)
    if not is_outside(name):
        return build_model(name, classes, norm_groups=norm_groups, **arguments)
    model = build_own(name, classes, norm_groups=norm_groups, **arguments)
    rules = config.model.weight_rule, activation_rule(config)
    check_model(name, model, image_shape(config), classes, *rules, norm_groups)
    return model


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Return height, width and channels of the images of `config.data`."""
    return config.data.image_size, config.data.image_size, config.data.channels
