"""Tests that selection equals sorting exactly."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from siman_jax.rules import kernels_together, radix_selection, siman
from siman_jax.rules.order_statistics import (
    exceeds_kth_smallest,
    kth_smallest,
    quantile_ranks,
    quantiles,
)
from siman_jax.rules.standardize import VARIANCE_EPSILON

# Few values, including zero and the smallest subnormal, so that ties are common.
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
    ranks = jnp.array([[0, 50, 100]], jnp.int32)
    ordered = np.sort(np.asarray(x), axis=0)
    for function in (kth_smallest, radix_selection.kth_smallest):
        found = jax.jit(function)(x, ranks)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[0], [ordered[0, 0], ordered[50, 1], ordered[100, 2]])


def tied(dtype, shape=(40, 5)) -> np.ndarray:
    """Draw few values, with zeros, subnormals, infinities and NaN; the first column has no ties."""
    rng = np.random.default_rng(0)
    smallest = np.finfo(dtype).smallest_subnormal
    few = np.array([0, smallest, 2 * smallest, 0.5, 1, 1.5, np.inf, np.nan], dtype)
    x = few[rng.integers(0, len(few), shape)]
    x[:, 0] = np.abs(rng.standard_normal(shape[0]))
    return x


def as_unsigned(x) -> np.ndarray:
    """Return integers of the same order, so that NaN can be compared."""
    x = np.asarray(x)
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_digits_give_every_rank(dtype, x64):
    """Run the code for accelerators on the CPU: NaN ranks last, and nothing is rounded."""
    x = tied(dtype)
    ordered = np.sort(x, axis=0)
    exceeds = jax.jit(radix_selection.exceeds_kth_smallest)
    for shift in range(len(x)):
        ranks = (np.arange(x.shape[1]) + shift) % len(x)
        found = exceeds(jnp.asarray(x), jnp.asarray(ranks[None], jnp.int32))
        threshold = ordered[ranks, np.arange(x.shape[1])]
        np.testing.assert_array_equal(found, as_unsigned(x) > as_unsigned(threshold))
    none = jnp.full((1, x.shape[1]), -1, jnp.int32)
    np.testing.assert_array_equal(exceeds(jnp.asarray(x), none), as_unsigned(x) > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_digits_give_neighbours_in_groups_of_columns(dtype, x64):
    x, columns = tied(dtype), [1, 3, 1]
    edges = np.cumsum([0, *columns])
    ordered = [np.sort(x[:, a:b], None) for a, b in pairwise(edges)]

    @jax.jit
    def neighbours(ranks):
        keys = radix_selection.keys_of(jnp.asarray(x))
        return radix_selection.neighbours_in_groups(keys, list(ranks), columns)

    for shift in range(40):
        ranks = np.array([[shift + i, 3 * shift + 1] for i in range(3)]).T
        ranks = ranks % [len(group) for group in ordered]
        below, after = (np.stack(keys) for keys in neighbours(jnp.asarray(ranks, jnp.int32)))
        for i, group in enumerate(ordered):
            np.testing.assert_array_equal(below[:, i], as_unsigned(group[ranks[:, i]]))
            inside = ranks[:, i] + 1 < len(group)
            wanted = as_unsigned(group[ranks[inside, i] + 1])
            np.testing.assert_array_equal(after[inside, i], wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("percent", "matrices"), [(0.0, 1), (7.3, 1), (50.0, 1), (7.3, 2), (7.3, 3)]
)
def test_all_kernels_together_as_one_by_one(percent, matrices, x64, monkeypatch):
    """Projected kernels are equal up to rounding and bits exactly, also for odd filters."""
    padding = {1: 1000, 2: 500, 3: 0}[matrices]
    monkeypatch.setattr(kernels_together, "_MOST_PADDING", padding)
    shapes = [(3, 3, 4, 8), (1, 1, 16, 5), (3, 3, 7, 3), (3, 3, 4, 8)]
    kernels = [
        jax.random.normal(jax.random.key(i), shape, jnp.float64) for i, shape in enumerate(shapes)
    ]
    sizes = [(kernel.size // kernel.shape[-1], kernel.shape[-1]) for kernel in kernels]
    assert len(kernels_together.divided(sizes)) == matrices
    one_by_one = jax.jit(siman.project_and_choose)(kernels, percent)
    together = jax.jit(
        lambda kernels: kernels_together.project_and_choose(
            kernels, jnp.float64(percent), jnp.float64, VARIANCE_EPSILON
        )
    )(kernels)
    projected, bits, *moments = together
    for found, expected in zip(projected, one_by_one[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    for *found, chosen in zip(*moments, one_by_one[1], strict=True):
        for ours, expected in zip(found, (chosen.mean, chosen.deviation), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15, strict=True)
    if percent < 50:  # at 50 all magnitudes are equal up to rounding
        for found, chosen in zip(bits, one_by_one[1], strict=True):
            np.testing.assert_array_equal(found, chosen.bits)


def of_input_only(jaxpr) -> None:
    """Check that code after a barrier reads nothing computed from the input before it."""
    names = [equation.primitive.name for equation in jaxpr.eqns]
    at = names.index("optimization_barrier")
    of_input = set(jaxpr.invars)
    for equation in jaxpr.eqns[:at]:
        if of_input & {v for v in equation.invars if not hasattr(v, "val")}:
            of_input |= set(equation.outvars)
    assert of_input & set(jaxpr.eqns[at].invars)
    for equation in jaxpr.eqns[at + 1 :]:
        assert not of_input & {v for v in equation.invars if not hasattr(v, "val")}, equation


def test_counting_and_comparing_read_one_copy():
    """XLA cannot compute the magnitudes again for their comparison or for another pass.

    Without the barrier the TPU's compiler does that in each pass, and rounds as it likes.
    """

    def bits(x):
        ranks = jnp.full((1, 5), 3, jnp.int32)
        return radix_selection.exceeds_kth_smallest(jnp.abs(x) / jnp.sum(x), ranks)

    of_input_only(jax.make_jaxpr(bits)(jnp.ones((9, 5))).jaxpr)


def test_bits_of_all_kernels_read_one_copy():
    def bits(kernel):
        return kernels_together.project_and_choose(
            [kernel, kernel], jnp.float32(5), jnp.float32, 1e-5
        )[1]

    equations = jax.make_jaxpr(bits)(jnp.ones((3, 3, 4, 8))).jaxpr.eqns
    names = [equation.primitive.name for equation in equations]
    at = len(names) - 1 - names[::-1].index("optimization_barrier")
    read = {"sub": [], "gt": []}
    for equation in equations[at:]:
        if equation.primitive.name in read and equation.invars[0].aval.shape == (36, 16):
            read[equation.primitive.name].append(equation.invars[0])
    # Each of eight digits is counted from one difference, and one comparison gives the bits.
    assert [len(keys) for keys in read.values()] == [8, 1]
    assert {*read["sub"], *read["gt"]} == set(equations[at].outvars)


@jax.jit  # compiled once for each size
def by_digits(x, q):
    return radix_selection.interpolated(x, *quantile_ranks(x.size, q))


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(
    npst.arrays(np.float64, st.sampled_from([1, 2, 17, 60]), elements=st.floats(0, 100)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_quantiles_are_those_of_numpy(x, q):
    with jax.enable_x64(True):
        x, q = jnp.asarray(x)[:, None], jnp.asarray(q, jnp.float64)
        for found in (jax.jit(quantiles)(x, q), by_digits(x, q)):
            np.testing.assert_allclose(found, np.quantile(x, q), rtol=1e-12, atol=1e-12)


def test_quantiles_are_those_of_jax():
    """Equal up to the last digit, which XLA may round either way when it fuses."""
    x = jnp.abs(jax.random.normal(jax.random.key(0), (3, 3, 64, 64)))
    q = jnp.array([0.0, 0.03, 0.15, 0.85, 1.0])
    np.testing.assert_array_max_ulp(quantiles(x, q), jnp.quantile(x, q), maxulp=1)
