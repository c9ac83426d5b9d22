"""A training step, as a pure function of a state and a batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax

from siman_jax.data.feed import Labels
from siman_jax.models.leaves import CHOSEN, ROTATIONS, SCHEDULE
from siman_jax.rules import WEIGHT_RULES, Prepare
from siman_jax.training.distillation import Distillation
from siman_jax.training.metrics import Loss, Sums, cross_entropy, leading_labels, score
from siman_jax.training.optimizer import (
    prepare_binary_kernels,
    project_binary_kernels,
    rotate_binary_kernels,
)
from siman_jax.training.schedules import CLIP_PERCENT, LEARNING_RATE, Schedules

# Function of a state, normalized images, labels and maybe a teacher's variables to the next state,
# and loss and hits.
Step = Callable[..., tuple["TrainState", Sums]]


@struct.dataclass
class TrainState:
    """Everything that a training step updates.

    Attributes:
      step: int32, number of steps taken.
      params: float32 parameters.
      batch_stats: running mean and variance of every batch norm.
      opt_state: state of the optimizer.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    def variables(self) -> dict[str, Any]:
        """Return the variables for the network's `apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def evaluated(self) -> dict[str, Any]:
        """Return the variables to evaluate and export: the average if there is one."""
        return self.variables()


@struct.dataclass
class AveragedState(TrainState):
    """State of a training that averages its weights over steps; see `_with_average`.

    Attributes:
      average: `params` and `batch_stats`, averaged.
    """

    average: Any

    def evaluated(self) -> dict[str, Any]:
        """Return the averaged variables; what is not averaged is as in `variables`."""
        return {**self.variables(), **self.average}


@struct.dataclass
class RotatedState(TrainState):
    """State of a network whose weight rule has rotations.

    Attributes:
      rotations: a pair of matrices for every binary layer.
    """

    rotations: Any

    def variables(self) -> dict[str, Any]:
        """Return the variables for the network's `apply`."""
        return {**super().variables(), ROTATIONS: self.rotations}


@struct.dataclass
class AveragedRotatedState(RotatedState, AveragedState):
    """State with both an average and rotations; rotations are not averaged."""


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    image_shape: tuple,
    *,
    averaged: bool = False,
) -> TrainState:
    """Create the initial state for images of shape `(height, width, channels)`.

    Args:
      model: the network.
      optimizer: the optimizer.
      key: PRNG key for the parameters.
      image_shape: of one image.
      averaged: whether training averages the weights.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    return state_from(variables, optimizer, averaged=averaged)


def state_from(
    variables: Mapping[str, Any], optimizer: optax.GradientTransformation, *, averaged: bool
) -> TrainState:
    """Create the state of a training that starts from `variables`; see `create_state`."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    fields: dict[str, Any] = {"params": params, "batch_stats": batch_stats}
    fields["step"] = jnp.zeros((), jnp.int32)
    fields["opt_state"] = optimizer.init(params)
    if averaged:
        # Copies, because training donates every buffer of a state once.
        fields["average"] = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    if ROTATIONS in variables:
        fields["rotations"] = variables[ROTATIONS]
        return AveragedRotatedState(**fields) if averaged else RotatedState(**fields)
    return AveragedState(**fields) if averaged else TrainState(**fields)


