"""One step of training and one of evaluation, as pure functions of a state and a batch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from siman_jax.metrics import Sums, cross_entropy, score
from siman_jax.optimizer import Schedule, project_binary_kernels


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: int32, steps taken.
      params: float32 parameters.
      batch_stats: running mean and variance of every batch norm.
      opt_state: state of the optax chain.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    def variables(self) -> dict[str, Any]:
        """What the network's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: Array, image_shape: tuple
) -> TrainState:
    """Initial state for images of `image_shape`, `(height, width, channels)`."""
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )


def train_step(
    state: TrainState,
    images: Array,
    labels: Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    clip_percent: Schedule,
) -> tuple[TrainState, Sums]:
    """Project the binary kernels, take the gradient there, update the projected values.

    Args:
      state: before the step.
      images: normalized, `[batch, height, width, channels]`.
      labels: int32 `[batch]`.
      model: the network that `state` was created for.
      optimizer: the optax chain that `state` was created for.
      clip_percent: function from the step to the projection's percentage.

    Returns:
      The state after the step, and loss and hits of the batch before it.
    """
    params = project_binary_kernels(state.params, clip_percent(state.step))

    def mean_loss(params: Any) -> tuple[Array, tuple[Array, Any]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(cross_entropy(logits, labels)), (logits, updated["batch_stats"])

    gradients, (logits, batch_stats) = jax.grad(mean_loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, score(logits, labels)


def eval_step(variables: Any, images: Array, labels: Array, *, model: nn.Module) -> Sums:
    """Loss and hits of a batch; see `metrics.score` for labels that do not count.

    Bits are recomputed from the kernels, unless `variables` hold the collection `bits`.
    """
    logits: Any = model.apply(variables, images, train=False)
    return score(logits, labels)
