"""Measures how well the straight-through gradient predicts changes of the loss.

The loss is piecewise constant in the latent weights, so its derivative is 0 or does not exist. But
the loss smoothed by random perturbations has a slope. Along a random direction this slope is
measured as a difference quotient, and the straight-through gradient gives a prediction of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import load_dataset
from siman_jax.data.batches import first_examples
from siman_jax.data.feed import Batch
from siman_jax.models.leaves import BINARY_KERNEL
from siman_jax.models.normalization import normalize
from siman_jax.training.metrics import score
from siman_jax.training.step import TrainState
from siman_jax.training.task import model_from_config

# Size of a perturbation, in standard deviations of its filter's weights.
STEP = 0.1
# Largest number of examples, which bounds the time.
MOST_EXAMPLES = 128

Leaves = dict[tuple[str, ...], Array]


class Mismatch(NamedTuple):
    """Agreement of predicted and measured slopes in one layer.

    Attributes:
      name: path of the layer.
      cosine: between predicted and measured slopes along the sampled directions.
      standard_error: of `cosine`, from the number of directions.
    """

    name: str
    cosine: float
    standard_error: float


def gradient_mismatch(
    config: ConfigDict, state: TrainState, mesh: Mesh, directions: int
) -> list[Mismatch]:
    """Compare, layer by layer, predicted and measured slopes of the loss.

        direction   d ~ Normal(0, 1), times its filter's standard deviation s
        predicted   p = g . d,   g the straight-through gradient
        measured    m = (L(w + h d) - L(w - h d)) / 2h,   h = `STEP`
        cosine      sum(p m) / sqrt(sum(p^2) sum(m^2)) over the directions

    If the smoothed loss is linear in w over this distance, the result tends to the cosine between
    g and the gradient of the smoothed loss, both in units of s; curvature only lowers it.
    Scheduled estimators are as sharp as at the end of training, `rules.AT_THE_END`. The loss is
    that of training, with the batch's own statistics in batch norms, on the first examples of the
    test split.

    Args:
      config: of the run.
      state: with the weights to perturb.
      mesh: one device.
      directions: how many to sample, at least 2; each takes two forward passes per layer.

    Raises:
      UsageError: the run's data cannot be used.
    """
    test = load_dataset(config.data).test
    batch = first_examples(test, mesh, config.data, min(MOST_EXAMPLES, len(test)))
    model = model_from_config(config)
    leaves = flatten_dict(state.params)
    kernels = {path: leaf for path, leaf in leaves.items() if path[-1] == BINARY_KERNEL}

    # All arrays are arguments: XLA would compute with constants while it compiles.
    def loss(kernels: Leaves, variables: Any, batch: Batch) -> Array:
        params = unflatten_dict(flatten_dict(variables["params"]) | kernels)
        logits: Any
        logits, _ = model.apply(
            {**variables, "params": params},
            normalize(batch.images, config.data.mean, config.data.std),
            train=True,
            mutable=["batch_stats"],
        )
        sums = score(logits, batch.labels)
        return sums.loss / jnp.maximum(sums.count, 1).astype(sums.loss.dtype)

    rest = (state.variables(), batch)
    loss_at = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(kernels, *rest)
    predicted, measured = [], []
    for index in range(directions):
        direction = _draw(jax.random.fold_in(jax.random.key(0), index), kernels)
        predicted.append([float(jnp.vdot(gradient[path], direction[path])) for path in kernels])
        slopes = []
        for path, kernel in kernels.items():
            ahead, behind = (
                float(loss_at(kernels | {path: kernel + step * direction[path]}, *rest))
                for step in (STEP, -STEP)
            )
            slopes.append((ahead - behind) / (2 * STEP))
        measured.append(slopes)
    cosines = _cosines(np.array(predicted), np.array(measured))
    return [
        Mismatch("/".join(path[:-1]), float(c), float(np.sqrt((1 - c**2) / (directions - 1))))
        for path, c in zip(kernels, cosines, strict=True)
    ]


@jax.jit
def _draw(key: Array, kernels: Leaves) -> Leaves:
    """Draw a random direction for every kernel, in standard deviations of its filters' weights."""
    keys = jax.random.split(key, len(kernels))
    return {
        path: jax.random.normal(k, kernel.shape)
        * jnp.std(kernel, range(kernel.ndim - 1), keepdims=True)
        for k, (path, kernel) in zip(keys, kernels.items(), strict=True)
    }


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the cosine of each column of `a` with that of `b`; 0 if one of them is zero."""
    norms = np.sqrt(np.sum(a**2, 0) * np.sum(b**2, 0))
    cosines = np.where(norms > 0, np.sum(a * b, 0) / np.where(norms > 0, norms, 1), 0)
    return np.clip(cosines, -1, 1)  # rounding may exceed the range
