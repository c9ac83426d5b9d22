"""Version 1 of the model file: one of the networks of `models`, by its name, and its variables.

Such files were written before networks were stored as programs. The variables hold kernels as bits,
and the scales of a convolution and the batch norm after it as one gain and one offset. The network
is built from layers that take these, and traced to a program.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from siman_jax.errors import UsageError, choose
from siman_jax.models import build_model
from siman_jax.models.batch_norm import per_channel
from siman_jax.models.layers import BinaryConv, binary_activations
from siman_jax.models.norm_layer import Activation, BatchNorm, finish
from siman_jax.models.pooled_norm import Pool
from siman_jax.models.product import absent, convolution, same_padding
from siman_jax.packed.container import check_finite, check_metadata
from siman_jax.packed.safetensors import parse_json
from siman_jax.program.bits import signs
from siman_jax.program.kernels import unpack_kernel
from siman_jax.program.operations import BinaryConv as PackedConv
from siman_jax.program.operations import Program, word_count
from siman_jax.program.trace import trace
from siman_jax.rules import ACTIVATION_RULES, REAL, WEIGHT_RULES, identity
from siman_jax.rules.marks import BINARY_CONV, mark

VERSION = "1"

_CONTENT = {"network", "arguments", "image_shape", "notes"}
# No network is larger than this; the limits bound the work that a wrong file can cause.
_MOST = {"num_classes": 1_000_000, "width": 4096}
_MOST_PIXELS = 4096
_WORDS = "words"


def program_of(
    tensors: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> tuple[Program, dict[str, Any]]:
    """Return the program and the notes of a file, after checking all of it.

    Args:
      tensors: the file's arrays by their names, such as "layer1_0/conv1/words".
      metadata: the file's metadata.

    Raises:
      UsageError: something is missing or does not fit.
    """
    check_metadata(metadata, VERSION, _CONTENT)
    arguments, image_shape, notes = (
        parse_json(metadata[name], f"its {name}") for name in ("arguments", "image_shape", "notes")
    )
    _check_arguments(arguments, image_shape, notes)
    network, image_shape = metadata["network"], tuple(image_shape)
    model = _network(network, arguments)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        init = partial(model.init, train=False)
        expected = jax.eval_shape(init, jax.random.key(0), images)["params"]
    except UsageError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:  # images too small to be halved
        raise UsageError(f"{network} does not take images of shape {image_shape}.") from error
    leaves = flatten_dict(expected)
    _check_tensors(tensors, {"/".join(path): leaf for path, leaf in leaves.items()})
    params = {path: _as_float32(tensors["/".join(path)]) for path in leaves}
    program = trace(model, {"params": unflatten_dict(params)}, image_shape)
    _check_spare_bits(program, tensors)
    # As read from a file, which does not keep where in the source an operation stands.
    operations = tuple(replace(one, line="", origin=None) for one in program.operations)
    return Program(operations, program.result), notes


def _network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a network from the layers below."""
    choose(WEIGHT_RULES, arguments["weight_rule"], "weight rule")
    choose(ACTIVATION_RULES, arguments["activation_rule"], "activation rule")
    model = build_model(name, **arguments)
    return model.clone(
        conv=partial(_conv, **model.conv.keywords), norm=partial(_Norm, **model.norm.keywords)
    )


def _conv(features: int, *, weight_rule: str, **attributes: Any) -> BinaryConv:
    layer = BinaryConv if weight_rule == REAL else _Conv
    return layer(features, weight_rule=weight_rule, **attributes)


class _Conv(BinaryConv):
    """`BinaryConv` with its bits in words, and without its scales."""

    @nn.compact
    def product(self, x: Array) -> Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', features]`."""
        size, channels = self.kernel_size, x.shape[-1]
        shape = (size, size, word_count(channels), self.features)
        words = self.param(_WORDS, nn.initializers.zeros, shape, jnp.uint32)
        kernel = signs(unpack_kernel(words, channels), jnp.dtype(jnp.float32))
        product = convolution(size, self.strides)
        return mark(
            BINARY_CONV,
            lambda x, kernel, _: product(x, kernel),
            binary_activations(self, x),
            kernel,
            absent(),
            scaled=False,
            strides=self.strides,
            padding=same_padding(size),
        )


class _Norm(BatchNorm):
    """gain * x + offset, then what follows a batch norm."""

    @nn.compact
    def __call__(
        self,
        x: Any,
        train: bool,
        shortcut: Array | None = None,
        activation: Activation = identity,
        pool: Pool | None = None,
    ) -> Array:
        """Compute activation(gain * x + offset + shortcut), and maybe pool it."""
        del train  # always False
        gain = self.param("gain", nn.initializers.ones, x.shape[-1:], jnp.float32)
        offset = self.param("offset", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        y = x * per_channel(gain, x) + per_channel(offset, x)
        return finish(y, shortcut, activation, pool)


def _check_arguments(arguments: Any, image_shape: Any, notes: Any) -> None:
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


def _check_range(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"its {name} holds {value!r}; expected a whole number from 1 to {most}.")


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


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.uint32 else np.asarray(array, np.float32)


def _check_spare_bits(program: Program, tensors: Mapping[str, np.ndarray]) -> None:
    """Check that the words have only the bits of channels, which are all that a program keeps."""
    shapes = program.shapes()
    for operation in program.operations:
        if isinstance(operation, PackedConv):
            name = f"{operation.path}/{_WORDS}"
            if (operation.words != tensors[name]).any():
                channels = shapes[operation.inputs[0]][-1]
                raise UsageError(f"{name!r} sets bits beyond its {channels} input channels.")
