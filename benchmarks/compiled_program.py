"""Reads loops, launches and bytes moved from the text of a compiled program.

The text is optimized HLO, from `jax.stages.Compiled.as_text`. It lists instructions in the order in
which they run, one after the other; a fusion is one instruction.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

# Bits per element; other types, such as tokens, take no memory.
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16}
_BITS |= {"u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}
# Instructions that only name or group arrays, and run nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "while", "call", "conditional"}
_NAME = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_BODIES = re.compile(r"(?:body|to_apply|calls)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
      name: unique in its computation.
      result: type of the result, such as `f32[8,128]{1,0}`, or a tuple of such types.
      operation: such as `fusion`.
      operands: names of other instructions of the same computation.
      attributes: the rest of its line.
    """

    name: str
    result: str
    operation: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def source(self) -> str:
        """JAX's name for its place in the network; for a fusion, that of its last part."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].partition("/")[2] if found else self.operation


@dataclass(frozen=True)
class Program:
    """The instructions of each computation of a program, by name.

    Attributes:
      computations: by name, including fused ones, which do not run by themselves.
      entry: name of the computation that runs.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @cached_property
    def executed(self) -> list[tuple[Instruction, int]]:
        """The instructions that run in one call, in order, each with how often it runs.

        A loop with an unknown number of trips counts once; of a branch, all sides count.
        """
        return list(self._run(self.entry, 1))

    def _run(self, computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in self.computations[computation]:
            yield instruction, times
            if instruction.operation not in ("while", "call", "conditional"):
                continue
            trips = _TRIPS.search(instruction.attributes)
            for one, several in _BODIES.findall(instruction.attributes):
                for body in (one or several.replace("%", "").replace(" ", "")).split(","):
                    yield from self._run(body, times * int(trips[1] if trips else 1))

    def count(self, operation: str) -> int:
        """Count the instructions of one kind in all computations of the program."""
        return sum(
            instruction.operation == operation
            for computation in self.computations.values()
            for instruction in computation
        )

    @property
    def loop_trips(self) -> int:
        """Total trips of all loops for which the number is known."""
        loops = (i for body in self.computations.values() for i in body if i.operation == "while")
        return sum(int(found[1]) for i in loops if (found := _TRIPS.search(i.attributes)))

    @property
    def launches(self) -> int:
        """Number of operations that are launched on the device in one call."""
        return sum(
            times
            for instruction, times in self.executed
            if instruction.operation not in _FREE and not instruction.operation.endswith("-done")
        )

    def bytes_moved(self) -> dict[Instruction, int]:
        """Compute the bytes that each instruction reads and writes in device memory per call.

        They follow from the sizes of operands and results, with the padding of tiles. An operand
        counts completely and once; on-chip memory does not count.
        """
        results = {
            instruction.name: instruction.result
            for computation in self.computations.values()
            for instruction in computation
        }
        moved: Counter[Instruction] = Counter()
        for instruction, times in self.executed:
            if instruction.operation in _FREE:
                continue
            # Of the two halves of an asynchronous operation, the first reads and the second writes.
            reads = not instruction.operation.endswith("-done")
            writes = not instruction.operation.endswith("-start")
            names = set(instruction.operands) if reads else set()
            size = sum(size_of(results.get(name, "")) for name in names)
            moved[instruction] += times * (size + (size_of(instruction.result) if writes else 0))
        return dict(moved)


def read_program(text: str) -> Program:
    """Read the text of a compiled program.

    >>> program = read_program('''
    ... ENTRY %main (a: f32[4,2]) -> f32[4,2] {
    ...   %a = f32[4,2]{1,0} parameter(0)
    ...   ROOT %exp.1 = f32[4,2]{1,0} exponential(%a), metadata={op_name="jit(f)/exp"}
    ... }
    ... ''')
    >>> [(i.name, i.source, size) for i, size in program.bytes_moved().items()]
    [('exp.1', 'exp', 64)]
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    name, entry, body = "", "", list[Instruction]()
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            name, body = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = tuple(body)
        elif found := _NAME.match(line):
            body.append(_instruction(found[1], line[found.end() :]))
    return Program(computations, entry)


def size_of(types: str) -> int:
    """Compute the bytes in device memory of an array of a type, or of a tuple.

    A tile `T(8,128)` pads the two innermost dimensions to multiples of its sizes. `S(1)` is on-chip
    memory, which counts 0 bytes.

    >>> size_of("f32[3,100]{1,0:T(8,128)}"), size_of("(bf16[2,2]{1,0}, f32[4]{0:S(1)})")
    (4096, 8)
    """
    total = 0
    for dtype, dimensions, order, layout in _ARRAY.findall(types):
        if re.search(r"S\([1-9]", layout):
            continue
        shape = [int(size) for size in dimensions.split(",") if size]
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if tile and order:
            innermost = [int(axis) for axis in order.split(",")]
            for axis, size in zip(innermost, reversed(tile[1].split(",")), strict=False):
                shape[axis] = -(-shape[axis] // int(size)) * int(size)
        total += prod(shape) * _BITS.get(dtype, 0) // 8
    return total


def _instruction(name: str, rest: str) -> Instruction:
    result, rest = _balanced(rest) if rest.startswith("(") else _until(rest, " ")
    operation, rest = _until(rest.lstrip(), "(")
    operands, attributes = _balanced("(" + rest)
    names = tuple(re.findall(r"%([\w.-]+)", operands)) if operation != "constant" else ()
    return Instruction(name, result, operation, names, attributes)


def _until(text: str, mark: str) -> tuple[str, str]:
    before, _, after = text.partition(mark)
    return before, after


def _balanced(text: str) -> tuple[str, str]:
    """Split the text after the parenthesis that closes the first one."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: at + 1], text[at + 1 :]
    return text, ""
