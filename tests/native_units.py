"""A binary convolution with the norm and activation after it, on its own, and cases of it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from siman_jax.models.activations import PReLU
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.rules import identity

ACTIVATIONS = {"identity": identity, "relu": nn.relu, "hard_tanh": nn.hard_tanh}


class Unit(nn.Module):
    """A binary convolution, with its batch norm, shortcut and activation."""

    conv: partial
    activation: str
    shortcut: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, more):
        layer = self.conv(dtype=self.dtype, name="conv")
        shortcut = {"none": None, "input": x, "other": more}[self.shortcut]
        activation = ACTIVATIONS.get(self.activation) or PReLU(name="prelu")
        norm = BatchNorm(dtype=self.dtype, name="norm")
        return norm(layer.product(x), True, shortcut, activation)


def run_unit(unit, variables, x, more, g):
    def apply(params, x, more):
        y, updated = unit.apply({**variables, "params": params}, x, more, mutable=["batch_stats"])
        return jnp.sum(y * g), (y, updated)

    function = jax.jit(jax.value_and_grad(apply, (0, 1, 2), has_aux=True))
    (_, (y, updated)), gradients = function(variables["params"], x, more)
    return {"y": y, "updated": updated, "gradients": gradients}


CASES = [
    # samples, height, width, channels, features, size, strides, activation, shortcut, rules
    (4, 8, 8, 16, 16, 3, 1, "prelu", "input", "half_half", "siman"),
    (3, 32, 32, 16, 16, 3, 1, "prelu", "input", "half_half", "siman"),
    (3, 7, 9, 20, 24, 3, 2, "hard_tanh", "other", "half_half", "siman"),
    (3, 9, 6, 5, 7, 1, 2, "identity", "none", "half_half", "siman"),
    (2, 5, 5, 130, 70, 5, 1, "relu", "other", "half_half", "approx_sign"),
    (9, 4, 4, 64, 144, 3, 1, "hard_tanh", "none", "bnn", "ste_sign"),
    (2, 12, 7, 3, 3, 7, 3, "prelu", "none", "xnor_net", "swish_sign"),
    (3, 8, 8, 16, 16, 3, 1, "prelu", "input", "bi_real", "approx_sign"),
    (3, 6, 6, 33, 17, 2, 1, "relu", "other", "recu", "recu"),
]


def make_case(samples, height, width, channels, features, size, strides, seed=0):
    rng = np.random.default_rng(seed)
    result = (samples, -(-height // strides), -(-width // strides), features)
    x = np.float32(0.7 * rng.standard_normal((samples, height, width, channels)) + 0.1)
    more, g = np.float32(rng.standard_normal((2, *result)))
    return x, more, g
