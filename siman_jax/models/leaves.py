"""Which bits a network's kernels have, and how many of them changed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.models.layers import BINARY_KERNEL, leaves_by_module
from siman_jax.rules import AT_THE_END, WEIGHT_RULES

Bits = dict[str, Array]


def binary_bits(params: Mapping, weight_rule: str, rotations: Mapping | None = None) -> Bits:
    """Bits of every binary kernel, True for +1, by the path of its layer.

    Args:
      params: parameters of a network.
      weight_rule: key of `rules.WEIGHT_RULES` that the network uses.
      rotations: the network's collection of that name, where its rule has one.
    """
    rule = WEIGHT_RULES[weight_rule]
    return {
        "/".join(module): rule(own[BINARY_KERNEL], {**AT_THE_END, **own}) > 0
        for module, own in leaves_by_module(params, rotations or {}).items()
        if BINARY_KERNEL in own
    }


@jax.jit
def shares_flipped(before: Bits, after: Bits) -> dict[str, Array]:
    """Share of bits, 0 to 1, that differ between `before` and `after` in each layer."""
    return jax.tree.map(lambda old, new: jnp.mean(old != new), before, after)
