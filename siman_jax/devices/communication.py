"""What devices tell each other in a step, counted from the compiled program."""

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
# An instruction: its name, the type of its result, its operation. On GPUs and TPUs a collective is
# a pair, started and waited for; its start is what counts.
_INSTRUCTION = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """Operations of one kind in a program.

    Attributes:
      operations: how many.
      bytes: size of their results, added up.
    """

    operations: int
    bytes: int


def communication(program: str) -> dict[str, Traffic]:
    """Count the collective operations of a compiled program.

    A loop's body counts once.

    Args:
      program: optimised HLO, as `jax.stages.Compiled.as_text` gives it.

    Returns:
      Traffic of each kind of operation that occurs.

    >>> communication("%sum = (f32[3,2]{1,0}, f32[]) all-reduce(%a, %b), to_apply=%add")
    {'all-reduce': Traffic(operations=1, bytes=28)}
    """
    traffic: dict[str, Traffic] = {}
    for result, kind, start in _INSTRUCTION.findall(program):
        arrays = [_size(*found) for found in _ARRAY.findall(result)]
        # The start of an asynchronous pair, other than an all-reduce's, returns its operands
        # first, then as many results.
        size = sum(arrays if not start or kind == "all-reduce" else arrays[len(arrays) // 2 :])
        before = traffic.get(kind, Traffic(0, 0))
        traffic[kind] = Traffic(before.operations + 1, before.bytes + size)
    return traffic


def describe(traffic: Mapping[str, Traffic], devices: int) -> str:
    """One line on the traffic between `devices` in a step."""
    if not traffic:
        return f"the {devices} devices exchange nothing"
    parts = [f"{t.operations} {kind} ({t.bytes / 1e6:.2f} MB)" for kind, t in traffic.items()]
    return f"the {devices} devices exchange in each step: {', '.join(parts)}"


def _size(dtype: str, dimensions: str) -> int:
    size = _BYTES.get(dtype, 0)
    for dimension in dimensions.split(","):
        size *= int(dimension or 1)
    return size
