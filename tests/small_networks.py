"""Small networks for tests, and variables as after training."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from siman_jax.models import build_model
from siman_jax.models.layers import BinaryConv
from siman_jax.models.leaves import BINARY_KERNEL, BITS
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.rules import WEIGHT_RULES


class TwoConvolutions(nn.Module):
    """A stem, two binary convolutions and a classifier: the smallest network to show a rule."""

    conv: Callable[..., BinaryConv]
    norm: Callable[..., BatchNorm] = BatchNorm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), use_bias=False, dtype=self.dtype, name="conv0")(x)
        x = self.norm(name="bn0")(x, train)
        for i, features in ((1, 16), (2, 32)):
            x = self.conv(features, strides=2, name=f"conv{i}")(x)
            x = self.norm(name=f"bn{i}")(x, train)
        return nn.Dense(10, dtype=self.dtype, name="fc")(jnp.mean(x, (1, 2)))


def two_convolutions(weight_rule, dtype=jnp.float32):
    """Build that network with a rule and the activations it was published with."""
    activation_rule = WEIGHT_RULES[weight_rule].activation
    return TwoConvolutions(
        partial(BinaryConv, weight_rule=weight_rule, activation_rule=activation_rule, dtype=dtype),
        partial(BatchNorm, dtype=dtype),
        dtype,
    )


# Draws of leaves as after training: alphas of both signs, scales other than 1.
DRAWS = {
    "alpha": lambda rng, shape: (0.05 + 0.1 * rng.random(shape)) * rng.choice([-1, 1, 1, 1], shape),
    "scale": lambda rng, shape: 0.8 + 0.4 * rng.random(shape),
    "mean": lambda rng, shape: 0.5 * rng.standard_normal(shape),
    "var": lambda rng, shape: 0.5 + rng.random(shape),
    "bias": lambda rng, shape: 0.1 * rng.standard_normal(shape),
    "shift": lambda rng, shape: 0.3 * rng.standard_normal(shape),
    "slope": lambda rng, shape: 0.25 + 0.1 * rng.random(shape),
    "kernel": lambda rng, shape: rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5,
    BINARY_KERNEL: lambda rng, shape: rng.standard_normal(shape),
}


def trained(name, dtype, *, shape=None, width=12, **arguments):
    """Return a narrow network, variables as after training, and images of an awkward size."""
    model = build_model(name, 7, width=width, dtype=dtype, **arguments)
    size = 20 if name.startswith("cifar") else 40
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal(shape or (3, size, size, 3)), dtype)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    variables = {
        path: jnp.asarray(DRAWS[path[-1]](rng, leaf.shape), dtype)
        for path, leaf in flatten_dict(shapes).items()
    }
    return model, unflatten_dict(variables), images


def with_random_bits(variables):
    """Add random bits, which no rule would give."""
    rng = np.random.default_rng(1)
    return {
        **variables,
        BITS: unflatten_dict(
            {
                path: jnp.asarray(rng.integers(0, 2, leaf.shape))
                for path, leaf in flatten_dict(variables["params"]).items()
                if path[-1] == BINARY_KERNEL
            }
        ),
    }
