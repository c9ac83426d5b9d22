"""The cost of a packed network, layer by layer."""

import dataclasses
from collections import Counter

from flax.traverse_util import flatten_dict

from siman_jax.models.summary import LayerCost, summarize
from siman_jax.packed.file import PackedNetwork
from siman_jax.packed.layers import WORDS


def summarize_packed(network: PackedNetwork) -> list[LayerCost]:
    """Do what `summarize` does, but count the 32-bit parameters left after packing.

    After packing a batch norm has two numbers per channel, and its convolution no alpha.
    """
    real: Counter[str] = Counter()
    for path, leaf in flatten_dict(network.variables["params"]).items():
        if path[-1] != WORDS:
            real["/".join(path[:-1])] += leaf.size
    layers = summarize(network.model(), network.image_shape)
    return [dataclasses.replace(layer, real_params=real[layer.name]) for layer in layers]
