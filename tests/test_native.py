"""Tests of training in C++ against golden files, XLA in float64, and other numbers of threads."""

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_data import FOLDER
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from native_units import ACTIVATIONS, CASES, Unit, make_case, run_unit

from siman_jax.models.activations import PReLU
from siman_jax.models.layers import BinaryConv
from siman_jax.models.leaves import BINARY_KERNEL
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.native import library
from siman_jax.native.convolution import APPROX, ONE, STRAIGHT_THROUGH, Geometry, conv
from siman_jax.native.dispatch import native
from siman_jax.native.pooling import max_pool
from siman_jax.native.real_convolution import real_conv
from siman_jax.rules.order_statistics import exceeds_kth_smallest, kth_smallest
from siman_jax.rules.siman import project, siman_kernel
from siman_jax.rules.standardize import standardize

pytestmark = pytest.mark.skipif(not library.variants(), reason="the native library is not built")

TOLERANCE = 1e-5


def not_on_a_cpu(geometry, x, kernel, alpha):
    """Stand in for XLA's convolution on other platforms; any use of it would give NaN."""
    return jnp.full(geometry.result(x, kernel), jnp.nan, x.dtype)


def relative_error(found, expected):
    scale = np.max(np.abs(expected), initial=0)
    return np.max(np.abs(np.float64(found) - np.float64(expected)), initial=0) / (scale or 1)


def calls(function, *arguments):
    """Tell whether the compiled function calls the library."""
    return "siman_" in jax.jit(function).lower(*arguments).as_text()


@pytest.mark.parametrize("index", range(4))
def test_golden_layers_in_float32(index):
    with np.load(FOLDER / "layers.npz") as file:
        raw = {k[2:]: file[k] for k in file.files if k.startswith(f"{index}/")}
    arrays = {name: raw[name].transpose(0, 2, 3, 1) for name in ("x", "g", "y", "dx")}
    arrays |= {name: raw[name].transpose(2, 3, 1, 0) for name in ("w", "dw", "bits", "projected")}
    size, strides, _, percent = raw["meta"][2:]
    layer = BinaryConv(raw["alpha"].size, int(size), int(strides))
    kernel = project(jnp.float32(arrays["w"]), percent)
    params = {BINARY_KERNEL: kernel, "alpha": jnp.float32(raw["alpha"].ravel())}

    def apply(params, x):
        return layer.apply({"params": params}, x)

    x = jnp.float32(arrays["x"])
    assert calls(apply, params, x)
    y, pullback = jax.vjp(jax.jit(apply), params, x)
    gradients, dx = pullback(jnp.float32(arrays["g"]))
    assert relative_error(y, arrays["y"]) < TOLERANCE
    assert relative_error(dx, arrays["dx"]) < TOLERANCE
    assert relative_error(gradients[BINARY_KERNEL], arrays["dw"]) < TOLERANCE
    assert relative_error(gradients["alpha"], raw["dalpha"].ravel()) < TOLERANCE


