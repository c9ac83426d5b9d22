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

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.errors import UsageError
from siman_jax.models import build_model
from siman_jax.models.leaves import BINARY_KERNEL
from siman_jax.packed.file import PackedNetwork, encode_network
from siman_jax.packed.layers import WORDS
from siman_jax.packed.model import load_model
from siman_jax.packed.network import pack_unchecked
from siman_jax.packed.notes import Notes
from siman_jax.packed.program_file import PackedProgram, decode_model, encode_program
from siman_jax.packed.safetensors import decode
from siman_jax.program.operations import NAMES, Program

from .case import Finding, choose
from .damage import damaged_bytes, damaged_json, flip

_NO_DIGEST = b"0" * 64
_ENTRY = b'"sha256":"'
_MOST_NUMBERS = 2**20  # of all results together, of a program that is run


class ModelFiles:
    seconds = 300
    lifetime = 20_000
    entries: tuple[str, ...] = ("arguments", "image_shape", "notes")  # metadata that are JSON
    digests_made_right = 0.2
    run_one_in = 300  # JAX compiles a network before it runs

    def __init__(self, scratch: Path) -> None:
        del scratch
        self._tried = 0
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
            if _content(network) != _content(decode_model(self.samples()[index])):
                raise Finding("other contents are read from a file with a digest, without a word")
            return counts | {"read as it was": 1}
        if _content(decode_model(_encoded(network))) != _content(network):
            raise Finding("what is written again is not what was read")
        self._tried += 1
        if self._tried % self.run_one_in == 0 and _is_small(network):
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
    """Files of several networks, small; one in float16, one without a digest."""
    files = [
        encode_network(_network("cifar.vgg_small_1w1a", 4, 8)),
        encode_network(_network("cifar.resnet20_1w1a", 4, 8)),
        encode_network(_network("imagenet.resnet18_1w1a", 3, 32)),
        encode_network(_network("cifar.vgg_small_1w1a", 33, 8), np.float16),
    ]
    return (*files, without_digest(files[0]))


def _network(name: str, width: int, size: int) -> PackedNetwork:
    arguments = {
        "num_classes": 3,
        "width": width,
        "weight_rule": "half_half",
        "activation_rule": "siman",
    }
    model = build_model(name, **arguments)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    packed = jax.eval_shape(partial(pack_unchecked, model), shapes)
    kernels = flatten_dict(shapes["params"])
    rng, leaves = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(packed["params"]).items():
        if path[-1] == WORDS:
            channels = kernels[*path[:-1], BINARY_KERNEL].shape[2]
            words = rng.integers(0, 2**32, leaf.shape, np.uint32)
            words[:, :, -1] &= np.uint32(2 ** ((channels - 1) % 32 + 1) - 1)
            leaves[path] = words
        else:
            leaves[path] = np.float32(rng.random(leaf.shape))
    notes = Notes((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), class_names=("a", "b", "é"))
    variables = {"params": unflatten_dict(leaves)}
    return PackedNetwork(name, arguments, (size, size, 3), variables, notes.as_json())


def _content(network: PackedNetwork | PackedProgram) -> Any:
    """All of a network, to compare bit for bit."""
    if isinstance(network, PackedProgram):
        return _content_of_program(network.program), json.dumps(network.notes, sort_keys=True)
    leaves = {
        "/".join(path): _content_of_array(leaf)
        for path, leaf in flatten_dict(network.variables).items()
    }
    said = [network.network, network.arguments, network.image_shape, network.notes]
    return leaves, json.dumps(said, sort_keys=True)


def _content_of_program(program: Program) -> Any:
    operations = []
    for operation in program.operations:
        weights = {name: _content_of_array(x) for name, x in operation.weights().items()}
        settings = {**vars(operation), **dict.fromkeys(weights)}
        operations.append((NAMES[type(operation)], repr(settings), weights))
    return operations, program.result


def _content_of_array(array: Any) -> Any:
    return str(array.dtype), array.shape, np.asarray(array).tobytes()


def _encoded(network: PackedNetwork | PackedProgram) -> bytes:
    if isinstance(network, PackedProgram):
        return encode_program(network)
    return encode_network(network)


def _is_small(network: PackedNetwork | PackedProgram) -> bool:
    """Whether it runs fast."""
    if isinstance(network, PackedProgram):
        return sum(math.prod(shape) for shape in network.program.shapes()) <= _MOST_NUMBERS
    return math.prod(network.image_shape) < 1 << 16


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
