"""SGD with schedules, weight decay that spares binary kernels, their projection and rotation.

Binary kernels are told apart by the names of their leaves, never by their rank.
"""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from ml_collections import ConfigDict

from siman_jax.models.leaves import BINARY_KERNEL, leaves_by_module
from siman_jax.rules import LEFT, RIGHT, SHARPNESS, TAU, Prepare
from siman_jax.rules.estimators import sharpness_at
from siman_jax.rules.rbnn import Rotations, update_rotations
from siman_jax.rules.sign_kernels import tau_at
from siman_jax.rules.siman import project
from siman_jax.training.bop import bop

Params = dict
Schedule = Callable[[Array], Array]


def linear_scale(config: ConfigDict, batch_size: int) -> float:
    """Factor by which a larger batch raises the learning rate, arXiv 1706.02677.

    Args:
      config: with `reference_batch_size`, for which `learning_rate` is meant; 0 for no scaling.
      batch_size: examples in a step, on all devices together.
    """
    return batch_size / config.reference_batch_size if config.reference_batch_size else 1.0


def learning_rate_schedule(
    config: ConfigDict, epochs: int, steps_per_epoch: int, scale: float = 1.0
) -> Schedule:
    """Linear warm-up, then half a cosine.

        e <  s:  lr = base * (e + 1) / W,   s = max(W - 1, 0)
        e >= s:  lr = base / 2 * (1 + cos(pi * (e - s) / (epochs - s)))

    with e the epoch from 0: a whole number, constant within an epoch (the published
    schedule), or a fraction that grows with every step if `config.staircase` is off.

    Args:
      config: with `learning_rate`, `warmup_epochs` (W; 0 and 1 both mean none) and `staircase`.
      epochs: length of the training.
      steps_per_epoch: optimiser steps in an epoch.
      scale: base is `config.learning_rate` times this.

    Returns:
      Function from the step, counted from 0, to the float32 learning rate.
    """
    base, warmup = scale * config.learning_rate, config.warmup_epochs
    start = max(warmup - 1, 0)

    def schedule(step: Array) -> Array:
        epoch = _epoch(step, steps_per_epoch, config.staircase)
        cosine = base / 2 * (1 + jnp.cos(jnp.pi * (epoch - start) / (epochs - start)))
        return jnp.where(epoch < start, base * (epoch + 1) / max(warmup, 1), cosine)

    return schedule


def clip_schedule(config: ConfigDict, epochs: int, steps_per_epoch: int) -> Schedule:
    """Percentage of the projection: `config.clip_percent` * (1 - epoch / epochs), by epoch.

    Args:
      config: with `clip_percent`; with `clip_decays` off, the percentage is that throughout.
      epochs: length of the training.
      steps_per_epoch: optimiser steps in an epoch.

    Returns:
      Function from the step, counted from 0, to the float32 percentage.
    """

    def schedule(step: Array) -> Array:
        if not config.clip_decays:
            return jnp.float32(config.clip_percent)
        return config.clip_percent * (1 - _epoch(step, steps_per_epoch, config.staircase) / epochs)

    return schedule


def estimator_schedule(
    config: ConfigDict, epochs: int, steps_per_epoch: int, staircase: bool
) -> Callable[[Array], dict[str, Array]]:
    """Sharpness and tau, the scalars that shape gradients of some rules, by epoch / epochs.

    Args:
      config: with `first_sharpness`, `last_sharpness`, `first_tau` and `last_tau`.
      epochs: length of the training.
      steps_per_epoch: optimiser steps in an epoch.
      staircase: keep them constant within an epoch, as published.

    Returns:
      Function from the step, counted from 0, to float32 scalars by the names in `rules`.
    """

    def schedule(step: Array) -> dict[str, Array]:
        progress = _epoch(step, steps_per_epoch, staircase) / epochs
        return {
            SHARPNESS: sharpness_at(progress, config.first_sharpness, config.last_sharpness),
            TAU: tau_at(progress, config.first_tau, config.last_tau),
        }

    return schedule


def _epoch(step: Array, steps_per_epoch: int, staircase: bool) -> Array:
    step = jnp.asarray(step)
    if staircase:
        return (step // steps_per_epoch).astype(jnp.float32)
    return step.astype(jnp.float32) / steps_per_epoch


def build_optimizer(
    config: ConfigDict, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Chain coupled L2 and SGD with momentum, as PyTorch's SGD does.

        v <- momentum * v + (g + weight_decay * w),   w <- w - lr * v

    Args:
      config: with `momentum`, `nesterov`, `weight_decay` and `undecayed`, the names of the
        leaves that weight decay leaves out; with `kernel_decay`, more of it for binary kernels;
        with `bop` on, Bop flips the binary kernels instead, by `bop_adaptivity` and
        `bop_threshold`.
      learning_rate: a number, or a function of the step.
    """
    decays = [
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, config.undecayed)
        )
    ]
    if config.kernel_decay:
        decays.append(optax.add_decayed_weights(config.kernel_decay, mask=_binary_kernels))
    sgd = optax.chain(*decays, optax.sgd(learning_rate, config.momentum, config.nesterov))
    if not config.bop:
        return sgd
    flips = bop(config.bop_adaptivity, config.bop_threshold)
    return optax.partition({True: flips, False: sgd}, _binary_kernels)


def decay_mask(params: Params, undecayed: Collection[str]) -> Params:
    """True for every leaf whose own name is not in `undecayed`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _leaf_name(path) not in undecayed, params
    )


def project_binary_kernels(params: Params, percent: Array | float) -> Params:
    """Apply `siman.project` to every binary kernel; other leaves stay as they are."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: project(leaf, percent) if _leaf_name(path) == BINARY_KERNEL else leaf,
        params,
    )


def prepare_binary_kernels(
    params: Params, percent: Array | float, prepare: Prepare
) -> tuple[Params, Params]:
    """Project all binary kernels and choose their bits, by a weight rule's function for both.

    Args:
      params: of the network.
      percent: of the projection.
      prepare: `rules.WeightRule.prepare`.

    Returns:
      The parameters, and their bits, which are the network's collection `chosen`.
    """
    flat = flatten_dict(params)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] == BINARY_KERNEL}
    projected, bits = prepare(list(kernels.values()), percent)
    params = unflatten_dict({**flat, **dict(zip(kernels, projected, strict=True))})
    return params, unflatten_dict(dict(zip(kernels, bits, strict=True)))


def rotate_binary_kernels(params: Params, rotations: Params) -> Params:
    """Apply `rbnn.update_rotations` to the rotations of every binary kernel.

    Args:
      params: of the network.
      rotations: its collection of that name.

    Returns:
      The collection after the update.
    """
    modules = leaves_by_module(params, rotations)
    updated = {
        module: update_rotations(own[BINARY_KERNEL], Rotations(own[LEFT], own[RIGHT]))
        for module, own in modules.items()
        if LEFT in own
    }
    return unflatten_dict(
        {
            (*module, name): matrix
            for module, pair in updated.items()
            for name, matrix in zip((LEFT, RIGHT), pair, strict=True)
        }
    )


def _binary_kernels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _leaf_name(path) == BINARY_KERNEL, params
    )


def _leaf_name(path: jax.tree_util.KeyPath) -> str:
    return path[-1].key
