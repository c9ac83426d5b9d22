"""The bits that a PyTorch checkpoint stores in `B`, and checks of them."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.errors import UsageError
from siman_jax.models.leaves import BINARY_KERNEL, BITS, binary_bits

# Training updates the weights once more after choosing the bits, which flips a few.
MOST_DISAGREEMENT = 0.01


def stored_bits(variables: Mapping, weight_rule: str) -> tuple[dict, list[str]]:
    """Read the bits of every binary kernel from a checkpoint; entries above 0 count as 1.

    Args:
      variables: from `variables_from_torch`.
      weight_rule: key of `rules.WEIGHT_RULES` that chose the bits; one that needs only the weights.

    Returns:
      The collection `bits`, bool, True for +1; and a list of warnings. One gives the share of
      entries that are neither 0 nor 1, if there are any. Another gives the share of bits that
      differ from those of the latent weights, if it exceeds `MOST_DISAGREEMENT`.

    Raises:
      UsageError: some binary kernels have no bits; each is listed.
    """
    stored = flatten_dict(variables.get(BITS, {}))
    kernels = {
        path: jnp.float32(leaf)
        for path, leaf in flatten_dict(variables["params"]).items()
        if path[-1] == BINARY_KERNEL
    }
    missing = sorted("/".join(path[:-1]) for path in kernels.keys() - stored.keys())
    if missing:
        raise UsageError(
            "these binary layers (by their names here) have no bits B:\n  " + "\n  ".join(missing)
        )
    bits = {path: stored[path] > 0 for path in kernels}
    latent = binary_bits(unflatten_dict(kernels), weight_rule)
    odd = _share([(stored[path] != 0) & (stored[path] != 1) for path in kernels])
    different = _share([bits[path] != np.asarray(latent["/".join(path[:-1])]) for path in kernels])
    warnings = []
    if odd:
        warnings.append(
            f"{100 * odd:.3g} % of B is neither 0 nor 1; values above 0 were taken as 1"
        )
    if different > MOST_DISAGREEMENT:
        warnings.append(
            f"{100 * different:.3g} % of the bits in B differ from those of the latent weights"
            f" (expected at most {100 * MOST_DISAGREEMENT:g} %); the model file has those in B"
        )
    return unflatten_dict(bits), warnings


def _share(masks: list[np.ndarray]) -> float:
    return sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))
