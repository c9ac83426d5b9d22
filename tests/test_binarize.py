"""Tests of SiMaN's rules against the authors' program, closed forms in NumPy, and by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import relative_error
from golden_data import FOLDER
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from siman_jax.errors import UsageError
from siman_jax.models.layers import BinaryConv
from siman_jax.models.leaves import BINARY_KERNEL, BITS
from siman_jax.rules.estimators import approx_sign
from siman_jax.rules.magnitude_bits import BIT_RULES, angle_optimal_bits, cosine, half_half_bits
from siman_jax.rules.siman import project, siman_activation, siman_kernel
from siman_jax.rules.standardize import moments_about_first, moments_about_mean, standardize

TOLERANCE = 1e-12


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def hwio(array):
    return array.transpose(2, 3, 1, 0)


@pytest.fixture(params=range(4))
def layer(request, x64):
    """Read one golden convolution, in the layouts used here."""
    with np.load(FOLDER / "layers.npz") as file:
        prefix = f"{request.param}/"
        raw = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    arrays = {name: nhwc(raw[name]) for name in ("x", "g", "y", "dx")}
    arrays |= {name: hwio(raw[name]) for name in ("w", "dw", "projected", "bits")}
    arrays |= {name: raw[name].ravel() for name in ("alpha", "dalpha")}
    size, stride, _, percent = raw["meta"][2:]
    return arrays, int(size), int(stride), percent


def test_golden_layer(layer):
    arrays, size, stride, percent = layer
    projected = project(jnp.asarray(arrays["w"]), percent)
    assert relative_error(projected, arrays["projected"]) < TOLERANCE
    code = siman_kernel(projected)
    np.testing.assert_array_equal(code > 0, arrays["bits"])

    module = BinaryConv(len(arrays["alpha"]), size, stride, dtype=jnp.float64)
    params = {BINARY_KERNEL: projected, "alpha": jnp.asarray(arrays["alpha"])}
    y, pullback = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, arrays["x"])
    gradients, dx = pullback(jnp.asarray(arrays["g"]))
    assert relative_error(y, arrays["y"]) < TOLERANCE
    assert relative_error(dx, arrays["dx"]) < TOLERANCE
    assert relative_error(gradients[BINARY_KERNEL], arrays["dw"]) < TOLERANCE
    assert relative_error(gradients["alpha"], arrays["dalpha"]) < TOLERANCE

    given_bits = {"params": params, BITS: {BINARY_KERNEL: jnp.asarray(arrays["bits"])}}
    np.testing.assert_array_equal(module.apply(given_bits, arrays["x"]), y)


def test_sign_of_zero_is_plus_one():
    zeros = jnp.array([0.0, -0.0])
    np.testing.assert_array_equal(approx_sign(zeros), [1, 1])
    constant = jnp.full((2, 3, 3, 4), 0.5)  # every activation equals its sample's mean
    np.testing.assert_array_equal(siman_activation(constant), jnp.ones_like(constant))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_approx_sign_gradient_is_its_closed_form(dtype):
    x = jnp.linspace(-1.5, 1.5, 25, dtype=dtype)
    g = jnp.arange(25, dtype=dtype)
    y, pullback = jax.vjp(approx_sign, x)
    (dx,) = pullback(g)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, np.where(np.asarray(x) >= 0, 1, -1))
    np.testing.assert_array_equal(dx, g * np.maximum(2 - 2 * np.abs(x), 0))


def test_ties_at_the_median_get_zero():
    u = jnp.array([[1.0, -2.0], [-1.0, 2.0], [1.0, 1.0], [3.0, 2.0]])
    np.testing.assert_array_equal(half_half_bits(u), [[0, 0], [0, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(half_half_bits(jnp.zeros((4, 1))), np.zeros((4, 1)))


def test_odd_filters_have_one_zero_more():
    u = jnp.array([[5.0], [-1.0], [3.0]])
    np.testing.assert_array_equal(half_half_bits(u), [[1], [0], [0]])


@pytest.mark.parametrize("rule", list(BIT_RULES))
def test_kernel_gradient_is_its_closed_form(rule, x64):
    """Straight through to |u|, then the derivative of standardization, in NumPy."""
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((2, 3, 3, 5, 7))
    code, pullback = jax.vjp(partial(siman_kernel, rule=rule), jnp.asarray(w))
    (dw,) = pullback(jnp.asarray(g))
    assert set(np.unique(code)) == {-1, 1}

    n, axes = 45, (0, 1, 2)
    centred = w - w.mean(axes)
    scale = np.sqrt((centred**2).sum(axes) / (n - 1) + 1e-5)
    u = centred / scale
    du = g * np.sign(u)
    expected = (du - du.mean(axes) - u * (du * u).sum(axes) / (n - 1)) / scale
    assert relative_error(dw, expected) < TOLERANCE


def test_gradient_of_a_zero_weight_is_that_of_magnitude():
    w = jnp.array([[1.0], [-1.0], [0.0], [2.0], [-2.0]])  # mean 0, so u is 0 where w is
    _, pullback = jax.vjp(siman_kernel, w)
    found = pullback(jnp.ones_like(w))[0].ravel()
    # du is [1, -1, 0, 1, -1] over the deviation: its mean is 0, and 4 sum(du u) is 6 / deviation.
    deviation = np.sqrt(2.5 + 1e-5)
    expected = np.array([1, -1, 0, 1, -1]) - np.array([1, -1, 0, 2, -2]) * 6 / 4 / deviation**2
    np.testing.assert_allclose(found, expected / deviation, rtol=1e-6, atol=1e-7)
    assert found[2] == 0


magnitudes = npst.arrays(
    np.float64,
    st.tuples(st.integers(2, 9), st.integers(1, 3)),
    elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(magnitudes)
def test_angle_optimal_bits_beat_every_other_choice(u):
    with jax.enable_x64(True):
        best = angle_optimal_bits(jnp.asarray(u))
        for column, bits, reached in zip(u.T, best.bits.T, best.cosine, strict=True):
            if not column.any():
                assert reached == 0
                continue
            choices = np.array(list(itertools.product([0, 1], repeat=len(column))))[1:]
            cosines = choices @ column / np.sqrt(choices.sum(1)) / np.linalg.norm(column)
            own = bits @ column / np.sqrt(bits.sum()) / np.linalg.norm(column)
            np.testing.assert_allclose([reached, own], cosines.max(), atol=1e-12)
        np.testing.assert_allclose(best.share, best.bits.mean(0))


@settings(deadline=None, max_examples=60)
@given(magnitudes)
def test_half_half_bits_are_the_larger_half(u):
    bits = np.asarray(half_half_bits(jnp.asarray(u, jnp.float32)))
    for column, chosen in zip(u.T, bits.T, strict=True):
        assert chosen.sum() <= len(column) / 2
        ones, zeros = column[chosen == 1], column[chosen == 0]
        assert not ones.size or ones.min() > zeros.max()
        if len(np.unique(column)) == len(column):
            assert chosen.sum() == len(column) // 2


@pytest.mark.parametrize(
    ("draw", "share", "angle_cosine", "half_cosine"),
    [
        (lambda rng, n: rng.laplace(size=n), 0.368, 0.858, 0.847),
        (lambda rng, n: rng.standard_normal(n), 0.5405, 0.8999, 0.8988),
        (lambda rng, n: rng.uniform(-1, 1, n), 2 / 3, 0.943, 0.919),
    ],
    ids=["laplace", "gauss", "uniform"],
)
def test_what_the_optimum_looks_like(draw, share, angle_cosine, half_cosine, x64):
    """Compare with the paper's table of distributions, on two million draws."""
    u = jnp.asarray(draw(np.random.default_rng(0), 2_000_000))[:, None]
    best = angle_optimal_bits(u)
    assert best.share[0] == pytest.approx(share, abs=0.01)  # the optimum is flat
    assert best.cosine[0] == pytest.approx(angle_cosine, abs=0.001)
    assert cosine(u, half_half_bits(u))[0] == pytest.approx(half_cosine, abs=0.001)


