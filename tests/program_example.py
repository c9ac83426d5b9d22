"""A small program that has every operation."""

import math

import numpy as np

from siman_jax.program import operations as op
from siman_jax.program.operations import Program, packed_bits


def every_operation(classes=3):
    """Return a program for images of 6x6x3."""
    rng = np.random.default_rng(0)

    def floats(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    def words(*shape):
        return packed_bits(rng.integers(0, 2, shape).astype(bool))

    same = ((1, 1), (1, 1))
    operations = [
        op.Images(shape=(6, 6, 3)),
        op.Conv(inputs=(0,), path="stem/conv", kernel=floats(3, 3, 3, 34), padding=same),
        op.Affine(inputs=(1,), path="stem/norm", scale=floats(34), shift=floats(34)),
        op.PReLU(inputs=(2,), path="stem/bend", slope=floats(34)),
        op.Signs(inputs=(3,), path="body"),
        op.BinaryConv(inputs=(4,), path="body", words=words(3, 3, 34, 8), padding=same),
        op.MaxPool(inputs=(5,), window=(2, 3), strides=(2, 3), padding=((0, 0), (1, 2))),
        op.Affine(inputs=(6,), path="body", scale=floats(8)),
        op.Clip(inputs=(7,), low=-1.0, high=math.inf),
        op.SumPool(inputs=(3,), window=(2, 2), strides=(2, 2)),
        op.BinaryConv(inputs=(9,), path="weights_only", words=words(1, 1, 34, 8)),
        op.Tanh(inputs=(10,)),
        op.Add(inputs=(8, 11)),
        op.Sum(inputs=(12,), axes=(0, 1)),
        op.Dense(inputs=(13,), path="excite", kernel=floats(8, 8)),
        op.Affine(inputs=(14,), path="excite", shift=floats(8)),
        op.Sigmoid(inputs=(15,)),
        op.Reshape(inputs=(16,), shape=(1, 1, 8)),
        op.Multiply(inputs=(12, 17)),
        op.Broadcast(inputs=(17,), shape=(3, 1, 8)),
        op.Constant(path="position", value=floats(3, 1, 8)),
        op.Add(inputs=(19, 20)),
        op.Concatenate(inputs=(18, 21), axis=1),
        op.Pad(inputs=(22,), before=(0, 1, 0), after=(1, 0, 2), value=0.25),
        op.Slice(inputs=(23,), starts=(0, 0, 1), stops=(4, 5, 10), strides=(2, 1, 2)),
        op.Transpose(inputs=(24,), axes=(2, 0, 1)),
        op.Max(inputs=(25,), axes=(2,)),
        op.Reshape(inputs=(26,), shape=(10,)),
        op.Signs(inputs=(27,), path="last", threshold=floats(10)),
        op.BinaryDense(inputs=(28,), path="last", words=words(10, classes)),
        op.Affine(inputs=(29,), path="last", scale=floats(classes)),
        op.Softmax(inputs=(30,)),
    ]
    return Program(tuple(operations), len(operations) - 1)