def train_step(
    state: TrainState,
    images: Array,
    labels: Labels,
    teacher: Any = None,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
    steps_per_epoch: int = 1,
    accumulation: int = 1,
    loss: Loss = cross_entropy,
    distillation: Distillation | None = None,
    average_decay: float = 0.0,
    replicate: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[TrainState, Sums]:
    """Project the binary kernels, compute gradients at the projected values, and update these.

    If the weight rule has rotations, the first step of an epoch updates them first.

    The loss is the mean over the examples that count. With accumulation its gradient is still that
    of the whole batch, except that each part has its own batch norm statistics.

    Args:
      state: state before the step.
      images: normalized, `[batch, height, width, channels]`.
      labels: int32 `[batch]`; examples with a negative label do not count. Or `MixedLabels`.
      teacher: variables of the teacher, if there is one; they are evaluated, not trained.
      model: the network that `state` was created for. If it has an attribute `weight_rule`, as the
        networks in `models` have, the bits of all layers may be computed together.
      optimizer: the optimizer that `state` was created for.
      schedules: percentage of the projection, if kernels are projected, and the inputs of the
        network's estimators; the learning rate is ignored, because `optimizer` has it.
      steps_per_epoch: number of steps between updates of the rotations.
      accumulation: number of equal parts of the batch, which are computed one after the other to
        save memory.
      loss: the loss of each example.
      distillation: the teacher's network, and how much its answers count in the loss.
      average_decay: of the average of the weights, if `state` has one; see `_with_average`.
      replicate: function that keeps a tree whole on every device, so that the compiler does not
        divide projection and bits when the optimizer state is divided.

    Returns:
      The state after the step, and loss and hits of the batch before the update.
    """
    params = state.params
    values = {name: f(state.step) for name, f in schedules.items() if name != LEARNING_RATE}
    percent = values.pop(CLIP_PERCENT, None)
    constants: dict[str, Any] = {SCHEDULE: values}
    if percent is not None:
        if prepare := _prepare_of(model):
            params, bits = prepare_binary_kernels(params, percent, prepare)
            constants[CHOSEN] = replicate(bits)
        else:
            params = project_binary_kernels(params, percent)
    params = replicate(params)
    if isinstance(state, RotatedState):
        rotations = lax.cond(
            state.step % steps_per_epoch == 0,
            rotate_binary_kernels,
            lambda _, unchanged: unchanged,
            params,
            state.rotations,
        )
        rotations = replicate(rotations)
        state = dataclasses.replace(state, rotations=rotations)
        constants[ROTATIONS] = rotations
    counted = jnp.maximum(jnp.sum(leading_labels(labels) >= 0), 1)

    def share_of_loss(
        params: Any, batch_stats: Any, images: Array, labels: Labels
    ) -> tuple[Array, tuple[Any, Sums]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats, **constants},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        of_batch = distillation.loss(teacher, images, loss) if distillation else loss
        sums = score(logits, labels, of_batch)
        share = sums.loss / counted.astype(sums.loss.dtype)
        return share, (updated.get("batch_stats", {}), sums)

    gradient = jax.grad(share_of_loss, has_aux=True)
    if accumulation == 1:
        gradients, (batch_stats, sums) = gradient(params, state.batch_stats, images, labels)
    else:

        def add_part(carry: Any, part: tuple[Array, Labels]) -> tuple[Any, None]:
            gradients, batch_stats, sums = carry
            more, (batch_stats, more_sums) = gradient(params, batch_stats, *part)
            return (jax.tree.map(jnp.add, gradients, more), batch_stats, sums + more_sums), None

        parts = jax.tree.map(lambda x: _every_kth(x, accumulation), (images, labels))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes, (_, sum_shapes) = jax.eval_shape(gradient, params, state.batch_stats, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes, sum_shapes))
        start = (zeros[0], state.batch_stats, zeros[1])
        (gradients, batch_stats, sums), _ = lax.scan(add_part, start, parts)

    updates, opt_state = optimizer.update(replicate(gradients), state.opt_state, params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return _with_average(state, average_decay), sums


def _with_average(state: TrainState, decay: float) -> TrainState:
    """Update the average of a state that has one with the new weights, after step t.

        average <- d average + (1 - d) new,   d = min(decay, (1 + t) / (10 + t))

    t counts from 1, so the average soon forgets the initial weights. It has the parameters and the
    running statistics of batch norm.
    """
    if not isinstance(state, AveragedState):
        return state
    t = state.step.astype(jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
    new = {"params": state.params, "batch_stats": state.batch_stats}
    average = optax.incremental_update(new, state.average, share)
    return dataclasses.replace(state, average=average)


def _prepare_of(model: nn.Module) -> Prepare | None:
    rule = WEIGHT_RULES.get(getattr(model, "weight_rule", ""))
    return rule.prepare if rule else None


def _every_kth(x: Array, k: int) -> Array:
    """Split a batch into k parts x[i::k], so that every part is spread over all devices."""
    return x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1)
