"""Schedules, the decay mask and the projection, compared with formulas in plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siman_jax.configs import cifar10
from siman_jax.errors import UsageError
from siman_jax.rules.siman import project
from siman_jax.training.config_check import check_config
from siman_jax.training.gradient_floor import gradient_floor
from siman_jax.training.optimizer import build_optimizer, decay_mask, project_binary_kernels
from siman_jax.training.schedules import (
    clip_schedule,
    estimator_schedules,
    learning_rate_schedule,
    linear_scale,
)

EPOCHS, STEPS = 400, 195


@pytest.fixture
def config():
    return cifar10.get_config().optimizer


@pytest.mark.parametrize("epoch", [0, 1, 3, 4, 5, 6, 200, 399])
def test_published_learning_rate(config, epoch):
    schedule = learning_rate_schedule(config, EPOCHS, STEPS)
    if epoch < 5:
        expected = 0.1 * (epoch + 1) / 5
    else:
        expected = 0.05 * (1 + math.cos(math.pi * (epoch - 4) / (EPOCHS - 4)))
    for step in (epoch * STEPS, epoch * STEPS + STEPS - 1):
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, abs=1e-7)
        assert float(clip_schedule(config, EPOCHS, STEPS)(jnp.int32(step))) == pytest.approx(
            15 * (1 - epoch / EPOCHS), rel=1e-6
        )


def test_learning_rate_without_warmup(config):
    config.warmup_epochs = 0
    schedule = learning_rate_schedule(config, 150, 10)
    for epoch in (0, 75, 149):
        expected = 0.05 * (1 + math.cos(math.pi * epoch / 150))
        assert float(schedule(jnp.int32(10 * epoch))) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("staircase", [False, True])
def test_a_warmup_of_two_and_a_half_epochs(config, staircase):
    config.warmup_epochs, config.staircase = 2.5, staircase
    schedule = learning_rate_schedule(config, 150, 10)
    for step in range(40):
        epoch = step // 10 if staircase else step / 10
        if epoch < 1.5:
            expected = 0.1 * (epoch + 1) / 2.5
        else:
            expected = 0.05 * (1 + math.cos(math.pi * (epoch - 1.5) / 148.5))
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, abs=1e-7)


def test_the_learning_rate_grows_with_the_batch(config):
    assert linear_scale(config, 1024) == 1  # no scaling by default
    config.reference_batch_size = 256
    assert linear_scale(config, 1024) == 4
    assert linear_scale(config, 64) == 0.25
    plain = learning_rate_schedule(config, EPOCHS, STEPS)
    scaled = learning_rate_schedule(config, EPOCHS, STEPS, scale=4)
    for step in (0, 4 * STEPS, 200 * STEPS):
        assert float(scaled(jnp.int32(step))) == pytest.approx(4 * float(plain(jnp.int32(step))))


def test_smooth_schedules_meet_the_staircase_at_every_epoch(config):
    steps = jnp.arange(0, EPOCHS * STEPS, STEPS)
    for make in (learning_rate_schedule, clip_schedule):
        config.staircase = True
        stairs = make(config, EPOCHS, STEPS)(steps)
        config.staircase = False
        smooth = make(config, EPOCHS, STEPS)
        np.testing.assert_allclose(smooth(steps), stairs, rtol=1e-4, atol=1e-7)
        assert float(smooth(jnp.int32(STEPS // 2))) != float(smooth(jnp.int32(0)))


def rates(config, steps, epochs=12):
    """The learning rate of 12 epochs of 10 steps at some of these."""
    return np.asarray(learning_rate_schedule(config, epochs, 10)(jnp.asarray(steps)))


@pytest.mark.parametrize("staircase", [True, False])
def test_schedules_are_those_of_optax_after_the_warmup(config, staircase):
    steps, base = np.arange(120), 0.1
    config.update(warmup_epochs=0, staircase=staircase, step_epochs=(4, 9), step_factor=0.2)
    at = jnp.float32(steps // 10 * 10 if staircase else steps)
    for name, same in (
        ("cosine", optax.cosine_decay_schedule(base, 120)),
        ("linear", optax.linear_schedule(base, 0.0, 120)),
        ("step", optax.piecewise_constant_schedule(base, {40: 0.2, 90: 0.2})),
        ("constant", optax.constant_schedule(base)),
    ):
        config.schedule = name
        expected = np.broadcast_to(same(at), steps.shape)
        np.testing.assert_allclose(rates(config, steps), expected, rtol=1e-5, atol=1e-8)


def test_every_schedule_warms_up_likewise(config):
    config.update(warmup_epochs=3, step_epochs=(4, 9), step_factor=0.5)
    ends = {"cosine": 0.05 * (1 + math.cos(math.pi * 9 / 10)), "linear": 0.01, "constant": 0.1}
    for name, end in (ends | {"step": 0.025}).items():
        config.schedule = name
        warming = 0.1 * np.array([1 / 3, 1 / 3, 2 / 3, 1])
        np.testing.assert_allclose(rates(config, [0, 9, 10, 20]), warming, rtol=1e-6)
        np.testing.assert_allclose(rates(config, [110, 119]), [end, end], rtol=1e-5)
    config.schedule = "step"
    np.testing.assert_allclose(rates(config, [39, 40, 89, 90]), [0.1, 0.05, 0.05, 0.025])


def test_estimators_sharpen_by_epoch():
    config = cifar10.get_config().estimator
    for staircase in (True, False):
        schedules = estimator_schedules(config, 10, STEPS, staircase)
        first, later, last = (
            {name: schedule(jnp.int32(step)) for name, schedule in schedules.items()}
            for step in (0, STEPS - 1, 10 * STEPS)
        )
        assert float(first["sharpness"]) == pytest.approx(0.01)
        assert float(first["tau"]) == pytest.approx(0.85)
        assert float(last["sharpness"]) == pytest.approx(10)
        assert float(last["tau"]) == pytest.approx(0.99)
        assert all((first[name] == later[name]) == staircase for name in first)


def params():
    return {
        "conv1": {"kernel": jnp.full((1, 1, 2, 2), 2.0)},
        "block": {
            "conv2": {"binary_kernel": jnp.full((1, 1, 2, 2), 2.0), "alpha": jnp.full(2, 2.0)},
            "bn": {"scale": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)},
        },
    }


def test_decay_spares_binary_leaves_by_name(config):
    mask = decay_mask(params(), config.undecayed)
    assert mask == {
        "conv1": {"kernel": True},
        "block": {
            "conv2": {"binary_kernel": False, "alpha": False},
            "bn": {"scale": True, "bias": True},
        },
    }


def test_sgd_is_coupled_and_not_nesterov(config):
    optimizer = build_optimizer(config, 0.1)
    start = w = params()
    state = optimizer.init(w)
    gradients = {
        "conv1": {"kernel": jnp.full((1, 1, 2, 2), 0.5)},
        "block": {
            "conv2": {"binary_kernel": jnp.full((1, 1, 2, 2), 0.5), "alpha": jnp.full(2, 0.5)},
            "bn": {"scale": jnp.full(2, 0.5), "bias": jnp.full(2, 0.5)},
        },
    }
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, w)
        w = optax.apply_updates(w, updates)
    velocity = 0.5 + 5e-4 * 2.0
    first = 2.0 - 0.1 * velocity
    decayed = first - 0.1 * (0.9 * velocity + 0.5 + 5e-4 * first)
    free = 2.0 - 0.1 * 0.5 - 0.1 * (0.9 * 0.5 + 0.5)
    np.testing.assert_allclose(w["conv1"]["kernel"], np.full((1, 1, 2, 2), decayed), rtol=1e-6)
    np.testing.assert_allclose(w["block"]["conv2"]["alpha"], [free, free], rtol=1e-6)
    assert start["conv1"]["kernel"][0, 0, 0, 0] == 2


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.float32(rng.standard_normal(leaf.shape)), tree)


def steps_of(optimizer, gradients, w):
    """The parameters after a step with each of the gradients."""
    state = optimizer.init(w)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
    return w


def test_adam_adds_the_decay_to_the_gradient(config):
    config.update(name="adam", beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.1)
    gradients = [random_like(params(), seed) for seed in range(3)]
    result = steps_of(build_optimizer(config, 0.05), gradients, params())
    for path, decay in ((("conv1", "kernel"), 0.1), (("block", "conv2", "binary_kernel"), 0.0)):
        w, m, n = 2.0, 0.0, 0.0
        for t, gradient in enumerate(gradients, start=1):
            for name in path:
                gradient = gradient[name]
            g = np.float64(gradient) + decay * w
            m, n = 0.8 * m + 0.2 * g, 0.95 * n + 0.05 * g * g
            w = w - 0.05 * (m / (1 - 0.8**t)) / (np.sqrt(n / (1 - 0.95**t)) + 1e-3)
        leaf = result
        for name in path:
            leaf = leaf[name]
        np.testing.assert_allclose(leaf, w, rtol=1e-5)


def test_adamw_decays_apart_from_the_gradient(config):
    config.update(name="adamw", weight_decay=0.1, nesterov=True)
    gradients = [random_like(params(), seed) for seed in range(3)]
    mask = decay_mask(params(), config.undecayed)
    optaxs = optax.adamw(0.05, weight_decay=0.1, mask=mask, nesterov=True)
    result = steps_of(build_optimizer(config, 0.05), gradients, params())
    with jax.numpy_dtype_promotion("standard"):
        expected = steps_of(optaxs, gradients, params())
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize("bop", [False, True])
def test_gradients_are_clipped_by_their_norm_over_all_leaves(config, bop):
    config.update(momentum=0.0, weight_decay=0.1, clip_norm=2.0, bop=bop)
    w = params()
    large = random_like(w, 0)
    norm = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(large)))
    assert norm > 2
    for gradient, factor in ((large, 2 / norm), (jax.tree.map(lambda x: x / 9, large), 1 / 9)):
        updates, _ = (optimizer := build_optimizer(config, 0.1)).update(
            gradient, optimizer.init(w), w
        )
        expected = -0.1 * (factor * np.asarray(large["conv1"]["kernel"]) + 0.1 * 2.0)
        np.testing.assert_allclose(updates["conv1"]["kernel"], expected, rtol=1e-5)
        alpha = -0.1 * factor * np.asarray(large["block"]["conv2"]["alpha"])
        np.testing.assert_allclose(updates["block"]["conv2"]["alpha"], alpha, rtol=1e-5)


def test_the_published_optimizer_has_the_state_that_earlier_checkpoints_hold(config):
    mask = decay_mask(params(), config.undecayed)
    before = optax.chain(optax.add_decayed_weights(5e-4, mask), optax.sgd(0.1, 0.9))
    now = build_optimizer(config, 0.1)
    paths = [
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        for state in (before.init(params()), now.init(params()))
    ]
    assert paths[0] == paths[1]


def test_decay_of_kernels_alone(config):
    config.kernel_decay = 0.05
    optimizer = build_optimizer(config, 0.1)
    w = params()
    zeros = jax.tree.map(jnp.zeros_like, w)
    updates, _ = optimizer.update(zeros, optimizer.init(w), w)
    np.testing.assert_allclose(updates["block"]["conv2"]["binary_kernel"], -0.1 * 0.05 * 2.0)
    assert not updates["block"]["conv2"]["alpha"].any()
    np.testing.assert_allclose(updates["conv1"]["kernel"], -0.1 * 5e-4 * 2.0, rtol=1e-6)


def raised_in_numpy(g, w, share):
    """OvSW's scaling, filter by filter."""
    g = np.array(g, np.float64)
    for c in range(g.shape[-1]):
        norm = max(np.linalg.norm(g[..., c]), 1e-6)
        least = share * max(np.linalg.norm(np.float64(w[..., c])), 1e-3)
        if norm < least:
            g[..., c] *= least / norm
    return g


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (5, 6)])
def test_small_gradients_of_filters_are_raised_to_the_floor(shape):
    rng = np.random.default_rng(0)
    w, g = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    g *= np.float32([1, 1e-2, 1e-4, 1e-8, 0, 1e-30])
    w *= np.float32([1, 1, 1, 1, 1, 1e-6])
    optimizer = gradient_floor(0.04)
    raised, state = jax.jit(optimizer.update)(jnp.asarray(g), optimizer.init(w), w)
    np.testing.assert_allclose(raised, raised_in_numpy(g, w, 0.04), rtol=1e-5)
    np.testing.assert_array_equal(raised[..., 0], g[..., 0])  # large enough
    ratio = np.linalg.norm(raised[..., 2]) / np.linalg.norm(w[..., 2])
    assert ratio == pytest.approx(0.04, rel=1e-5)
    assert not jax.tree.leaves(state)  # nothing to save


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_floor_is_for_binary_kernels_after_clipping_and_before_decay(config, name):
    config.update(name=name, clip_norm=1e-3, gradient_floor=0.1, kernel_decay=0.5)
    w, g = params(), random_like(params(), 0)
    norm = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(g)))
    clipped = jax.tree.map(lambda x: np.float64(x) * 1e-3 / norm, g)
    own = raised_in_numpy(clipped["block"]["conv2"]["binary_kernel"], np.full((1, 1, 2, 2), 2), 0.1)
    expected = {
        ("block", "conv2", "binary_kernel"): own + 0.5 * 2,
        ("block", "conv2", "alpha"): clipped["block"]["conv2"]["alpha"],
        ("conv1", "kernel"): clipped["conv1"]["kernel"] + 5e-4 * 2,
    }
    optimizer = build_optimizer(config, 0.1)
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    both = [jax.tree.map(lambda x: jnp.stack([x * 0 + 1, x]), tree) for tree in (g, w)]
    mapped, _ = jax.vmap(optimizer.update)(both[0], jax.vmap(optimizer.init)(both[1]), both[1])
    for path, gradient in expected.items():
        leaf, of_seed = updates, mapped
        for part in path:
            leaf, of_seed = leaf[part], of_seed[part]
        if name == "adam":
            gradient = gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(leaf, -0.1 * gradient, rtol=1e-5)
        np.testing.assert_allclose(of_seed[1], leaf, rtol=1e-6)


def test_a_floor_without_gradients_of_binary_kernels_is_refused():
    for weight_rule, bop, message in (
        ("real", False, "weight_rule is 'real'. It acts on binary kernels alone"),
        ("bnn", True, "bop is True. Bop averages"),
    ):
        whole = cifar10.get_config()
        whole.optimizer.update(gradient_floor=0.04, bop=bop)
        whole.model.weight_rule = weight_rule
        with pytest.raises(UsageError, match=message):
            check_config(whole)


def test_only_binary_kernels_are_projected():
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 4, 2)), jnp.float32)
    tree = {"a": {"binary_kernel": kernel, "alpha": kernel[0, 0, 0]}, "b": {"kernel": kernel}}
    projected = project_binary_kernels(tree, 10.0)
    np.testing.assert_array_equal(projected["a"]["binary_kernel"], project(kernel, 10.0))
    np.testing.assert_array_equal(projected["a"]["alpha"], tree["a"]["alpha"])
    np.testing.assert_array_equal(projected["b"]["kernel"], kernel)