def test_projection_is_the_percentiles_of_the_whole_layer(x64):
    w = np.random.default_rng(0).standard_normal((3, 3, 4, 6))
    centred = w - w.mean((0, 1, 2))
    low, high = np.percentile(np.abs(centred), [7.5, 92.5])
    expected = np.sign(centred) * np.clip(np.abs(centred), low, high)
    np.testing.assert_allclose(jax.jit(project)(jnp.asarray(w), 7.5), expected, atol=1e-15)


def test_projection_by_zero_percent_only_centres(x64):
    w = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 4, 6)))
    np.testing.assert_array_equal(project(w, 0.0), w - w.mean((0, 1, 2), keepdims=True))


def test_bits_are_the_same_in_every_compilation():
    """XLA must not round |u| differently for selecting and for comparing."""
    w = jax.random.normal(jax.random.key(0), (3, 3, 64, 256))

    def together(w):
        code, pullback = jax.vjp(siman_kernel, w)
        return code, pullback(jnp.ones_like(code))

    code, _ = jax.jit(together)(w)
    np.testing.assert_array_equal(code.reshape(-1, 256).sum(0), np.zeros(256))
    np.testing.assert_array_equal(code, siman_kernel(w))


def test_standardize_needs_two_numbers():
    with pytest.raises(ValueError, match="at least two numbers"):
        standardize(jnp.ones((1, 1, 1, 8)), (0, 1, 2))


def test_unknown_rule_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'half_half'"):
        siman_kernel(jnp.ones((2, 2)), "half_hlaf")


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.02)])
def test_activations_far_from_zero_keep_their_gradient(dtype, tolerance):
    """The variance is small against the square of the mean."""
    rng = np.random.default_rng(0)
    mean = 300.0 if dtype == jnp.float32 else 4.0
    x = jnp.asarray(mean + rng.standard_normal((3, 8, 8, 4)), dtype)
    g = jnp.asarray(rng.standard_normal(x.shape), dtype)
    bits, pullback = jax.vjp(siman_activation, x)
    (found,) = pullback(g)
    exact = np.float64(x)
    with jax.enable_x64(True):
        _, pullback = jax.vjp(lambda x: approx_sign(standardize(x, (1, 2, 3))), jnp.asarray(exact))
        (expected,) = pullback(jnp.asarray(np.float64(g)))
    assert bits.dtype == found.dtype == dtype
    np.testing.assert_array_equal(bits > 0, exact >= exact.mean((1, 2, 3), keepdims=True))
    error = np.max(np.abs(np.float64(found) - np.float64(expected)))
    assert error < tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("moments", "mean", "dtype"),
    [
        (moments_about_first, 300, jnp.float32),
        (moments_about_mean, 300, jnp.float32),
        (moments_about_mean, 10, jnp.bfloat16),
    ],
)
def test_moments_far_from_zero_keep_their_digits(moments, mean, dtype):
    """Test both implementations: that for CPUs, and that for other devices."""
    x = jnp.asarray(mean + np.random.default_rng(0).standard_normal((3, 8, 8, 4)), dtype)
    mean, variance = jax.jit(moments)(x)
    exact = np.float64(x)
    np.testing.assert_allclose(mean, exact.mean((1, 2, 3), keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((1, 2, 3), keepdims=True, ddof=1), rtol=1e-4)
