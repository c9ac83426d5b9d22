"""The model file: any network, as a program; version 2 of the format.

The metadata hold the list of operations as JSON, with their settings and the names of their
weights; the weights are the file's tensors. Reading it needs NumPy, and none of the network's code.
Files of version 1 are read too, see `version1`.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from numpy.typing import DTypeLike

from siman_jax.errors import UsageError
from siman_jax.output import write_whole
from siman_jax.packed.container import (
    FORMAT,
    LAYOUT,
    as_json,
    as_stored,
    check_finite,
    check_metadata,
    read_decoded,
)
from siman_jax.packed.safetensors import decoding, encode, parse_json
from siman_jax.program.operations import (
    NAMES,
    OPERATIONS,
    WORD_BITS,
    BinaryConv,
    BinaryDense,
    Operation,
    Program,
)

VERSION = "2"
_CONTENT = {"program", "notes"}
# The limits bound the work that a wrong file can cause.
_MOST_OPERATIONS = 2**16
_MOST_NUMBERS = 2**28  # of one result, for one image
_MOST = 2**31
_MOST_SHOWN = 200  # characters of a value, in messages
_MOST_FLOAT = float(np.finfo(np.float32).max)
# Fields that every operation has, and those that stay in memory.
_COMMON = {"operation", "inputs", "path", "weights"}
_NOT_KEPT = {"line", "origin"}


@dataclass(frozen=True)
class PackedProgram:
    """The content of a model file.

    Attributes:
      program: the network, with NumPy arrays as weights.
      notes: any JSON values, as in `notes.Notes`.
    """

    program: Program
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.program.image_shape

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.program.shapes()[self.program.result][0]


def encode_program(packed: PackedProgram, float_dtype: DTypeLike = np.float32) -> bytes:
    """Encode a network as the bytes of a model file; equal networks give equal bytes.

    Args:
      packed: the network.
      float_dtype: float32, or float16 to halve the size of everything that is not binary.

    Raises:
      UsageError: a value is not finite, or too large for `float_dtype`.
    """
    tensors: dict[str, np.ndarray] = {}
    described = []
    for operation in packed.program.operations:
        names = {}
        for kind, weight in operation.weights().items():
            name = names[kind] = _new_name(f"{operation.path}/{kind}".lstrip("/"), tensors)
            tensors[name] = as_stored(name, weight, float_dtype)
        described.append(_described(operation, names))
    table = {"operations": described, "result": packed.program.result}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **LAYOUT,
        "program": as_json(table),
        "notes": as_json(packed.notes),
    }
    return encode(tensors, metadata)


def _new_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that no tensor has yet: a module may have several operations of a kind."""
    number, new = 1, name
    while new in taken:
        number += 1
        new = f"{name}:{number}"
    return new


def _described(operation: Operation, names: dict[str, str]) -> dict[str, Any]:
    settings = {f.name: _as_json_value(getattr(operation, f.name)) for f in _settings(operation)}
    return {
        "operation": NAMES[type(operation)],
        "inputs": list(operation.inputs),
        "path": operation.path,
        "weights": names,
        **settings,
    }


def _settings(kind: Operation | type[Operation]) -> list[Field]:
    """Return the fields of an operation other than those that all have, and weights."""
    return [
        f for f in fields(kind) if f.name not in _COMMON | _NOT_KEPT and "weight" not in f.metadata
    ]


