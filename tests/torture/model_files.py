"""Model files of version 1 with damaged bytes, and with headers that say odd things.

Some of them get their digest made right again, so that what lies behind it is tried too.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from siman_jax.errors import UsageError
from siman_jax.packed.model import load_model
from siman_jax.packed.program_file import PackedProgram, decode_program, encode_program
from siman_jax.packed.safetensors import decode
from siman_jax.program.operations import NAMES, Program

from .case import Finding, choose
from .damage import damaged_bytes, damaged_json, flip

_FOLDER = Path(__file__).parents[1] / "version1"
_NO_DIGEST = b"0" * 64
_ENTRY = b'"sha256":"'
_MOST_NUMBERS = 2**20  # of all results together, of a program that is run


class ModelFiles:
    seconds = 300
    lifetime = 20_000
    entries: tuple[str, ...] = ("arguments", "image_shape", "notes")  # metadata that are JSON
    digests_made_right = 0.2

    def __init__(self, scratch: Path) -> None:
        del scratch
        self.samples()

    @staticmethod
    def samples() -> tuple[bytes, ...]:
        """Return the files that are damaged."""
        return samples()

    def damaged_entry(self, rng: np.random.Generator, name: str, value: Any) -> str:
        """Return the JSON of one of `entries`, damaged."""
        del name
        return damaged_json(rng, value)

    def make(self, rng: np.random.Generator) -> bytes:
        right = rng.random() < self.digests_made_right
        index = int(rng.integers(len(self.samples())))
        data = self.samples()[index]
        how = rng.random()
        if how < 0.35:
            data = _with_header(data, partial(self._damaged_header, rng))
        elif how < 0.6:
            data = _with_flipped_tensors(rng, data)
        else:
            data = damaged_bytes(rng, data)
        if right:
            data = with_right_digest(data)
        return bytes([index, right]) + data

    def check(self, case: bytes) -> Mapping[str, int]:
        index, right, data = case[0], bool(case[1]), case[2:]
        counts = {"digest made right": 1} if right else {}
        try:
            model = load_model(data)
        except UsageError as error:
            _check_message(error)
            return counts | {"refused": 1}
        network = model.network
        if not right and _digest_place(data):
            if _content(network) != _content(decode_program(self.samples()[index])):
                raise Finding("other contents are read from a file with a digest, without a word")
            return counts | {"read as it was": 1}
        if _content(decode_program(encode_program(network))) != _content(network):
            raise Finding("what is written again is not what was read")
        if _is_small(network.program):
            prediction = model.predict(np.zeros((1, *network.image_shape), np.uint8))
            assert len(prediction.names) == 1
        return counts | {"read, with or without a digest that is right": 1}

    def _damaged_header(self, rng: np.random.Generator, header: dict[str, Any]) -> str:
        """Damage the header, its metadata alone, or what is JSON within these."""
        metadata = header["__metadata__"]
        what = rng.random()
        if what < 0.4:
            return damaged_json(rng, header)
        if what < 0.6:
            text = json.dumps({**header, "__metadata__": "HERE"}, separators=(",", ":"))
            return text.replace('"HERE"', damaged_json(rng, metadata))
        name = choose(rng, self.entries)
        metadata[name] = self.damaged_entry(rng, name, json.loads(metadata[name]))
        return json.dumps(header, separators=(",", ":"))


def _check_message(error: Exception) -> None:
    if not str(error) or len(str(error)) > 20_000:
        raise Finding(f"a message of {len(str(error))} characters")


@cache
def samples() -> tuple[bytes, ...]:
    """Files of several networks, small; the last without a digest."""
    names = ("vgg_small", "resnet20", "imagenet_resnet18", "cifar_resnet18")  # the first: float16
    files = [(_FOLDER / f"{name}.safetensors").read_bytes() for name in names]
    return (*files, without_digest(files[0]))


def _content(network: PackedProgram) -> Any:
    """All of a network, to compare bit for bit."""
    return _content_of_program(network.program), json.dumps(network.notes, sort_keys=True)


def _content_of_program(program: Program) -> Any:
    operations = []
    for operation in program.operations:
        weights = {name: _content_of_array(x) for name, x in operation.weights().items()}
        settings = {**vars(operation), **dict.fromkeys(weights)}
        operations.append((NAMES[type(operation)], repr(settings), weights))
    return operations, program.result


def _content_of_array(array: Any) -> Any:
    return str(array.dtype), array.shape, np.asarray(array).tobytes()


def _is_small(program: Program) -> bool:
    """Whether it runs fast."""
    return sum(math.prod(shape) for shape in program.shapes()) <= _MOST_NUMBERS


def _with_header(data: bytes, change: Any) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    text = change(json.loads(data[8:end])).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _with_flipped_tensors(rng: np.random.Generator, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    tensors = data[end:]
    for _ in range(int(rng.integers(1, 4))):
        tensors = flip(tensors, float(rng.random()), int(rng.integers(8)))
    return data[:end] + tensors


def _digest_place(data: bytes) -> int:
    """Where the digits of a digest begin, 0 where there are none."""
    return data.find(_ENTRY) + len(_ENTRY) if _ENTRY in data else 0


def with_right_digest(data: bytes) -> bytes:
    """The file with the digest of what it holds now, where it has one."""
    place = _digest_place(data)
    if not place:
        return data
    blank = data[:place] + _NO_DIGEST + data[place + 64 :]
    return data[:place] + hashlib.sha256(blank).hexdigest().encode() + data[place + 64 :]


def without_digest(data: bytes) -> bytes:
    def drop(header: dict[str, Any]) -> str:
        header["__metadata__"].pop("sha256")
        return json.dumps(header, separators=(",", ":"))

    without = _with_header(data, drop)
    assert "sha256" not in decode(without)[1]
    return without
