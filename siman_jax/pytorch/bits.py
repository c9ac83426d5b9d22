"""The bits that a PyTorch checkpoint stores in `B`, and whether they can be trusted."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.errors import UsageError
from siman_jax.models.layers import BINARY_KERNEL, BITS
from siman_jax.rules import WEIGHT_RULES

# Training updates the weights once more after it chose the bits, which flips a few.
MOST_DISAGREEMENT = 0.01


def stored_bits(variables: Mapping, weight_rule: str) -> tuple[dict, list[str]]:
    """Take the bits of every binary kernel as a checkpoint stores them.

    What is above 0 is taken for 1.

    Args:
      variables: as `variables_from_torch` gives them.
      weight_rule: key of `rules.WEIGHT_RULES` that chose the bits, from the weights alone.

    Returns:
      The collection `bits`, bool, True for +1; and warnings: one with the share of entries that
      are neither 0 nor 1, if any, and one with the share of bits that are not those of the latent
      weights, if it is more than `MOST_DISAGREEMENT`.

    Raises:
      UsageError: some binary kernels have no bits; each is listed.
    """
    stored = flatten_dict(variables.get(BITS, {}))
    kernels = {
        path: leaf
        for path, leaf in flatten_dict(variables["params"]).items()
        if path[-1] == BINARY_KERNEL
    }
    missing = sorted("/".join(path[:-1]) for path in kernels.keys() - stored.keys())
    if missing:
        raise UsageError(
            "these binary layers (by their names here) have no bits B:\n  " + "\n  ".join(missing)
        )
    bits = {path: stored[path] > 0 for path in kernels}
    latent = {
        path: np.asarray(WEIGHT_RULES[weight_rule](jnp.float32(kernel), {})) > 0
        for path, kernel in kernels.items()
    }
    odd = _share([(stored[path] != 0) & (stored[path] != 1) for path in kernels])
    different = _share([bits[path] != latent[path] for path in kernels])
    warnings = []
    if odd:
        warnings.append(
            f"{100 * odd:.3g} % of B is neither 0 nor 1; what is above 0 was taken for 1"
        )
    if different > MOST_DISAGREEMENT:
        warnings.append(
            f"{100 * different:.3g} % of the bits in B are not those of the latent weights (more"
            f" than {100 * MOST_DISAGREEMENT:g} %); the model file has those in B"
        )
    return unflatten_dict(bits), warnings


def _share(masks: list[np.ndarray]) -> float:
    return sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))
