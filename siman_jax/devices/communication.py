"""Count the communication between devices in a compiled program."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
# An instruction: name, type of the result, operation. On GPUs and TPUs a collective is a pair, a
# start and a wait; the start is counted.
_INSTRUCTION = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """Collective operations of one kind.

    Attributes:
      operations: their number.
      bytes: total size of their results.
    """

    operations: int
    bytes: int


def communication(program: str) -> dict[str, Traffic]:
    """Count the collective operations of a compiled program; the body of a loop counts once.

    Args:
      program: optimized HLO, as returned by `jax.stages.Compiled.as_text`.

    Returns:
      The traffic by kind of operation; only kinds that occur.

    >>> communication("%sum = (f32[3,2]{1,0}, f32[]) all-reduce(%a, %b), to_apply=%add")
    {'all-reduce': Traffic(operations=1, bytes=28)}
    """
    traffic: dict[str, Traffic] = {}
    for result, kind, start in _INSTRUCTION.findall(program):
        arrays = [_size(*found) for found in _ARRAY.findall(result)]
        # The start of an asynchronous pair returns its operands first, then as many results;
        # that of an all-reduce returns results only.
        size = sum(arrays if not start or kind == "all-reduce" else arrays[len(arrays) // 2 :])
        before = traffic.get(kind, Traffic(0, 0))
        traffic[kind] = Traffic(before.operations + 1, before.bytes + size)
    return traffic


def describe(traffic: Mapping[str, Traffic], devices: int) -> str:
    """Describe the traffic between `devices` devices in a step, in one line."""
    if not traffic:
        return f"the {devices} devices exchange nothing"
    parts = [f"{t.operations} {kind} ({t.bytes / 1e6:.2f} MB)" for kind, t in traffic.items()]
    return f"the {devices} devices exchange in each step: {', '.join(parts)}"


def _size(dtype: str, dimensions: str) -> int:
    size = _BYTES.get(dtype, 0)
    for dimension in dimensions.split(","):
        size *= int(dimension or 1)
    return size
