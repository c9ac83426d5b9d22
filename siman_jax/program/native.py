"""Programs that the native library runs, with NumPy alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from siman_jax.native import network
from siman_jax.program import operations as ops
from siman_jax.program.operations import NAMES, Program


def native_network(program: Program, *, variant: str | None = None) -> network.Network:
    """Prepare a program to run natively.

    Args:
      program: its weights are NumPy arrays, or JAX arrays that are not traced.
      variant: instruction set; the fastest one if None.

    Returns:
      A function from normalized images, float32 `[batch, height, width, channels]`, to the
      program's result, float32 `[batch, size]` with all axes in one.

    Raises:
      ValueError: its operations do not fit each other, or there is no such instruction set.
      RuntimeError: the library was not built.
    """
    return network.Network(
        [_translated(operation) for operation in program.operations],
        program.result,
        variant=variant,
    )


def _translated(operation: ops.Operation) -> network.Operation:
    kind = NAMES[type(operation)]
    numbers, weights = _FIELDS.get(kind, _nothing)(operation)
    return network.Operation(kind, operation.inputs, numbers, [_array(x) for x in weights])


def _array(weight: Any) -> np.ndarray | None:
    return None if weight is None else np.asarray(weight)


def _nothing(operation: Any) -> tuple[Sequence[int], Sequence[Any]]:
    return (), ()


def _sides(padding: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the zeros above, below, left and right."""
    return tuple(n for side in padding for n in side)


def _pool(pool: Any) -> tuple[Sequence[int], Sequence[Any]]:
    return (*pool.window, *pool.strides, *_sides(pool.padding)), ()


def _conv(conv: Any) -> tuple[Sequence[int], Sequence[Any]]:
    sides = _sides(conv.padding)
    return (*conv.strides, *sides, *conv.dilation, conv.groups), (conv.kernel,)


# The integers and the arrays of each kind of operation, in the order of native/siman.h.
_FIELDS: dict[str, Callable[[Any], tuple[Sequence[int], Sequence[Any]]]] = {
    "images": lambda x: (x.shape, ()),
    "constant": lambda x: ((), (x.value,)),
    "conv": _conv,
    "binary_conv": lambda x: ((*x.strides, *_sides(x.padding)), (x.words,)),
    "dense": lambda x: ((), (x.kernel,)),
    "binary_dense": lambda x: ((), (x.words,)),
    "max_pool": _pool,
    "sum_pool": _pool,
    "sum": lambda x: (x.axes, ()),
    "max": lambda x: (x.axes, ()),
    "affine": lambda x: ((), (x.scale, x.shift)),
    "prelu": lambda x: ((), (x.slope,)),
    "clip": lambda x: ((), (np.array([x.low, x.high], np.float32),)),
    "signs": lambda x: ((), (x.threshold,)),
    "concatenate": lambda x: ((x.axis,), ()),
    "pad": lambda x: ((*x.before, *x.after), (np.array([x.value], np.float32),)),
    "slice": lambda x: ((*x.starts, *x.stops, *x.strides), ()),
    "reshape": lambda x: (x.shape, ()),
    "transpose": lambda x: (x.axes, ()),
    "broadcast": lambda x: (x.shape, ()),
}
