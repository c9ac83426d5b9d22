"""Simplifying a program: functions from programs to programs that compute the same.

They look at the operations and never at the values of weights, so they may be traced. `simplify`
applies all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from siman_jax.program import operations as op
from siman_jax.program.bits import pack
from siman_jax.program.operations import WORD_BITS, Operation, Program

Pass = Callable[[Program], Program]


def simplify(program: Program) -> Program:
    """Apply all passes, each to the result of the one before."""
    for simplification in (
        without_broadcasts,
        without_shifts_of_softmax,
        with_thresholds,
        with_scales_after_pools,
        with_merged_affines,
        without_repetition,
        without_unused,
    ):
        program = simplification(program)
    return program


def without_unused(program: Program) -> Program:
    """Leave out what the result does not depend on."""
    used = {0, program.result}
    for place in reversed(range(len(program.operations))):
        if place in used:
            used.update(program.operations[place].inputs)
    kept = sorted(used)
    new = {place: index for index, place in enumerate(kept)}
    operations = tuple(
        _on(program.operations[place], [new[source] for source in program.operations[place].inputs])
        for place in kept
    )
    return Program(operations, new[program.result])


def without_repetition(program: Program) -> Program:
    """Compute once what several operations without weights compute from the same operands.

    Two binary convolutions of the same activations then share their signs.
    """
    first: dict[Any, int] = {}

    def replacement(operations: list[Operation], place: int) -> int:
        operation = operations[place]
        weights = operation.weights()
        if any(not isinstance(array, np.ndarray) for array in weights.values()):
            return place
        settings = tuple(
            getattr(operation, f.name)
            for f in fields(operation)
            if f.name not in ("path", "line", "origin", *weights)
        )
        arrays = tuple(array.tobytes() for array in weights.values())
        return first.setdefault((type(operation), settings, arrays), place)

    return _rewritten(program, replacement)


def without_broadcasts(program: Program) -> Program:
    """Let `Add` and `Multiply` repeat their operands themselves."""

    def changed(operation: Operation, operations: Sequence[Operation]) -> Operation:
        if not isinstance(operation, op.Add | op.Multiply):
            return operation
        shapes = program.shapes()
        sources = list(operation.inputs)
        for which, source in enumerate(sources):
            other = sources[1 - which]
            before = operations[source]
            # The other operand, or what it repeats, has the sizes that this one would lack.
            if isinstance(before, op.Broadcast) and shapes[other] == before.shape:
                sources[which] = before.inputs[0]
                break
        return _on(operation, sources)

    return _mapped(program, changed)


def without_shifts_of_softmax(program: Program) -> Program:
    """Leave out the subtraction of the maximum before a softmax, which `Softmax` does by itself."""
    shapes = program.shapes()

    def changed(operation: Operation, operations: Sequence[Operation]) -> Operation:
        if not isinstance(operation, op.Softmax):
            return operation
        before = operations[operation.inputs[0]]
        if not isinstance(before, op.Add):
            return operation
        x, shift = before.inputs
        same_shift = shapes[shift][-1] == 1 and shapes[x] == shapes[operation.inputs[0]]
        return _on(operation, [x]) if same_shift else operation

    return _mapped(program, changed)


def with_thresholds(program: Program) -> Program:
    """Compare with a threshold instead of shifting before signs: x + shift >= t as x >= t - shift.

    Only where t is 0, so that nothing is rounded. The shift of a batch norm stays with its scale.
    """

    def changed(operation: Operation, operations: Sequence[Operation]) -> Operation:
        if not isinstance(operation, op.Signs) or not _is_zero(operation.threshold):
            return operation
        before = operations[operation.inputs[0]]
        if not isinstance(before, op.Affine) or before.scale is not None or before.shift is None:
            return operation
        norm = operations[before.inputs[0]]
        if isinstance(norm, op.Affine) and norm.scale is not None:
            return operation
        return replace(operation, inputs=before.inputs, threshold=-before.shift)

    return _mapped(program, changed)


def with_scales_after_pools(program: Program) -> Program:
    """Move the scales of binary convolutions behind the max pools that follow them.

    The pool is then of whole numbers, and the scales meet the batch norm. Where a scale is
    negative, the filter's bits are inverted first: a maximum commutes only with positive scales.
    """
    operations = list(program.operations)
    users, shapes = _user_counts(program), program.shapes()
    for place, pool in enumerate(operations):
        if not isinstance(pool, op.MaxPool):
            continue
        scaled = pool.inputs[0]
        affine = operations[scaled]
        if not isinstance(affine, op.Affine) or affine.scale is None or users[scaled] != 1:
            continue
        product = affine.inputs[0]
        conv = operations[product]
        if not isinstance(conv, op.BinaryConv) or users[product] != 1:
            continue
        channels = shapes[conv.inputs[0]][-1]
        negative = affine.scale < 0
        operations[product] = replace(
            conv, words=_inverted(conv.words, negative, channels), origin=None
        )
        # The pool takes the place of the scales, which take the pool's.
        operations[scaled] = replace(pool, inputs=(product,), origin=None)
        operations[place] = replace(
            affine, inputs=(scaled,), scale=jnp.abs(affine.scale), origin=pool.origin
        )
    return Program(tuple(operations), program.result)


def with_merged_affines(program: Program) -> Program:
    """Join scales and shifts that follow each other: (x s + b) t + c = x (s t) + (b t + c).

    The division of a mean is not joined to anything, so that it rounds as in evaluation.
    """
    users = _user_counts(program)

    def changed(operation: Operation, operations: Sequence[Operation]) -> Operation:
        if not isinstance(operation, op.Affine):
            return operation
        source = operation.inputs[0]
        before = operations[source]
        if not isinstance(before, op.Affine) or users[source] != 1:
            return operation
        if isinstance(operations[before.inputs[0]], op.Sum | op.SumPool):
            return operation
        scale, shift = before.scale, before.shift
        if operation.scale is not None:
            scale = operation.scale if scale is None else scale * operation.scale
            shift = None if shift is None else shift * operation.scale
        if operation.shift is not None:
            shift = operation.shift if shift is None else shift + operation.shift
        return replace(operation, inputs=before.inputs, scale=scale, shift=shift)

    return _mapped(program, changed)


def _mapped(
    program: Program, change: Callable[[Operation, Sequence[Operation]], Operation]
) -> Program:
    """Change operations in order; `change` takes one, and those before it as already changed."""
    operations: list[Operation] = []
    for operation in program.operations:
        operations.append(change(operation, operations))
    return Program(tuple(operations), program.result)


def _rewritten(program: Program, replacement: Callable[[list[Operation], int], int]) -> Program:
    """Let users of an operation take the result of its replacement instead."""
    operations: list[Operation] = []
    places: list[int] = []
    for place, operation in enumerate(program.operations):
        operations.append(_on(operation, [places[source] for source in operation.inputs]))
        places.append(replacement(operations, place))
    return Program(tuple(operations), places[program.result])


def _user_counts(program: Program) -> list[int]:
    """Return how many operations take each result; the program's own result counts once more."""
    counts = [len(users) for users in program.users()]
    counts[program.result] += 1
    return counts


def _on(operation: Operation, inputs: Sequence[int]) -> Operation:
    return replace(operation, inputs=tuple(inputs))


def _is_zero(threshold: Any) -> bool:
    return isinstance(threshold, np.ndarray) and not threshold.any()


def _inverted(words: Any, filters: Any, channels: int) -> Any:
    """Invert the bits of some filters: words `[..., words, out]`, filters bool `[out]`."""
    used = jnp.arange(words.shape[-2] * WORD_BITS) < channels
    mask = pack(used.reshape(words.shape[-2], WORD_BITS))
    mask = mask.reshape((1,) * (words.ndim - 2) + mask.shape)  # [..., words, 1]
    filters = filters.reshape((1,) * (words.ndim - 1) + filters.shape)
    return jnp.where(filters, words ^ mask, words)
