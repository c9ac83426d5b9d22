"""A small packed network for tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.models import build_model
from siman_jax.models.leaves import BINARY_KERNEL, BITS
from siman_jax.packed.notes import Notes
from siman_jax.packed.program_file import PackedProgram
from siman_jax.program.trace import trace


def packed_network(name="cifar.vgg_small_1w1a", size=8):
    """Pack a network of random weights and bits, for images of `size` by `size` pixels."""
    model = build_model(name, 3, width=12, weight_rule="half_half", activation_rule="siman")
    image_shape = (size, size, 3)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: np.float32(rng.random(leaf.shape)), shapes)
    variables[BITS] = unflatten_dict(
        {
            path: rng.integers(0, 2, leaf.shape)
            for path, leaf in flatten_dict(shapes["params"]).items()
            if path[-1] == BINARY_KERNEL
        }
    )
    notes = Notes((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), class_names=("a", "b", "é")).as_json()
    return PackedProgram(trace(model, variables, image_shape), notes)
