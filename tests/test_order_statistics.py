"""Selection against sorting, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from siman_jax.rules.order_statistics import exceeds_kth_smallest, kth_smallest, quantiles

# Drawn from few values, so that ties are common; zero and the smallest subnormal among them.
values = st.sampled_from([0.0, 2**-149, 0.5, 1.0, 1.5, 2.0**127]) | st.floats(0, 2.0**100, width=32)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 3))
matrices = npst.arrays(np.float32, shapes, elements=values)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(matrices, st.data())
def test_every_rank_is_that_of_sorting(x, data):
    k = data.draw(st.integers(0, len(x) - 1))
    expected = np.sort(x, axis=0)[k : k + 1]
    np.testing.assert_array_equal(kth_smallest(jnp.asarray(x), k), expected)
    np.testing.assert_array_equal(exceeds_kth_smallest(jnp.asarray(x), k), x > expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_every_width_of_float(dtype, x64):
    x = jnp.abs(jax.random.normal(jax.random.key(0), (101, 3), jnp.float64)).astype(dtype)
    ranks = jnp.array([[0, 50, 100]])
    found = jax.jit(kth_smallest)(x, ranks)
    assert found.dtype == dtype
    ordered = np.sort(np.asarray(x), axis=0)
    np.testing.assert_array_equal(found[0], [ordered[0, 0], ordered[50, 1], ordered[100, 2]])


@settings(deadline=None, max_examples=50)
@given(
    npst.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 100)),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_quantiles_are_those_of_numpy(x, q):
    with jax.enable_x64(True):
        found = quantiles(jnp.asarray(x), jnp.asarray(q, jnp.float64))
        np.testing.assert_allclose(found, np.quantile(x, q), rtol=1e-12, atol=1e-12)


def test_quantiles_are_those_of_jax():
    """To the last digit, which XLA may round either way when it fuses the interpolation."""
    x = jnp.abs(jax.random.normal(jax.random.key(0), (3, 3, 64, 64)))
    q = jnp.array([0.0, 0.03, 0.15, 0.85, 1.0])
    np.testing.assert_array_max_ulp(quantiles(x, q), jnp.quantile(x, q), maxulp=1)
