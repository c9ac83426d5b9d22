"""Running a program by JAX, on any platform.

    logits = jax.jit(interpret)(program, images)

A program is a pytree of its weights, so it may be an argument of `jax.jit`.
"""

from collections.abc import Callable
from dataclasses import fields

import jax
import jax.numpy as jnp
from jax import Array, lax

from siman_jax.models.batch_norm import per_channel
from siman_jax.program import operations as op
from siman_jax.program.kernels import (
    PackedKernel,
    binary_conv,
    corner_sums,
    weight_only_conv,
)
from siman_jax.program.operations import OPERATIONS, Operation, Program
from siman_jax.program.pools import max_pool
from siman_jax.rules.siman import siman_activation

_IMAGES = ("NHWC", "HWIO", "NHWC")


def _register() -> None:
    for kind in OPERATIONS.values():
        weights = [f.name for f in fields(kind) if "weight" in f.metadata]
        others = [f.name for f in fields(kind) if "weight" not in f.metadata]
        jax.tree_util.register_dataclass(kind, weights, others)
    jax.tree_util.register_dataclass(Program, ["operations"], ["result"])


_register()


def interpret(program: Program, images: Array, *, native: bool = True) -> Array:
    """Compute the logits of images.

    Args:
      program: the network.
      images: normalized, float32 `[batch, height, width, channels]`.
      native: use the C++ library for binary products on a CPU; False for XLA everywhere.

    Returns:
      The program's result, float32 `[batch, ...]`.
    """
    results: list[Array] = []
    for place in range(len(program.operations)):
        results.append(result_of(program, place, results, images, native=native))
    return results[program.result]


def result_of(
    program: Program, place: int, results: list[Array], images: Array, *, native: bool = True
) -> Array:
    """Compute the result of the operation at `place` from the results before it."""
    operation = program.operations[place]
    if isinstance(operation, op.Images):
        return images
    operands = [results[source] for source in operation.inputs]
    if isinstance(operation, op.BinaryConv | op.BinaryDense):
        of_signs = isinstance(program.operations[operation.inputs[0]], op.Signs)
        return _binary_product(operation, *operands, of_signs=of_signs, native=native)
    if isinstance(operation, op.Constant):
        return jnp.broadcast_to(operation.value, (images.shape[0], *operation.value.shape))
    return _FUNCTIONS[type(operation)](operation, *operands)


def _binary_product(
    operation: op.BinaryConv | op.BinaryDense, x: Array, *, of_signs: bool, native: bool
) -> Array:
    if isinstance(operation, op.BinaryDense):
        as_conv = op.BinaryConv(words=operation.words[None, None])
        return _binary_conv(as_conv, x[:, None, None], of_signs, native)[:, 0, 0]
    return _binary_conv(operation, x, of_signs, native)


def _binary_conv(operation: op.BinaryConv, x: Array, of_signs: bool, native: bool) -> Array:
    words, (down, across) = operation.words, operation.strides
    # The kernels have one stride for both directions.
    stride = down if down == across else 1
    if of_signs:
        kernel = PackedKernel(words, corner_sums(words, x.shape[-1]))
        y = binary_conv(
            x > 0, kernel, strides=stride, padding=operation.padding, native=native
        ).astype(x.dtype)
    else:
        y = weight_only_conv(x, words, strides=stride, padding=operation.padding)
    return y if down == across else y[:, ::down, ::across]


def _conv(operation: op.Conv, x: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        operation.kernel,
        operation.strides,
        operation.padding,
        rhs_dilation=operation.dilation,
        feature_group_count=operation.groups,
        dimension_numbers=_IMAGES,
    )


def _dense(operation: op.Dense, x: Array) -> Array:
    return lax.dot_general(x, operation.kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _max_pool(operation: op.MaxPool, x: Array) -> Array:
    return max_pool(x, operation.window, operation.strides, operation.padding)


def _sum_pool(operation: op.SumPool, x: Array) -> Array:
    return lax.reduce_window(
        x,
        jnp.zeros((), x.dtype),
        lax.add,
        (1, *operation.window, 1),
        (1, *operation.strides, 1),
        ((0, 0), *operation.padding, (0, 0)),
    )


def _affine(operation: op.Affine, x: Array) -> Array:
    if operation.scale is not None:
        x = x * per_channel(operation.scale, x)
    return x if operation.shift is None else x + per_channel(operation.shift, x)


def _prelu(operation: op.PReLU, x: Array) -> Array:
    return jnp.where(x > 0, x, per_channel(operation.slope, x) * x)


def _signs(operation: op.Signs, x: Array) -> Array:
    if operation.threshold is None:
        return siman_activation(x)
    return jnp.where(x >= per_channel(operation.threshold, x), 1, -1).astype(x.dtype)


def _concatenate(operation: op.Concatenate, *operands: Array) -> Array:
    return jnp.concatenate(operands, axis=operation.axis + 1)


def _pad(operation: op.Pad, x: Array) -> Array:
    widths = ((0, 0), *zip(operation.before, operation.after, strict=True))
    return jnp.pad(x, widths, constant_values=operation.value)


def _slice(operation: op.Slice, x: Array) -> Array:
    starts, stops = (0, *operation.starts), (x.shape[0], *operation.stops)
    return lax.slice(x, starts, stops, (1, *operation.strides))


def _after_batch(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis + 1 for axis in axes)


_FUNCTIONS: dict[type[Operation], Callable[..., Array]] = {
    op.Conv: _conv,
    op.Dense: _dense,
    op.MaxPool: _max_pool,
    op.SumPool: _sum_pool,
    op.Sum: lambda operation, x: jnp.sum(x, _after_batch(operation.axes)),
    op.Max: lambda operation, x: jnp.max(x, _after_batch(operation.axes)),
    op.Affine: _affine,
    op.PReLU: _prelu,
    op.Clip: lambda operation, x: jnp.clip(x, operation.low, operation.high),
    op.Sigmoid: lambda _, x: jax.nn.sigmoid(x),
    op.Tanh: lambda _, x: jnp.tanh(x),
    op.Softmax: lambda _, x: jax.nn.softmax(x, axis=-1),
    op.Signs: _signs,
    op.Add: lambda _, a, b: a + b,
    op.Multiply: lambda _, a, b: a * b,
    op.Concatenate: _concatenate,
    op.Pad: _pad,
    op.Slice: _slice,
    op.Reshape: lambda operation, x: x.reshape(x.shape[0], *operation.shape),
    op.Transpose: lambda operation, x: x.transpose(0, *_after_batch(operation.axes)),
    op.Broadcast: lambda operation, x: jnp.broadcast_to(x, (x.shape[0], *operation.shape)),
}
