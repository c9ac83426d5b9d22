"""Model files of version 2, which hold a program, damaged as those of version 1 are."""

import copy
import json
from functools import cache
from typing import Any

import numpy as np

from siman_jax.packed.notes import Notes
from siman_jax.packed.program_file import PackedProgram, encode_program
from siman_jax.program.operations import Program, Reshape
from tests.program_example import every_operation
from tests.random_programs import draw_program

from .case import choose
from .damage import damaged_json
from .model_files import ModelFiles, without_digest


class ProgramFiles(ModelFiles):
    entries = ("program", "program", "notes")
    digests_made_right = 0.5

    @staticmethod
    def samples() -> tuple[bytes, ...]:
        """Return the files that are damaged."""
        return _samples()

    def damaged_entry(self, rng: np.random.Generator, name: str, value: Any) -> str:
        """Return the JSON of one of `entries`, damaged."""
        how = rng.random() if name == "program" else 1
        if how < 0.1:
            return json.dumps(_longer(rng, value))
        if how < 0.5:
            return json.dumps(_with_another_setting(rng, value))
        return damaged_json(rng, value)


# Numbers that settings may not have, and the last that some may have.
_NUMBERS = [
    *(
        -1,
        0,
        1,
        2,
        3,
        5,
        8,
        9,
        16,
        17,
        64,
        255,
        2**12,
        2**16,
        2**20,
        2**20 + 1,
        2**24,
        2**28,
        2**30,
    ),
    *(2**31 - 1, 2**31, 2**63, 10**39, 10**400, 0.5, 3e38, 4e38, 1e300, "inf", "-inf", "nan"),
]
_NOT_SETTINGS = {"operation", "path", "weights"}


@cache
def _samples() -> tuple[bytes, ...]:
    """Small files: with every operation; in float16; without a digest; and drawn programs."""
    every = _with_notes(every_operation())
    whole = encode_program(every)
    drawn = [encode_program(_with_notes(_flat(draw_program(seed)))) for seed in range(8)]
    return (whole, encode_program(every, np.float16), without_digest(whole), *drawn)


def _flat(program: Program) -> Program:
    """Return the program with all axes of its result in one, as logits have."""
    size = int(np.prod(program.shapes()[program.result]))
    last = Reshape(inputs=(program.result,), shape=(size,))
    return Program((*program.operations, last), len(program.operations))


def _with_notes(program: Program) -> PackedProgram:
    channels = program.image_shape[2]
    classes = program.shapes()[program.result][0]
    names = tuple(f"é{index}" for index in range(classes))
    notes = Notes((0.1,) * channels, (0.4,) * channels, class_names=names)
    return PackedProgram(program, notes.as_json())


def _with_another_setting(rng: np.random.Generator, table: dict[str, Any]) -> dict[str, Any]:
    """Put another number into the settings of an operation, or into its operands."""
    operation = choose(rng, table["operations"])
    holder, key = operation, choose(rng, sorted(operation.keys() - _NOT_SETTINGS))
    while isinstance(holder[key], list) and holder[key]:
        holder = holder[key]
        key = int(rng.integers(len(holder)))
    holder[key] = choose(rng, _NUMBERS)
    return table


def _longer(rng: np.random.Generator, table: dict[str, Any]) -> dict[str, Any]:
    """Append one of the operations many times, each on the result of the one before."""
    operations = table["operations"]
    repeated = operations[int(rng.integers(len(operations)))]
    last = table["result"]
    for _ in range(int(2 ** rng.uniform(0, 13))):
        operations.append({**copy.deepcopy(repeated), "inputs": [last], "path": ""})
        last = len(operations) - 1
    return {**table, "result": last}