def _as_json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json_value(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def decode_program(data: bytes) -> PackedProgram:
    """Decode the bytes of a model file of any version, and check all of them.

    Raises:
      UsageError: the file is damaged, or of another kind or version.
    """
    with decoding(data) as (tensors, metadata):
        if metadata.get("version") == "1":
            from siman_jax.packed.version1 import program_of  # needs JAX, which programs do not

            return PackedProgram(*program_of(tensors, metadata))
        return _program_of(tensors, metadata)


def decode_model(data: bytes, sha256: str | None = None) -> PackedProgram:
    """Decode the bytes of a model file, of any version.

    Args:
      data: content of the file.
      sha256: digest that the whole file must have, in hexadecimal digits; None for any.

    Raises:
      UsageError: they are damaged, of another kind or version, or have another digest.
    """
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise UsageError(f"its SHA-256 is {found}; expected {sha256}. Get the file again.")
    return decode_program(data)


def read_model(path: str | Path, sha256: str | None = None) -> PackedProgram:
    """Read the model file `path`, of any version; see `decode_model`.

    Raises:
      UsageError: the file is missing, damaged, of another kind or version, or has another digest.
    """
    return read_decoded(path, partial(decode_model, sha256=sha256))


def write_program(
    path: str | Path, packed: PackedProgram, float_dtype: DTypeLike = np.float32
) -> None:
    """Write the model file `path`, completely or not at all; see `encode_program`."""
    write_whole(Path(path), encode_program(packed, float_dtype))


def _program_of(tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> PackedProgram:
    """Return the program that arrays and metadata describe, after checking all of it."""
    check_metadata(metadata, VERSION, _CONTENT)
    table = parse_json(metadata["program"], "its program")
    notes = parse_json(metadata["notes"], "its notes")
    if not isinstance(notes, dict):
        raise UsageError("its notes are not a table.")
    if not isinstance(table, dict) or table.keys() != {"operations", "result"}:
        raise UsageError("its program is not a table of operations and result.")
    described, result = table["operations"], table["result"]
    if not isinstance(described, list) or not 1 <= len(described) <= _MOST_OPERATIONS:
        raise UsageError(f"its program is not a list of 1 to {_MOST_OPERATIONS} operations.")
    left = dict(tensors)
    operations = tuple(
        _operation(one, f"operation {place}", left) for place, one in enumerate(described)
    )
    if left:
        raise UsageError(f"tensor {min(left)!r} belongs to no operation.")
    program = Program(operations, _parsed(result, int, "its result"))
    try:
        shapes = program.shapes()
    except ValueError as error:
        raise UsageError(f"its operations do not fit each other: {error}.") from error
    for place, shape in enumerate(shapes):
        if math.prod(shape) > _MOST_NUMBERS:
            raise UsageError(f"operation {place} has a result of {shape}, which is too large.")
    if len(shapes[program.result]) != 1:
        raise UsageError(f"its result has the shape {shapes[program.result]}; expected (classes,).")
    _check_spare_bits(program, shapes)
    return PackedProgram(program, notes)


def _operation(described: Any, what: str, left: dict[str, np.ndarray]) -> Operation:
    """Build an operation, and take its tensors from those that are left."""
    if not isinstance(described, dict) or not isinstance(described.get("operation"), str):
        raise UsageError(f"{what} is not a table with the name of an operation.")
    name = described["operation"]
    if name not in OPERATIONS:
        raise UsageError(
            f"{what} is {_brief(name)}, which this version of siman-jax does not know."
        )
    kind, what = OPERATIONS[name], f"{what}, {name},"
    settings = _settings(kind)
    expected = _COMMON | {f.name for f in settings}
    if described.keys() != expected:
        raise UsageError(f"{what} does not have the entries {', '.join(sorted(expected))}.")
    if not isinstance(described["path"], str):
        raise UsageError(f"{what} has the path {_brief(described['path'])}; expected a string.")
    given: dict[str, Any] = {
        f.name: _parsed(described[f.name], f.type, f"{f.name} of {what}") for f in settings
    }
    inputs = _parsed(described["inputs"], tuple[int, ...], f"inputs of {what}")
    given |= _weights(kind, described["weights"], what, left)
    return kind(inputs=inputs, path=described["path"], **given)


def _weights(
    kind: type[Operation], names: Any, what: str, left: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    known = {f.name: f for f in fields(kind) if "weight" in f.metadata}
    needed = {name for name, f in known.items() if f.default is MISSING}
    if not isinstance(names, dict) or not needed <= names.keys() <= known.keys():
        raise UsageError(f"{what} does not have the weights {', '.join(sorted(known)) or 'none'}.")
    weights = {}
    for name, tensor in names.items():
        if not isinstance(tensor, str) or tensor not in left:
            raise UsageError(
                f"{what} wants the tensor {_brief(tensor)}, which is missing or taken."
            )
        array = left.pop(tensor)
        if (array.dtype == np.uint32) != (name == "words"):
            raise UsageError(f"{tensor!r} has dtype {array.dtype}, which is wrong for {name}.")
        check_finite(tensor, array)
        weights[name] = array if name == "words" else np.asarray(array, np.float32)
    return weights


def _parsed(value: Any, kind: Any, what: str) -> Any:
    """Return a JSON value as a setting of a type: int, float, or a tuple of types.

    Raises:
      UsageError: it is of another type, or too large.
    """
    if kind is int:
        if type(value) is not int or not -_MOST < value < _MOST:
            raise UsageError(f"{what} is {_brief(value)}; expected a whole number.")
        return value
    if kind is float:
        infinite = {"inf": math.inf, "-inf": -math.inf}
        if isinstance(value, str) and value in infinite:
            return infinite[value]
        if type(value) not in (int, float) or not abs(value) <= _MOST_FLOAT:
            raise UsageError(f"{what} is {_brief(value)}; expected a number that float32 holds.")
        return float(value)
    assert get_origin(kind) is tuple
    kinds = get_args(kind)
    if not isinstance(value, list):
        raise UsageError(f"{what} is {_brief(value)}; expected a list.")
    if kinds[-1] is ...:
        return tuple(_parsed(one, kinds[0], what) for one in value)
    if len(value) != len(kinds):
        raise UsageError(f"{what} is {_brief(value)}; expected a list of {len(kinds)}.")
    return tuple(_parsed(one, each, what) for one, each in zip(value, kinds, strict=True))


def _brief(value: Any) -> str:
    """Return JSON as Python shows it, cut short."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def _check_spare_bits(program: Program, shapes: tuple[tuple[int, ...], ...]) -> None:
    for place, operation in enumerate(program.operations):
        if not isinstance(operation, BinaryConv | BinaryDense):
            continue
        channels, words = shapes[operation.inputs[0]][-1], operation.words
        spare = words.shape[-2] * WORD_BITS - channels
        if spare and (words[..., -1, :] >> (WORD_BITS - spare)).any():
            raise UsageError(f"operation {place} sets bits beyond its {channels} input channels.")
