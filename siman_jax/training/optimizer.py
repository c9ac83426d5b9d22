"""The optimizer, and the projection, bits and rotations of binary kernels.

Binary kernels are recognized by the names of their leaves.
"""

from collections.abc import Callable, Collection

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from ml_collections import ConfigDict

from siman_jax.errors import choose
from siman_jax.models.leaves import BINARY_KERNEL, leaves_by_module
from siman_jax.rules import LEFT, RIGHT, Prepare
from siman_jax.rules.rbnn import Rotations, update_rotations
from siman_jax.rules.siman import project
from siman_jax.training.bop import bop
from siman_jax.training.gradient_floor import gradient_floor

Params = dict


def build_optimizer(
    config: ConfigDict, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Build the optimizer of a config; d is the weight decay of a leaf.

        sgd:    v <- momentum v + (g + d w),                w <- w - lr v
        adam:   m, n <- averages of g + d w, (g + d w)^2,   w <- w - lr m^ / (sqrt(n^) + epsilon)
        adamw:  m, n <- averages of g, g^2,          w <- w - lr (m^ / (sqrt(n^) + epsilon) + d w)

    The averages are exponential, with `beta1` and `beta2`; m^ and n^ are corrected for their start
    at 0. All three are as in PyTorch; `nesterov` gives the others m^ of optax's `scale_by_adam`. If
    `clip_norm` is above 0, all gradients are first scaled by min(1, clip_norm / norm), where norm
    is that of all leaves together, before any decay is added. After that, if `gradient_floor` is
    above 0, the gradients of binary kernels are scaled up by `gradient_floor.gradient_floor`.

    Args:
      config: with `name`, a key of `OPTIMIZERS`; `momentum` for SGD; `beta1`, `beta2` and `epsilon`
        for the others; `nesterov`; `clip_norm`; `gradient_floor`; `weight_decay`, and `undecayed`,
        the names of leaves without it; `kernel_decay`, additional decay of binary kernels; and
        `bop`, whether Bop updates the binary kernels instead, with `bop_adaptivity` and
        `bop_threshold`.
      learning_rate: a number, or a function of the step.

    Raises:
      UsageError: no optimizer has that name.

    Sources: Kingma and Ba, arXiv 1412.6980 (2014); Loshchilov and Hutter, arXiv 1711.05101 (2017).
    """
    build = choose(OPTIMIZERS, config.name, "optimizer")
    optimizer = build(config, learning_rate, _decays(config))
    if config.bop:
        flips = bop(config.bop_adaptivity, config.bop_threshold)
        optimizer = optax.partition({True: flips, False: optimizer}, _binary_kernels)
    if config.gradient_floor:
        floor = optax.masked(gradient_floor(config.gradient_floor), _binary_kernels)
        optimizer = optax.chain(floor, optimizer)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def _decays(config: ConfigDict) -> list[optax.GradientTransformation]:
    decays = [
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, config.undecayed)
        )
    ]
    if config.kernel_decay:
        decays.append(optax.add_decayed_weights(config.kernel_decay, mask=_binary_kernels))
    return decays


def _sgd(
    config: ConfigDict, rate: optax.ScalarOrSchedule, decays: list[optax.GradientTransformation]
) -> optax.GradientTransformation:
    return optax.chain(*decays, optax.sgd(rate, config.momentum, config.nesterov))


def _adam(
    config: ConfigDict, rate: optax.ScalarOrSchedule, decays: list[optax.GradientTransformation]
) -> optax.GradientTransformation:
    return optax.chain(*decays, _scale_by_adam(config), optax.scale_by_learning_rate(rate))


def _adamw(
    config: ConfigDict, rate: optax.ScalarOrSchedule, decays: list[optax.GradientTransformation]
) -> optax.GradientTransformation:
    return optax.chain(_scale_by_adam(config), *decays, optax.scale_by_learning_rate(rate))


def _scale_by_adam(config: ConfigDict) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, nesterov=config.nesterov)

    def update(
        gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # optax raises a float to an integer power, which strict promotion of dtypes refuses.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(gradients, state, params)

    return optax.GradientTransformation(adam.init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


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
