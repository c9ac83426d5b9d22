"""Tests of sign-based rules against their authors' programs and the papers' closed forms."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparisons import relative_error
from golden_data import FOLDER
from jax import lax

from siman_jax.rules import estimators, rbnn, sign_kernels
from siman_jax.rules.estimators import approx_sign
from siman_jax.training.bop import bop

TOLERANCE = 1e-12


def conv(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.fixture
def golden(x64):
    """Read one golden convolution, in the layouts used here."""

    def read(name):
        with np.load(FOLDER / "rules.npz") as file:
            prefix = f"{name}/"
            raw = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
        arrays = {key: jnp.asarray(raw.pop(key).transpose(0, 2, 3, 1)) for key in ("x", "g", "y")}
        arrays["dx"] = raw.pop("dx").transpose(0, 2, 3, 1)
        arrays |= {key: jnp.asarray(raw.pop(key).transpose(2, 3, 1, 0)) for key in ("w", "dw")}
        for key in ("alpha", "dalpha", "rotate", "drotate"):
            if key in raw:
                arrays[key] = jnp.asarray(raw.pop(key).ravel())
        return {**arrays, **raw}

    return read


def compare(layer, case, *parameters):
    """Run a layer with its kernel, activations and parameters forward and backward, and compare."""
    y, pullback = jax.vjp(layer, case["w"], case["x"], *(case[name] for name in parameters))
    assert relative_error(y, case["y"]) < TOLERANCE
    names = ("w", "x", *parameters)
    for name, gradient in zip(names, pullback(case["g"]), strict=True):
        expected = case[f"d{name}"]
        if not np.any(expected):
            np.testing.assert_array_equal(gradient, expected, err_msg=name)
        else:
            assert relative_error(gradient, expected) < TOLERANCE, name


@pytest.mark.parametrize("name", ["irnet0", "irnet1"])
def test_ir_net_is_its_authors(golden, name):
    case = golden(name)
    t = float(case["t"])
    assert max(1 / t, 1) == case["k"]
    compare(lambda w, x: conv(estimators.tanh_sign(x, t), sign_kernels.ir_net_kernel(w, t)), case)


@pytest.mark.parametrize("name", ["recu0", "recu1"])
def test_recu_is_its_authors(golden, name):
    case = golden(name)
    kernel = partial(sign_kernels.recu_kernel, tau=float(case["tau"]))
    compare(
        lambda w, x, alpha: (
            conv(sign_kernels.recu_activation(x), kernel(w)) * alpha[None, None, None]
        ),
        case,
        "alpha",
    )


@pytest.mark.parametrize("name", ["rbnn0", "rbnn1"])
def test_rbnn_is_its_authors(golden, name):
    case = golden(name)
    t = float(case["t"])
    left, right = jnp.asarray(case["R1_after"]), jnp.asarray(case["R2_after"])

    def layer(w, x, alpha, theta):
        kernel = rbnn.rbnn_kernel(w, theta, left, right, t)
        return conv(rbnn.rbnn_activation(x, t), kernel) * alpha[None, None, None]

    compare(layer, case, "alpha", "rotate")


@pytest.mark.parametrize("name", ["rbnn0", "rbnn1"])
def test_rotations_are_their_authors(golden, name):
    case = golden(name)
    before = rbnn.Rotations(*(jnp.asarray(case[f"R{i}_before"]) for i in (1, 2)))
    after = jax.jit(rbnn.update_rotations)(case["w"], before)
    if not case["updates_rotation"]:
        after = before
    for i in (1, 2):
        assert relative_error(after[i - 1], case[f"R{i}_after"]) < TOLERANCE
        np.testing.assert_allclose(after[i - 1] @ after[i - 1].T, np.eye(12), atol=TOLERANCE)


X = np.linspace(-2.0, 2.0, 41)  # includes 0 and both ends of 1[|x| <= 1]
T = 0.7
CLOSED_FORMS = {
    "approx_sign": (approx_sign, lambda x: np.maximum(2 - 2 * np.abs(x), 0)),
    "ste_sign": (estimators.ste_sign, lambda x: np.abs(x) <= 1),
    "identity_sign": (estimators.identity_sign, np.ones_like),
    "swish_sign": (
        estimators.swish_sign,
        lambda x: 5 * (2 - 5 * x * np.tanh(5 * x / 2)) / (1 + np.cosh(5 * x)),
    ),
    "tanh_sign": (
        partial(estimators.tanh_sign, sharpness=T),
        lambda x: (1 / T) * T * (1 - np.tanh(T * x) ** 2),
    ),
    "triangle_sign": (
        partial(estimators.triangle_sign, sharpness=T, gain=3.0),
        lambda x: 3 * np.maximum(math.sqrt(2) * T - T**2 * np.abs(x), 0),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_signs_and_their_gradients(name, dtype, x64):
    function, slope = CLOSED_FORMS[name]
    x = jnp.asarray(X, dtype)
    g = jnp.asarray(np.random.default_rng(0).standard_normal(X.shape), dtype)
    y, pullback = jax.vjp(function, x)
    (dx,) = pullback(g)
    assert y.dtype == dx.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(y, np.where(np.asarray(x) >= 0, 1, -1))
    expected = np.asarray(g, np.float64) * slope(np.asarray(x, np.float64))
    precision = {"float64": TOLERANCE, "float32": 1e-5, "bfloat16": 0.05}[dtype]
    assert relative_error(np.asarray(dx, np.float64), expected) < precision


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_sign_of_zero_is_plus_one(name):
    function, _ = CLOSED_FORMS[name]
    np.testing.assert_array_equal(function(jnp.array([0.0, -0.0])), [1, 1])


def test_swish_sign_does_not_overflow():
    gradient = jax.grad(lambda x: estimators.swish_sign(x).sum())(jnp.array([-1e4, 1e4]))
    np.testing.assert_array_equal(gradient, [0, 0])


def mean_magnitude(w):
    return np.abs(w).mean((0, 1, 2), keepdims=True)


# Forward and backward of each kernel, by its paper.
KERNELS = {
    "bnn": (estimators.ste_sign, lambda w: np.sign(w), lambda w, g: g * (np.abs(w) <= 1)),
    "xnor_net": (
        sign_kernels.xnor_net_kernel,
        lambda w: mean_magnitude(w) * np.sign(w),
        lambda w, g: g * (1 / w[..., 0].size + mean_magnitude(w) * (np.abs(w) <= 1)),
    ),
    "dorefa": (
        sign_kernels.dorefa_kernel,
        lambda w: np.abs(w).mean() * np.sign(w),
        lambda w, g: g,
    ),
    "bi_real": (
        sign_kernels.bi_real_kernel,
        lambda w: mean_magnitude(w) * np.sign(w),
        lambda w, g: g * mean_magnitude(w) * (np.abs(w) <= 1),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_their_papers(name, x64):
    function, forward, backward = KERNELS[name]
    w, g = np.random.default_rng(0).standard_normal((2, 3, 3, 5, 7))
    kernel, pullback = jax.vjp(function, jnp.asarray(w))
    assert relative_error(kernel, forward(w)) < TOLERANCE
    assert relative_error(pullback(jnp.asarray(g))[0], backward(w, g)) < TOLERANCE


ALL_KERNELS = {name: function for name, (function, _, _) in KERNELS.items()} | {
    "ir_net": partial(sign_kernels.ir_net_kernel, sharpness=0.1),
    "recu": partial(sign_kernels.recu_kernel, tau=0.9),
}


@pytest.mark.parametrize("name", ALL_KERNELS)
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (20, 6)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_have_one_magnitude_per_filter(name, shape, dtype):
    w = jax.random.normal(jax.random.key(0), shape, dtype)
    rule = jax.jit(ALL_KERNELS[name])
    kernel, gradient = rule(w), jax.eval_shape(jax.grad(lambda w: rule(w).sum()), w)
    assert kernel.dtype == gradient.dtype == dtype
    magnitude = jnp.abs(kernel).reshape(-1, shape[-1])
    np.testing.assert_array_equal(magnitude, jnp.broadcast_to(magnitude[:1], magnitude.shape))
    assert magnitude.min() > 0


def test_ir_net_scales_by_powers_of_two():
    w = jax.random.normal(jax.random.key(0), (3, 3, 5, 7))
    scale = np.abs(jax.jit(sign_kernels.ir_net_kernel)(w, 1.0))[0, 0, 0]
    assert (np.frexp(scale)[0] == 0.5).all()


@pytest.mark.parametrize(
    "function",
    [
        partial(sign_kernels.ir_net_kernel, sharpness=2.0),
        partial(rbnn.rbnn_activation, sharpness=2.0),
        sign_kernels.recu_activation,
    ],
)
def test_equal_numbers_have_no_deviation_but_a_gradient(function):
    x = jnp.full((2, 3, 3, 4), 0.5)
    y, pullback = jax.vjp(function, x)
    np.testing.assert_array_equal(y, jnp.ones_like(x))
    assert jnp.isfinite(pullback(y)[0]).all()


def random_rotations(seed, n):
    """Draw orthogonal matrices for filters of `n` weights."""
    sizes = rbnn.matrix_shape(n)
    return rbnn.Rotations(
        *(jax.random.orthogonal(jax.random.key(seed + i), size) for i, size in enumerate(sizes))
    )


def test_rotated_kernels_of_convolutions_and_matrices():
    rule, update = jax.jit(rbnn.rbnn_kernel), jax.jit(rbnn.update_rotations)
    for shape in ((3, 3, 4, 6), (20, 6)):
        rotations = random_rotations(0, math.prod(shape[:-1]))
        w = jax.random.normal(jax.random.key(1), shape)
        kernel = rule(w, jnp.ones(6), *rotations, 0.5)
        assert (kernel.shape, kernel.dtype) == (shape, w.dtype)
        assert set(np.unique(kernel)) == {-1, 1}
        for matrix in update(w, rotations):
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-5)


def test_an_update_turns_weights_towards_their_signs(x64):
    """The sum of |rotated weight|, which rotations maximize, never falls."""
    w = jax.random.normal(jax.random.key(0), (3, 3, 8, 16))
    rotations = jax.tree.map(lambda r: r.astype(w.dtype), random_rotations(1, 72))

    def aligned(rotations):
        matrices = np.moveaxis(w, (3, 2), (0, 1)).reshape(16, *rbnn.matrix_shape(72))
        return np.abs(rotations.left.T @ matrices @ rotations.right).sum()

    w = w - w.mean((0, 1, 2), keepdims=True)
    before, update = aligned(rotations), jax.jit(rbnn.update_rotations)
    for _ in range(3):
        rotations = update(w, rotations)
        assert aligned(rotations) > before
        before = aligned(rotations)


def test_schedules_are_their_papers():
    for epoch in (0, 7, 119):
        progress = jnp.float32(epoch / 120)
        t = 10 ** (-3 + (1 + 3) * epoch / 120)
        assert estimators.sharpness_at(progress, 1e-3, 10.0) == pytest.approx(t, rel=1e-5)
        a = (0.99 - 0.85) / (math.e - 1)
        tau = a * math.exp(epoch / 120) + 0.85 - a
        assert sign_kernels.tau_at(progress, 0.85, 0.99) == pytest.approx(tau, rel=1e-6)


def test_bop_is_its_paper():
    """Compare with ten updates by the paper's algorithm, one weight at a time."""
    rng = np.random.default_rng(0)
    w = rng.choice([-1.0, 1.0], (4, 5)).astype(np.float32)
    gradients = rng.standard_normal((10, 4, 5)).astype(np.float32)
    optimizer = bop(adaptivity=0.3, threshold=0.2)
    found, state = {"w": jnp.asarray(w)}, optimizer.init({"w": jnp.asarray(w)})
    average, flips = np.zeros_like(w), 0
    for g in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(g)}, state, found)
        found = optax.apply_updates(found, updates)
        for index in np.ndindex(w.shape):
            average[index] = 0.7 * average[index] + 0.3 * g[index]
            if abs(average[index]) > 0.2 and np.sign(average[index]) == np.sign(w[index]):
                w[index], flips = -w[index], flips + 1
        np.testing.assert_array_equal(found["w"], w)
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-5, atol=1e-7)
    assert flips > 10
