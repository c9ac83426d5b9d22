"""Read what a compiled program does from its text: loops, launches, and the bytes that it moves.

The text is optimised HLO, as `jax.stages.Compiled.as_text` gives it. It lists instructions in the
order in which they run, one after the other; what the compiler has fused is one instruction.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

# Bits of an element; what is not here takes no memory (tokens).
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16}
_BITS |= {"u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}
# Instructions that name or group arrays; nothing runs for them.
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
      result: type of what it gives, such as `f32[8,128]{1,0}`, or a tuple of such types.
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
        """Where in the network it comes from, as JAX names it; of a fusion, its last part."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].partition("/")[2] if found else self.operation


@dataclass(frozen=True)
class Program:
    """The instructions of each computation of a program, by name.

    Attributes:
      computations: by name; fused ones are among them, but do not run by themselves.
      entry: name of the one that runs.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @cached_property
    def executed(self) -> list[tuple[Instruction, int]]:
        """What runs in one call, in order, each with how often: a loop's body as often as it runs.

        A loop whose trips the compiler does not tell counts once, of a branch all sides.
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
        """How many instructions of this kind the program has, in all its computations."""
        return sum(
            instruction.operation == operation
            for computation in self.computations.values()
            for instruction in computation
        )

    @property
    def loop_trips(self) -> int:
        """Trips of all loops together, of those whose number the compiler tells."""
        loops = (i for body in self.computations.values() for i in body if i.operation == "while")
        return sum(int(found[1]) for i in loops if (found := _TRIPS.search(i.attributes)))

    @property
    def launches(self) -> int:
        """How many times the device is told to do something, in one call."""
        return sum(
            times
            for instruction, times in self.executed
            if instruction.operation not in _FREE and not instruction.operation.endswith("-done")
        )

    def bytes_moved(self) -> dict[Instruction, int]:
        """Bytes that each instruction reads from the device's memory and writes to it, in one call.

        From the sizes of its operands and its result, padding of tiles included: an operand counts
        whole and once, and what lies in on-chip memory does not count.
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
            # The two halves of an asynchronous operation: one reads, the other has written.
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
    """Bytes in the device's memory of an array's type, or of a tuple's.

    A tile `T(8,128)` pads the two innermost dimensions to multiples of its own; `S(1)` is on-chip
    memory, of which 0 bytes are in the device's.

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
    """Split behind the parenthesis that closes the first one."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: at + 1], text[at + 1 :]
    return text, ""