def convolve(x, kernel, strides, padding):
    """Pad first: JAX's own gradient with padding is not 0 for results outside of the image."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


sizes = st.tuples(
    st.integers(1, 5),  # samples
    st.integers(1, 11),  # height
    st.integers(1, 11),  # width
    st.integers(1, 40) | st.sampled_from((16, 32, 48)),  # channels
    st.integers(1, 40) | st.sampled_from((48, 70, 144)),  # filters
    st.integers(1, 5),  # taps down
    st.integers(1, 5),  # taps across
    st.integers(1, 3),  # strides
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(sizes, st.tuples(*[st.integers(0, 2)] * 4), st.integers(0, 2**32 - 1))
def test_convolutions_of_given_signs(sizes, padding, seed):
    """Sums are exactly equal; gradients are equal to those in float64 up to 1e-5 of the largest."""
    samples, height, width, channels, filters, down, across, strides = sizes
    padding = (padding[:2], padding[2:])
    if height + sum(padding[0]) < down or width + sum(padding[1]) < across:
        return
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], (samples, height, width, channels))
    kernel = rng.choice([-1.0, 1.0], (down, across, channels, filters))
    geometry = Geometry(strides, padding, ONE, centred=False)
    function = conv(partial(not_on_a_cpu, geometry), geometry, scaled=False)
    nothing = jnp.zeros(0, jnp.float32)
    y, pullback = jax.vjp(
        lambda x, kernel: function(x, kernel, nothing), jnp.float32(x), jnp.float32(kernel)
    )
    with jax.enable_x64(True):
        expected, expected_pullback = jax.vjp(
            partial(convolve, strides=strides, padding=padding), jnp.array(x), jnp.array(kernel)
        )
        np.testing.assert_array_equal(y, expected)
        g = rng.standard_normal(expected.shape)
        expected_gradients = [np.asarray(leaf) for leaf in expected_pullback(jnp.array(g))]
    for found, exact in zip(pullback(jnp.float32(g)), expected_gradients, strict=True):
        assert relative_error(found, exact) < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_convolutions_with_batch_norm(case):
    """Compare with the same layers by XLA in float64."""
    *shape, activation, shortcut, weight_rule, activation_rule = case
    x, more, g = make_case(*shape)
    layer = partial(
        BinaryConv, *shape[4:], weight_rule=weight_rule, activation_rule=activation_rule
    )
    unit = Unit(layer, activation, shortcut)
    variables = unit.init(jax.random.key(0), x, more)
    assert calls(partial(unit.apply, mutable=["batch_stats"]), variables, x, more)
    found = run_unit(unit, variables, x, more, g)
    with jax.enable_x64(True):
        exact = unit.clone(dtype="float64")
        wide = partial(jax.tree.map, jnp.float64)
        expected = run_unit(exact, wide(variables), *wide((x, more, g)))
        expected = jax.tree.map(np.asarray, expected)
    for (path, value), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        # Alpha's gradient is a small difference of large numbers, left over by epsilon.
        limit = 1e-3 if "alpha" in name else 2 * TOLERANCE
        assert relative_error(value, other) < limit, name


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 3, 17), (2, 8, 8, 32)])
@pytest.mark.parametrize("activation", ["identity", "relu", "hard_tanh", "prelu"])
def test_batch_norm_alone(shape, activation):
    rng = np.random.default_rng(0)
    x, shortcut, g = np.float32(rng.standard_normal((3, *shape)))

    class Norm(nn.Module):
        dtype: str

        @nn.compact
        def __call__(self, x, shortcut):
            norm = BatchNorm(dtype=self.dtype)
            act = ACTIVATIONS.get(activation) or PReLU()
            return norm(3 * x + 5, True, shortcut, act)

    norm = Norm("float32")
    variables = norm.init(jax.random.key(0), x, shortcut)
    assert calls(partial(norm.apply, mutable=["batch_stats"]), variables, x, shortcut)
    found = run_unit(norm, variables, x, shortcut, g)
    with jax.enable_x64(True):
        wide = partial(jax.tree.map, jnp.float64)
        exact = run_unit(Norm("float64"), wide(variables), *wide((x, shortcut, g)))
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert relative_error(value, other) < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((3, 12, 13, 64), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 8, 8, 32), (2, 2), (2, 2), ((0, 0), (0, 0))),
        ((3, 7, 9, 5), (3, 2), (1, 3), ((2, 0), (0, 1))),
        ((2, 6, 5, 21), (2, 2), (3, 3), ((0, 0), (0, 0))),
        ((1, 2, 3, 1), (5, 5), (2, 1), ((4, 3), (4, 3))),
        ((2, 5, 5, 3), (2, 2), (2, 2), "SAME"),
    ],
)
def test_max_pooling(shape, window, strides, padding):
    """Exactly XLA's result, also if many pixels of a window equal its maximum."""
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), shape)) / 2
    pool = partial(max_pool, window_shape=window, strides=strides, padding=padding)
    assert calls(pool, x) != isinstance(padding, str)
    y, pullback = jax.vjp(pool, x)
    with native(False):
        expected, expected_pullback = jax.vjp(jax.jit(pool), x)
    g = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_array_equal(y, expected)
    # Each pixel's gradients are added in the order of the windows.
    np.testing.assert_allclose(pullback(g)[0], expected_pullback(g)[0], rtol=1e-6, atol=1e-7)


