"""How far the straight-through gradient is from what the loss does.

Bits make the loss a staircase in the latent weights, whose derivative is 0 or does not exist. A
slope it has only at a distance: that of the loss smoothed by random perturbations. Along a random
direction it is a difference quotient, and the straight-through gradient predicts the same number.
"""

from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import load_dataset
from siman_jax.data.dataset import Split
from siman_jax.data.feed import Batch
from siman_jax.data.stream import EvaluationStream
from siman_jax.models.layers import BINARY_KERNEL
from siman_jax.models.normalization import normalize
from siman_jax.training.metrics import score
from siman_jax.training.step import TrainState
from siman_jax.training.task import model_from_config

# Of a perturbation, in standard deviations of its filter's weights.
STEP = 0.1
# A batch of no more examples than that, so that the time has a bound.
MOST_EXAMPLES = 128

Leaves = dict[tuple[str, ...], Array]


class Mismatch(NamedTuple):
    """Agreement of the two gradients in one layer.

    Attributes:
      name: path of the layer.
      cosine: between predicted and measured slopes along the sampled directions.
      standard_error: of `cosine` by the number of directions.
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

    Where the loss, smoothed at that distance, is linear in w, this tends to the cosine between g
    and the smoothed loss's gradient, both in units of s; curvature beyond it only lowers it.
    Scheduled estimators are as sharp as training ends, `rules.AT_THE_END`. The
    loss is that of training, with the batch's own statistics in batch norm, on the first examples
    of the test split.

    Args:
      config: of the run.
      state: with the weights to perturb.
      mesh: one device.
      directions: how many to sample, 2 or more; each costs two forward passes per layer.

    Raises:
      UsageError: the run's data cannot be used.
    """
    images, labels = _first_examples(config, mesh)
    model = model_from_config(config)
    leaves = flatten_dict(state.params)
    kernels = {path: leaf for path, leaf in leaves.items() if path[-1] == BINARY_KERNEL}

    # All arrays are arguments: what is closed over, XLA computes with while it compiles.
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

    rest = (state.variables(), Batch(images, labels))
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
    """A random direction for every kernel, in standard deviations of its filters' weights."""
    keys = jax.random.split(key, len(kernels))
    return {
        path: jax.random.normal(k, kernel.shape)
        * jnp.std(kernel, range(kernel.ndim - 1), keepdims=True)
        for k, (path, kernel) in zip(keys, kernels.items(), strict=True)
    }


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each column of `a` with that of `b`; 0 where one of them is zero."""
    norms = np.sqrt(np.sum(a**2, 0) * np.sum(b**2, 0))
    cosines = np.where(norms > 0, np.sum(a * b, 0) / np.where(norms > 0, norms, 1), 0)
    return np.clip(cosines, -1, 1)  # which rounding may leave


def _first_examples(config: ConfigDict, mesh: Mesh) -> tuple[Array, Array]:
    """Images uint8 `[n, height, width, channels]` and labels of the test split."""
    split = load_dataset(config.data).test
    count = min(MOST_EXAMPLES, len(split))
    if isinstance(split, Split):
        return jnp.asarray(split.images[:count]), jnp.asarray(split.labels[:count])
    data = config.data.copy_and_resolve_references()
    data.workers = 0  # processes that read ahead are not worth starting for one batch
    batches: Any = iter(EvaluationStream(split, mesh, data, count))
    with closing(batches):
        batch = next(batches)
    return batch.images, batch.labels
