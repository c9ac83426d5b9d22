"""Batch norm and max pooling as one operation, against one after the other."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siman_jax.models.activations import PReLU
from siman_jax.models.batch_norm import Affine, Norm, batch_norm
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.models.pooled_norm import Pool, pooled_batch_norm
from siman_jax.native.dispatch import native

STEM = Pool((3, 3), (2, 2), ((1, 1), (1, 1)))
POOLS = [STEM, Pool((2, 2), (2, 2), ((0, 0), (0, 0))), Pool((2, 3), (1, 2), ((0, 1), (1, 0)))]


def case(dtype, channels=5):
    """Numbers to normalize, and parameters of which some gammas are negative."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.standard_normal((4, 9, 8, channels)), dtype)
    gamma, beta = (jnp.asarray(rng.standard_normal(channels), jnp.float32) for _ in range(2))
    assert len(set(np.sign(gamma))) == 2
    return y, Affine(gamma, beta, None, None), jnp.zeros(channels)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("activation", "groups"), [("relu", 1), ("identity", 2), ("hard_tanh", 1)])
def test_values_and_gradients_are_those_of_one_after_the_other(pool, activation, groups, x64):
    y, affine, near = case(jnp.float64)
    norm = Norm(1e-5, groups, activation, jnp.float64)

    def both(y, affine):
        out, moments = batch_norm(norm, y, affine, near)
        return pool(out), moments

    (expected, moments), pullback_of_both = jax.vjp(both, y, affine)
    one = partial(pooled_batch_norm, norm, pool)
    (found, same), pullback = jax.vjp(lambda y, affine: one(y, affine, near), y, affine)
    np.testing.assert_array_equal(found, expected)
    jax.tree.map(np.testing.assert_array_equal, same, moments)
    g = jnp.asarray(np.random.default_rng(1).standard_normal(found.shape))
    cotangents = g, jax.tree.map(jnp.zeros_like, moments)
    pairs = zip(
        jax.tree.leaves(pullback(cotangents)),
        jax.tree.leaves(pullback_of_both(cotangents)),
        strict=True,
    )
    for value, other in pairs:
        # Parameters are float32, and so are their gradients.
        tolerance = 1e-12 if value.dtype == jnp.float64 else 1e-6
        np.testing.assert_allclose(value, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_values_are_the_same_bit_for_bit_in_every_dtype(dtype):
    y, affine, near = case(dtype)
    norm = Norm(1e-5, 1, "relu", dtype)
    found, _ = pooled_batch_norm(norm, STEM, y, affine, near)
    np.testing.assert_array_equal(found, STEM(batch_norm(norm, y, affine, near)[0]))


def test_of_equal_results_the_largest_input_gets_the_gradient():
    """Where rounding or a gamma of 0 makes results equal, which inputs are not."""
    y = jnp.float32([[1, 3], [2, 0]]).reshape(1, 2, 2, 1)
    norm, pool = Norm(1e-5, 1, "identity", jnp.float32), Pool((2, 2), (2, 2), ((0, 0), (0, 0)))
    for gamma, sign in ((0.0, 1), (1e-12, 1), (-1e-12, -1)):
        affine = Affine(jnp.float32([gamma]), jnp.float32([1]), None, None)

        def total(affine):
            return pooled_batch_norm(norm, pool, y, affine, jnp.zeros(1))[0].sum()

        extreme = 3 if sign > 0 else 0
        expected = (extreme - 1.5) / np.sqrt(np.var([1, 3, 2, 0]) + 1e-5)
        np.testing.assert_allclose(jax.grad(total)(affine).gamma, [expected], rtol=1e-6)


class Pooled(nn.Module):
    """The norm of a stem."""

    activation: str
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        activation = PReLU() if self.activation == "prelu" else getattr(nn, self.activation)
        return BatchNorm(groups=self.groups)(x, True, activation=activation, pool=STEM)


def run(layer, x, g):
    variables = layer.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf - 0.5, variables["params"])  # a beta below 0

    def apply(params, x):
        return layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])

    out, pullback, updates = jax.vjp(apply, params, x, has_aux=True)
    return out, pullback(g), updates


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "hard_tanh", "tanh", "prelu"])
def test_a_layer_pools_alike_natively_and_by_xla(activation, groups):
    """Also with activations that may fall, and such that the norm does not know."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((4, 7, 6, 5)), jnp.float32)
    g = jnp.asarray(rng.standard_normal((4, 4, 3, 5)), jnp.float32)
    found = run(Pooled(activation, groups), x, g)
    with native(False):
        expected = run(Pooled(activation, groups), x, g)
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=2e-5, atol=2e-5)


def test_evaluation_pools_what_it_normalized():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 6, 6, 3)), jnp.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, False)
    found = layer.apply(variables, x, False, activation=nn.relu, pool=STEM)
    expected = STEM(layer.apply(variables, x, False, activation=nn.relu))
    np.testing.assert_array_equal(found, expected)