def test_pooling_gives_nan_on():
    x = jnp.zeros((1, 4, 4, 20)).at[0, 1, 1, 3].set(jnp.nan)
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y = max_pool(jnp.roll(x, place, (1, 2)), (2, 2), (2, 2))
        assert np.isnan(y).sum() == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    st.tuples(*[st.integers(1, 12)] * 3), st.integers(1, 8), st.integers(1, 3), st.integers(1, 7),
    st.integers(1, 3), st.integers(0, 3),
)  # fmt: skip
def test_real_convolutions(image, channels, blocks, taps, strides, pad):
    samples, height, width = image
    if min(height, width) + 2 * pad < taps:
        return
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, height, width, channels))
    kernel = rng.standard_normal((taps, taps, channels, 16 * blocks))
    padding = ((pad, pad), (pad, pad))
    numbers = ("NHWC", "HWIO", "NHWC")
    function = partial(
        real_conv, window_strides=(strides,) * 2, padding=padding, dimension_numbers=numbers
    )
    assert calls(function, jnp.float32(x), jnp.float32(kernel))
    y, pullback = jax.vjp(function, jnp.float32(x), jnp.float32(kernel))
    with jax.enable_x64(True):
        exact, exact_pullback = jax.vjp(
            partial(convolve, strides=strides, padding=padding), jnp.array(x), jnp.array(kernel)
        )
        g = rng.standard_normal(exact.shape)
        expected = [np.asarray(leaf) for leaf in (exact, *exact_pullback(jnp.array(g)))]
    for found, other in zip((y, *pullback(jnp.float32(g))), expected, strict=True):
        assert relative_error(found, other) < TOLERANCE


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_order_statistics(rows, columns, seed, ties):
    rng = np.random.default_rng(seed)
    x = np.abs(np.float32(rng.standard_normal((rows, columns))))
    if ties:
        x = np.round(x, 1)
        x[rng.random(x.shape) < 0.05] = np.nan
    ranks = rng.integers(-1, rows, (1, columns)).astype(np.int32)
    assert calls(exceeds_kth_smallest, x, ranks)
    keys = x.view(np.int32)  # NaN ranks last, as in the sort
    least = np.take_along_axis(np.sort(keys, 0), np.maximum(ranks, 0), 0)
    expected = keys > np.where(ranks < 0, 0, least)
    np.testing.assert_array_equal(jax.jit(exceeds_kth_smallest)(x, ranks), expected)
    chosen = rng.integers(0, x.size, (1, 4)).astype(np.int32)
    assert calls(kth_smallest, x.reshape(-1, 1), chosen)
    np.testing.assert_array_equal(
        np.asarray(jax.jit(kth_smallest)(x.reshape(-1, 1), chosen)).view(np.int32),
        np.sort(keys.ravel())[chosen],
    )


kernels = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 140))


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(kernels, st.floats(0, 49), st.integers(0, 2**32 - 1), st.booleans())
def test_projection(shape, percent, seed, ties):
    """Kernels are centred and clipped as in float64, also if limits are tied."""
    w = np.random.default_rng(seed).standard_normal((3, *shape))
    w = np.float64(np.float32(np.round(w, 1) if ties else w))
    function = jax.jit(project)
    assert calls(function, jnp.float32(w), percent)
    found = function(jnp.float32(w), percent)
    centred = w - w.mean((0, 1, 2))
    # The place of a percentile among the numbers is rounded to a float32, as by XLA.
    fraction, last = np.float32(percent) / np.float32(100), np.float32(w.size - 1)
    places = np.float64([fraction * last, (1 - fraction) * last])
    low, high = np.quantile(np.abs(centred), places / (w.size - 1))
    expected = np.sign(centred) * np.clip(np.abs(centred), low, high)
    # The sign of a weight at the mean is arbitrary.
    distinct = np.abs(centred) > 1e-5
    assert relative_error(np.where(distinct, found, 0), np.where(distinct, expected, 0)) < TOLERANCE


