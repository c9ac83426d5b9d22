"""Version 1 of the model file: a packed network of `models`, by its name, and its variables.

Binary kernels are stored as bits in 32-bit words, everything else as float32 or float16. Values
computed from the words are not stored. The metadata describe the layout of the words; see
`container.LAYOUT`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from siman_jax.errors import UsageError
from siman_jax.models import build_model
from siman_jax.models.leaves import BINARY_KERNEL
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
from siman_jax.packed.layers import CORNER_SUMS, DERIVED, WORDS
from siman_jax.packed.network import pack_unchecked
from siman_jax.packed.safetensors import decoding, encode, parse_json
from siman_jax.program.kernels import corner_sums
from siman_jax.program.operations import WORD_BITS

VERSION = "1"

_CONTENT = {"network", "arguments", "image_shape", "notes"}
# No network is larger than this; the limits bound the work that a wrong file can cause.
_MOST = {"num_classes": 1_000_000, "width": 4096}
_MOST_PIXELS = 4096


@dataclass(frozen=True)
class PackedNetwork:
    """The content of a model file.

    Attributes:
      network: key of `models.MODELS`.
      arguments: of `build_model`: `num_classes`, `width` and the two rules.
      image_shape: height, width and channels of the images it was trained on.
      variables: packed, from `pack_variables`, with floats in float32.
      notes: any JSON values: class names, normalization, accuracy, digest of the config.
    """

    network: str
    arguments: dict[str, Any]
    image_shape: tuple[int, int, int]
    variables: dict
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """How many logits it has."""
        return self.arguments["num_classes"]

    def model(self) -> nn.Module:
        """Build the network that was packed."""
        return build_model(self.network, **self.arguments)


def encode_network(packed: PackedNetwork, float_dtype: DTypeLike = np.float32) -> bytes:
    """Encode a network as the bytes of a model file; equal networks give equal bytes.

    Args:
      packed: the network.
      float_dtype: float32, or float16 to halve the size of everything that is not binary.

    Raises:
      UsageError: a value is not finite, or too large for `float_dtype`.
    """
    tensors = {}
    for path, leaf in flatten_dict(packed.variables["params"]).items():
        name = "/".join(path)
        tensors[name] = as_stored(name, leaf, float_dtype)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **LAYOUT,
        "network": packed.network,
        "arguments": as_json(packed.arguments),
        "image_shape": as_json(list(packed.image_shape)),
        "notes": as_json(packed.notes),
    }
    return encode(tensors, metadata)


def decode_network(data: bytes) -> PackedNetwork:
    """Decode the bytes of a model file, and check all of them.

    Raises:
      UsageError: the file is damaged, or of another kind or version.
    """
    with decoding(data) as (tensors, metadata):
        return network_of(tensors, metadata)


def network_of(tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> PackedNetwork:
    """Return the network that arrays and metadata describe, after checking all of it.

    Raises:
      UsageError: something is missing or does not fit.
    """
    check_metadata(metadata, VERSION, _CONTENT)
    values = {
        name: parse_json(metadata[name], f"its {name}")
        for name in ("arguments", "image_shape", "notes")
    }
    arguments, image_shape = _check_arguments(**values)
    packed = PackedNetwork(
        metadata["network"], arguments, image_shape, variables={}, notes=values["notes"]
    )
    shapes, shape_of = _expected(packed.network, tuple(sorted(arguments.items())), image_shape)
    _check_tensors(tensors, shape_of)
    return PackedNetwork(
        packed.network, arguments, image_shape, _variables(tensors, shapes), packed.notes
    )


def write_network(
    path: str | Path, packed: PackedNetwork, float_dtype: DTypeLike = np.float32
) -> None:
    """Write the model file `path`, completely or not at all; see `encode_network`."""
    write_whole(Path(path), encode_network(packed, float_dtype))


def read_network(path: str | Path) -> PackedNetwork:
    """Read the model file `path` of version 1.

    Raises:
      UsageError: the file is missing, damaged, or of another kind or version.
    """
    return read_decoded(path, decode_network)


def _check_arguments(
    arguments: Any, image_shape: Any, notes: Any
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    rules = {"weight_rule", "activation_rule"}
    if not isinstance(arguments, dict) or arguments.keys() != _MOST.keys() | rules:
        raise UsageError(f"its arguments are not {', '.join(sorted(_MOST.keys() | rules))}.")
    for name, most in _MOST.items():
        _check_range(name, arguments[name], most)
    for name in rules:
        if not isinstance(arguments[name], str):
            raise UsageError(f"its {name} is {arguments[name]!r}; expected a string.")
    if not isinstance(image_shape, list) or len(image_shape) != 3:
        raise UsageError(
            f"its image_shape is {image_shape!r}; expected height, width and channels."
        )
    for value in image_shape:
        _check_range("image_shape", value, _MOST_PIXELS)
    if not isinstance(notes, dict):
        raise UsageError("its notes are not a table.")
    height, width, channels = image_shape
    return arguments, (height, width, channels)


def _check_range(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"its {name} holds {value!r}; expected a whole number from 1 to {most}.")


@lru_cache(maxsize=16)  # tracing takes most of the time to read a small file
def _expected(
    network: str, arguments: tuple[tuple[str, Any], ...], image_shape: tuple[int, int, int]
) -> tuple[dict[tuple[str, ...], Any], dict[str, Any]]:
    """Return shapes of the network's own parameters by path, and of the packed ones by name."""
    model = build_model(network, **dict(arguments))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        init = partial(model.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        leaves = jax.eval_shape(partial(pack_unchecked, model), variables)
    except UsageError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:  # images too small to be halved
        raise UsageError(f"{network} does not take images of shape {image_shape}.") from error
    params = {"/".join(path): leaf for path, leaf in flatten_dict(leaves["params"]).items()}
    return flatten_dict(variables["params"]), params


def _check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    for name in sorted(expected.keys() ^ tensors.keys()):
        state = "is missing" if name in expected else "is not of this network"
        raise UsageError(f"tensor {name!r} {state}.")
    for name, array in tensors.items():
        if array.shape != expected[name].shape:
            raise UsageError(f"{name!r} has shape {array.shape}; expected {expected[name].shape}.")
        if (array.dtype == np.uint32) != (expected[name].dtype == np.uint32):
            raise UsageError(f"{name!r} has dtype {array.dtype}; expected {expected[name].dtype}.")
        check_finite(name, array)


def _variables(tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple[str, ...], Any]) -> dict:
    """Build packed variables from the file's tensors, with the sums computed from the words."""
    leaves = {}
    for name, array in tensors.items():
        *module, leaf = name.split("/")
        if leaf != WORDS:
            leaves["params", *module, leaf] = jnp.asarray(array, jnp.float32)
            continue
        channels = shapes[*module, BINARY_KERNEL].shape[2]
        spare = array.shape[2] * WORD_BITS - channels
        if spare and (array[:, :, -1] >> (WORD_BITS - spare)).any():
            raise UsageError(f"{name!r} sets bits beyond its {channels} input channels.")
        words = jnp.asarray(array)
        leaves["params", *module, leaf] = words
        leaves[DERIVED, *module, CORNER_SUMS] = corner_sums(words, channels)
    return unflatten_dict(leaves)
