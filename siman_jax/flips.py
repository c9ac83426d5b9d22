"""Which bits a network's kernels have, and how many of them changed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array

from siman_jax.binarize import WEIGHT_RULES
from siman_jax.layers import BINARY_KERNEL

Bits = dict[str, Array]


def binary_bits(params: Mapping, weight_rule: str) -> Bits:
    """Bits of every binary kernel, True for +1, by the path of its layer.

    Args:
      params: parameters of a network.
      weight_rule: key of `binarize.WEIGHT_RULES` that the network uses.
    """
    return {
        "/".join(path[:-1]): WEIGHT_RULES[weight_rule](leaf) > 0
        for path, leaf in flatten_dict(params).items()
        if path[-1] == BINARY_KERNEL
    }


@jax.jit
def shares_flipped(before: Bits, after: Bits) -> dict[str, Array]:
    """Share of bits, 0 to 1, that differ between `before` and `after` in each layer."""
    return jax.tree.map(lambda old, new: jnp.mean(old != new), before, after)
