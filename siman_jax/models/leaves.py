"""Names of parameters and collections, the bits of a network's kernels, and how many changed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array

from siman_jax.rules import AT_THE_END, THETA, WEIGHT_RULES

BINARY_KERNEL = "binary_kernel"
# All names of parameters in the networks here.
LEAF_NAMES = (BINARY_KERNEL, "alpha", THETA, "kernel", "bias", "scale", "slope", "shift")

# Collections of variables other than parameters.
BITS = "bits"
# Bits that a training step has chosen for all layers together.
CHOSEN = "chosen"
ROTATIONS = "rotations"
SCHEDULE = "schedule"

ModulePath = tuple[str, ...]
Bits = dict[str, Array]


def leaves_by_module(*trees: Mapping) -> dict[ModulePath, dict[str, Array]]:
    """Group leaves by the module that owns them, those of all `trees` together."""
    modules: dict[ModulePath, dict[str, Array]] = {}
    for tree in trees:
        for path, leaf in flatten_dict(tree).items():
            modules.setdefault(path[:-1], {})[path[-1]] = leaf
    return modules


def multiplying_kernels(
    params: Mapping, weight_rule: str, rotations: Mapping | None = None
) -> dict[ModulePath, Array]:
    """Compute the kernel that each binary layer multiplies by, before alpha.

    Args:
      params: parameters of a network.
      weight_rule: key of `rules.WEIGHT_RULES` that the network uses.
      rotations: the network's collection of that name, if its rule has one.
    """
    rule = WEIGHT_RULES[weight_rule]
    return {
        module: rule(own[BINARY_KERNEL], {**AT_THE_END, **own})
        for module, own in leaves_by_module(params, rotations or {}).items()
        if BINARY_KERNEL in own
    }


def binary_bits(params: Mapping, weight_rule: str, rotations: Mapping | None = None) -> Bits:
    """Compute the bits of every binary kernel, True for +1, by the path of its layer.

    The arguments are those of `multiplying_kernels`.
    """
    kernels = multiplying_kernels(params, weight_rule, rotations)
    return {"/".join(module): kernel > 0 for module, kernel in kernels.items()}


@jax.jit
def shares_flipped(before: Bits, after: Bits) -> dict[str, Array]:
    """Compute the share of bits, 0 to 1, that differ between `before` and `after` in each layer."""
    return jax.tree.map(lambda old, new: jnp.mean(old != new), before, after)
