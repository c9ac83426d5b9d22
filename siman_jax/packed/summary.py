"""The cost of a packed network, layer by layer."""

from math import prod

from siman_jax.models.summary import LayerCost
from siman_jax.program import operations as op
from siman_jax.program.operations import Program


def summarize_packed(program: Program) -> list[LayerCost]:
    """Do what `summarize` does for the operations that have weights.

    Real parameters are those left after packing: a batch norm has two numbers per channel, and its
    convolution no alpha.
    """
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
