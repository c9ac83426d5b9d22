"""Tests of a native norm that is joined to the convolution after it."""

from contextlib import nullcontext

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siman_jax.models.activations import PReLU
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.native import library
from siman_jax.native.chain import chained
from siman_jax.native.dispatch import native

needs_library = pytest.mark.skipif(not library.variants(), reason="the library is not built")


class Chain(nn.Module):
    """Norms and convolutions in turn; `both` uses a norm's result in another way, too."""

    joined: bool
    both: bool = False
    activation: str = "prelu"

    @nn.compact
    def __call__(self, x):
        kinds = {"prelu": PReLU, "hard_tanh": lambda: nn.hard_tanh}
        kind = kinds[self.activation]
        with chained() if self.joined else nullcontext():
            x = BatchNorm()(x, True, None, kind())
            y = BatchNorm()(BinaryConv(16).product(x), True, x, kind())
            z = BatchNorm()(BinaryConv(16).product(y), True, y, kind())
        return z + jnp.sin(y) if self.both else z


def images():
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 9, 8, 16)), jnp.float32)


def gradients_of(model, x, variables=None):
    variables = variables or model.init(jax.random.key(1), x)

    def loss(params, x):
        y, stats = model.apply({**variables, "params": params}, x, mutable="batch_stats")
        weights = jnp.linspace(-1, 1, y.size, dtype=jnp.float32).reshape(y.shape)
        return jnp.sum(jnp.sin(3 * y) * weights), stats

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)), variables["params"]


def agree(found, expected, tolerance=2e-5):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

    jax.tree.map(one, found, expected)


@needs_library
@pytest.mark.parametrize("activation", ["prelu", "hard_tanh"])
@pytest.mark.parametrize("both", [False, True])
def test_joined_or_not_gradients_are_the_same(both, activation):
    x = images()
    results = []
    for joined, uses_library in ((True, True), (False, True), (False, False)):
        function, params = gradients_of(Chain(joined, both, activation), x)
        with native(uses_library):
            results.append(function(params, x))
    agree(results[0], results[1])
    agree(results[0], results[2], 1e-4)


@needs_library
def test_slopes_that_are_not_positive():
    """The result of such a PReLU does not tell on which side its input was."""
    x, model = images(), Chain(joined=True)
    variables = model.init(jax.random.key(1), x)
    slopes = jnp.linspace(-0.5, 0.5, 16, dtype=jnp.float32).at[3].set(0)
    set_slopes = jax.tree_util.tree_map_with_path(
        lambda path, leaf: slopes if "slope" in str(path) else leaf, variables
    )
    results = []
    for joined in (True, False):
        function, params = gradients_of(Chain(joined), x, set_slopes)
        results.append(function(params, x))
    agree(*results)


@needs_library
def test_only_the_last_norm_computes_its_results_itself():
    x = images()
    for joined, both, calls in ((True, False, 1), (True, True, 2), (False, False, 3)):
        function, params = gradients_of(Chain(joined, both), x)
        text = function.lower(params, x).compile().as_text()
        for name in (library.NORM_FORWARD, library.NORM_SUMS):
            assert text.count(f'custom_call_target="{name}"') == calls


@needs_library
def test_a_second_kernel_mapped_alone():
    """The first norm runs natively, and all after it by XLA."""
    x, model = images(), Chain(joined=True)
    function, params = gradients_of(model, x)
    name = "BinaryConv_1"
    kernel = params[name]["binary_kernel"]
    kernels = jnp.stack([kernel, -kernel])

    def one(kernel):
        return function({**params, name: {**params[name], "binary_kernel": kernel}}, x)

    mapped = jax.vmap(one)(kernels)
    for seed, kernel in enumerate(kernels):
        agree(jax.tree.map(lambda leaf, at=seed: leaf[at], mapped), one(kernel), 1e-4)
