"""The optimizer, and the projection, bits and rotations of binary kernels.

Binary kernels are recognized by the names of their leaves.
"""

from collections.abc import Collection

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from ml_collections import ConfigDict

from siman_jax.models.leaves import BINARY_KERNEL, leaves_by_module
from siman_jax.rules import LEFT, RIGHT, Prepare
from siman_jax.rules.rbnn import Rotations, update_rotations
from siman_jax.rules.siman import project
from siman_jax.training.bop import bop

Params = dict


def build_optimizer(
    config: ConfigDict, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Build SGD with momentum and coupled weight decay, as in PyTorch.

        v <- momentum * v + (g + weight_decay * w),   w <- w - lr * v

    Args:
      config: with `momentum`, `nesterov`, `weight_decay`, and `undecayed`, the names of leaves
        without weight decay; `kernel_decay`, additional decay of binary kernels; and `bop`, whether
        Bop updates the binary kernels instead, with `bop_adaptivity` and `bop_threshold`.
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
    """Return True for every leaf whose name is not in `undecayed`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _leaf_name(path) not in undecayed, params
    )


def project_binary_kernels(params: Params, percent: Array | float) -> Params:
    """Apply `siman.project` to every binary kernel; other leaves are unchanged."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: project(leaf, percent) if _leaf_name(path) == BINARY_KERNEL else leaf,
        params,
    )


def prepare_binary_kernels(
    params: Params, percent: Array | float, prepare: Prepare
) -> tuple[Params, Params]:
    """Project all binary kernels and choose their bits, in one call of a rule's `prepare`.

    Args:
      params: the network's parameters.
      percent: percentage of the projection.
      prepare: `rules.WeightRule.prepare`.

    Returns:
      The projected parameters, and the bits, for the network's collection `chosen`.
    """
    flat = flatten_dict(params)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] == BINARY_KERNEL}
    projected, bits = prepare(list(kernels.values()), percent)
    params = unflatten_dict({**flat, **dict(zip(kernels, projected, strict=True))})
    return params, unflatten_dict(dict(zip(kernels, bits, strict=True)))


def rotate_binary_kernels(params: Params, rotations: Params) -> Params:
    """Apply `rbnn.update_rotations` to the rotations of every binary kernel.

    Args:
      params: the network's parameters.
      rotations: the network's collection `rotations`.

    Returns:
      The updated collection.
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
