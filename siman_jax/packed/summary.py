"""The cost of a packed network, layer by layer."""

import dataclasses
from collections import Counter
from math import prod

from flax.traverse_util import flatten_dict

from siman_jax.models.summary import LayerCost, summarize
from siman_jax.packed.file import PackedNetwork
from siman_jax.packed.layers import WORDS
from siman_jax.packed.program_file import PackedProgram
from siman_jax.program import operations as op
from siman_jax.program.operations import Program


def summarize_packed(network: PackedNetwork | PackedProgram) -> list[LayerCost]:
    """Do what `summarize` does, but count the 32-bit parameters left after packing.

    After packing a batch norm has two numbers per channel, and its convolution no alpha. Layers of
    a program are its operations with weights.
    """
    if isinstance(network, PackedProgram):
        return _summarize_program(network.program)
    real: Counter[str] = Counter()
    for path, leaf in flatten_dict(network.variables["params"]).items():
        if path[-1] != WORDS:
            real["/".join(path[:-1])] += leaf.size
    layers = summarize(network.model(), network.image_shape)
    return [dataclasses.replace(layer, real_params=real[layer.name]) for layer in layers]


def _summarize_program(program: Program) -> list[LayerCost]:
    shapes, layers = program.shapes(), []
    for operation, shape in zip(program.operations, shapes, strict=True):
        weights = operation.weights()
        if not weights:
            continue
        terms = bits = 0
        if isinstance(operation, op.Conv):
            terms = prod(operation.kernel.shape[:-1])
        elif isinstance(operation, op.Dense):
            terms = operation.kernel.shape[0]
        elif isinstance(operation, op.BinaryConv | op.BinaryDense):
            taps = prod(operation.words.shape[:-2])
            terms = taps * shapes[operation.inputs[0]][-1]
            bits = terms * shape[-1]
        macs = terms * prod(shape)
        one_bit = bits > 0 and isinstance(program.operations[operation.inputs[0]], op.Signs)
        layers.append(
            LayerCost(
                name=operation.path,
                kind=op.NAMES[type(operation)],
                shape=shape,
                binary_params=bits,
                real_params=0 if bits else sum(array.size for array in weights.values()),
                binary_macs=macs if one_bit else 0,
                real_macs=0 if one_bit else macs,
            )
        )
    return layers