@jax.jit
def exact_code(w, g):
    """Compute standardized weights, code and gradient, in the dtype of w."""
    code, pullback = jax.vjp(siman_kernel, w)
    return standardize(w, (0, 1, 2)), code, pullback(g)[0]


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(kernels, st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_code_by_magnitude(shape, seed, shift):
    rng = np.random.default_rng(seed)
    w = np.float64(np.float32(rng.standard_normal((3, *shape)) + shift))
    g = rng.standard_normal(w.shape)
    code, pullback = jax.vjp(jax.jit(siman_kernel), jnp.float32(w))
    assert calls(siman_kernel, jnp.float32(w))
    with jax.enable_x64(True):
        u, expected_code, expected = exact_code(jnp.asarray(w), jnp.asarray(g))
    magnitude = np.abs(np.asarray(u)).reshape(-1, shape[-1])
    rank = (magnitude.shape[0] - 1) // 2
    median = np.partition(magnitude, rank, axis=0)[rank]
    near = np.abs(magnitude - median).reshape(w.shape) < 1e-5 * (1 + abs(shift))
    np.testing.assert_array_equal(np.where(near, 0, code), np.where(near, 0, expected_code))
    # The median itself is not larger than itself.
    assert np.all((np.asarray(code) > 0).sum((0, 1, 2)) == magnitude.shape[0] - 1 - rank)
    # The gradient may be small compared to g, so rounding is measured relative to g.
    largest = np.max(np.abs(g)) / np.min(w.std((0, 1, 2)))
    if np.min(magnitude) > 1e-5 * (1 + abs(shift)):
        error = np.max(np.abs(np.float64(pullback(jnp.float32(g))[0]) - np.float64(expected)))
        assert error < TOLERANCE * (1 + abs(shift)) * largest


def test_weights_that_are_no_numbers_show():
    w = jnp.ones((3, 3, 4, 20)).at[0, 0, 0, 3].set(jnp.nan)
    projected = project(w, 5.0)
    assert np.isnan(projected[..., 3]).all()
    assert np.isnan(jax.vjp(siman_kernel, w)[1](w)[0][..., 3]).all()


@pytest.mark.slow
def test_seeds_by_vmap_are_what_single_ones_are():
    """Under `vmap` XLA computes everything, including gradients."""
    x, more, g = make_case(2, 6, 6, 8, 8, 3, 1)
    unit = Unit(partial(BinaryConv, 8), "prelu", "input")
    seeds = [unit.init(jax.random.key(seed), x, more) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    mapped = jax.vmap(lambda variables: run_unit(unit, variables, x, more, g))
    assert not calls(mapped, stacked)
    together = mapped(stacked)
    for index, variables in enumerate(seeds):
        alone = run_unit(unit, variables, x, more, g)
        for path, value in jax.tree_util.tree_leaves_with_path(alone):
            if "alpha" in jax.tree_util.keystr(path):
                continue
            other = together
            for key in path:
                other = other[key.key if hasattr(key, "key") else key.idx]
            assert relative_error(other[index], value) < 2 * TOLERANCE


def test_what_the_library_cannot_do_is_left_to_xla():
    x, more, _ = make_case(2, 6, 6, 8, 8, 3, 1)
    unit = Unit(partial(BinaryConv, 8), "prelu", "input")
    variables = unit.init(jax.random.key(0), x, more)
    apply = partial(unit.apply, mutable=["batch_stats"])
    assert calls(apply, variables, x, more)
    with native(False):
        assert not calls(partial(unit.clone().apply, mutable=["batch_stats"]), variables, x, more)
    narrow = partial(unit.clone(dtype="bfloat16").apply, mutable=["batch_stats"])
    text = jax.jit(narrow).lower(variables, jnp.bfloat16(x), jnp.bfloat16(more)).as_text()
    assert "siman_conv" not in text
    for platform in ("cuda", "tpu"):
        lowered = jax.jit(apply).trace(variables, x, more).lower(lowering_platforms=(platform,))
        assert "siman_" not in lowered.as_text()


@pytest.mark.parametrize("allowed", [True, False])
def test_code_for_a_cpu_alone_is_the_same_without_other_branches(allowed):
    x, more, _ = make_case(2, 6, 6, 8, 8, 3, 1)
    unit = Unit(partial(BinaryConv, 8, weight_rule="half_half"), "prelu", "input")
    variables = unit.init(jax.random.key(0), x, more)
    lowered = []
    for for_cpu in (False, True):
        # Not the same function twice, which would be traced once.
        apply = partial(unit.clone().apply, mutable=["batch_stats"])
        with native(allowed, for_cpu=for_cpu):
            traced = jax.jit(apply).trace(variables, x, more)
        assert ("platform_index" in str(traced.jaxpr)) != for_cpu
        lowered.append(traced.lower(lowering_platforms=("cpu",)))
    one, other = (jax.tree.leaves(each.compile()(variables, x, more)) for each in lowered)
    for value, expected in zip(other, one, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_on_several_devices_the_result_is_that_of_one():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    x, more, g = make_case(len(devices), 6, 6, 8, 8, 3, 1)
    unit = Unit(partial(BinaryConv, 8), "prelu", "input")
    variables = unit.init(jax.random.key(0), x, more)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    expected = run_unit(unit, variables, x, more, g)
    found = run_unit(
        unit, jax.device_put(variables, whole), *(jax.device_put(a, sharding) for a in (x, more, g))
    )
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, other) < TOLERANCE


THREADS = """
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
from functools import partial
import jax, numpy as np
from native_units import CASES, Unit, make_case, run_unit
from siman_jax.models.layers import BinaryConv
digest = hashlib.sha256()
for *shape, activation, shortcut, weight_rule, activation_rule in CASES:
    x, more, g = make_case(*shape)
    layer = partial(
        BinaryConv, *shape[4:], weight_rule=weight_rule, activation_rule=activation_rule
    )
    unit = Unit(layer, activation, shortcut)
    rng = np.random.default_rng(0)  # XLA's own draws and sums may depend on the threads
    shapes = jax.eval_shape(unit.init, jax.random.key(0), x, more)
    variables = jax.tree.map(lambda leaf: np.float32(rng.random(leaf.shape)), shapes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(run_unit(unit, variables, x, more, g)):
        if "binary_kernel" in jax.tree_util.keystr(path):
            continue  # the weight rule's derivative is XLA's
        digest.update(np.asarray(leaf).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_one_thread_and_two_give_equal_bits():
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    digests = {
        subprocess.run(
            [sys.executable, "-c", THREADS, threads],
            env=environment, capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


def test_estimators_differ():
    """Each of the library's numbers stands for the right estimator."""
    x = jnp.array([-2.0, -0.75, 0.0, 0.25, 1.5]).reshape(1, 1, 5, 1)
    kernel = jnp.ones((1, 1, 1, 1))
    nothing = jnp.zeros(0)
    for estimator, expected in (
        (ONE, [1, 1, 1, 1, 1]),
        (APPROX, [0, 0.5, 2, 1.5, 0]),
        (STRAIGHT_THROUGH, [0, 1, 1, 1, 0]),
    ):
        geometry = Geometry(1, ((0, 0), (0, 0)), estimator, centred=False)
        function = conv(partial(not_on_a_cpu, geometry), geometry, scaled=False)
        y, pullback = jax.vjp(lambda x: function(x, kernel, nothing), x)  # noqa: B023
        np.testing.assert_array_equal(y.ravel(), [-1, -1, 1, 1, 1])
        np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0].ravel(), expected)
