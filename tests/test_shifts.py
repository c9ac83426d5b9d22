"""Shifts, pooled shortcuts and no last norm, against NumPy; and networks with all three."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cli import call
from flax.traverse_util import flatten_dict
from small_networks import trained
from small_runs import leaves_of, small_config

import siman_jax
from siman_jax.data import load_dataset
from siman_jax.devices.mesh import by_example, make_mesh, replicated
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.export import main as export
from siman_jax.models import NETWORKS, VARIANTS, build_model
from siman_jax.models.activations import RPReLU, Shift
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm, finish
from siman_jax.models.resnet import TwoShortcutBlock, pooled_shortcut
from siman_jax.models.transfer import transfer
from siman_jax.native import library
from siman_jax.native.dispatch import native
from siman_jax.runs.train import evaluate_run, train
from siman_jax.stop import Preempted
from siman_jax.training.optimizer import decay_mask
from siman_jax.training.seeds_together import over_seeds
from siman_jax.training.step import create_state, train_step

EPSILON = 1e-5


def draw(rng, *shape):
    return rng.standard_normal(shape)


def test_values_and_gradients_are_those_of_the_closed_form(x64):
    rng = np.random.default_rng(0)
    x, g = draw(rng, 4, 3, 3, 5), draw(rng, 4, 3, 3, 5)
    before, slope, after = (np.float32(draw(rng, 5)) for _ in range(3))
    params = {"before": {"shift": before}, "prelu": {"slope": slope}, "after": {"shift": after}}
    params = jax.tree.map(jnp.asarray, params)
    y, pullback = jax.vjp(lambda p, x: RPReLU().apply({"params": p}, x), params, x)
    gradients, dx = pullback(jnp.asarray(g))
    moved = x + before
    factor = np.where(moved > 0, 1, slope)
    np.testing.assert_allclose(y, factor * moved + after, rtol=1e-12)
    np.testing.assert_allclose(dx, g * factor, rtol=1e-12)
    axes = (0, 1, 2)
    for name, leaf, expected in (
        ("before", "shift", (g * factor).sum(axes)),
        ("prelu", "slope", (g * np.minimum(moved, 0)).sum(axes)),
        ("after", "shift", g.sum(axes)),
    ):
        np.testing.assert_allclose(gradients[name][leaf], expected, rtol=1e-5)  # float32 leaves


def test_a_shift_moves_the_threshold_and_learns_by_the_sign_estimator(x64):
    """Of a 1x1 convolution, whose sums NumPy computes as a product of matrices."""
    rng = np.random.default_rng(1)
    x, g = 0.7 * draw(rng, 6, 4, 4, 8), draw(rng, 6, 4, 4, 3)
    layer = BinaryConv(3, kernel_size=1, activation_rule="approx_sign", dtype=jnp.float64)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    bits = rng.choice([0, 1], (1, 1, 8, 3))
    shift = np.float32(0.3 * draw(rng, 8))

    def apply(shift):
        moved = Shift().apply({"params": {"shift": shift}}, jnp.asarray(x))
        return layer.apply({**variables, "bits": {"binary_kernel": jnp.asarray(bits)}}, moved)

    y, pullback = jax.vjp(apply, jnp.asarray(shift))
    alpha, kernel = np.float64(variables["params"]["alpha"]), 2.0 * bits[0, 0] - 1
    moved = x + np.float64(shift)
    np.testing.assert_allclose(y, np.where(moved >= 0, 1.0, -1.0) @ kernel * alpha, rtol=1e-12)
    to_signs = (g * alpha) @ kernel.T
    expected = (to_signs * np.maximum(2 - 2 * abs(moved), 0)).sum((0, 1, 2))
    np.testing.assert_allclose(pullback(jnp.asarray(g))[0], expected, rtol=1e-5)


class Joined(nn.Module):
    """A convolution of shifted signs, its norm and an RPReLU, in one call or in three."""

    joined: bool
    shortcut: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, more):
        conv = BinaryConv(16, activation_rule="approx_sign", dtype=self.dtype, name="conv")
        y = conv.product(Shift(name="shift")(x))
        shortcut = {"none": None, "input": x, "other": more}[self.shortcut]
        norm, rprelu = BatchNorm(dtype=self.dtype, name="norm"), RPReLU(name="rprelu")
        if self.joined:
            return norm(y, True, shortcut, rprelu)
        return rprelu(finish(norm(y, True), shortcut, lambda z: z))


@pytest.mark.parametrize("uses_library", [True, False])
@pytest.mark.parametrize("shortcut", ["none", "input", "other"])
def test_an_rprelu_joined_to_its_norm_is_that_after_it(shortcut, uses_library):
    """Values, statistics and all gradients, compared with separate layers by XLA in float64."""
    if uses_library and not library.variants():
        pytest.skip("the library is not built")
    rng = np.random.default_rng(3)
    x, more, g = (np.float32(draw(rng, 3, 6, 5, 16)) for _ in range(3))
    unit = Joined(True, shortcut)
    variables = unit.init(jax.random.key(0), x, more)
    variables = jax.tree.map(
        lambda leaf: np.float32(leaf + 0.3 * draw(rng, *leaf.shape)), variables
    )
    variables["batch_stats"] = {"norm": {"mean": np.zeros(16, "f4"), "var": np.ones(16, "f4")}}

    def run(unit, variables, x, more, g):
        def apply(params, x, more):
            y, updated = unit.apply({**variables, "params": params}, x, more, mutable="batch_stats")
            return jnp.sum(y * g), (y, updated)

        with native(uses_library):
            run = jax.jit(jax.value_and_grad(apply, (0, 1, 2), has_aux=True))
            assert ("siman_norm" in run.lower(variables["params"], x, more).as_text()) == (
                uses_library and unit.dtype == "float32" and unit.joined
            )
            (_, rest), gradients = run(variables["params"], x, more)
        return rest, gradients

    found = run(unit, variables, x, more, g)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (variables, x, more, g))
        expected = run(Joined(False, shortcut, "float64"), *wide)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            scale = max(float(np.abs(b).max()), 1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-5 * scale)


def norm(x, params, stats):
    scaled = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
    return scaled * params["scale"] + params["bias"]


def rprelu(x, params):
    moved = x + params["before"]["shift"]
    return np.where(moved > 0, moved, params["prelu"]["slope"] * moved) + params["after"]["shift"]


def signs_convolved(x, bits, alpha, strides):
    """A 3x3 convolution of the signs of x, about 0; padding contributes nothing."""
    bits = np.asarray(bits)
    padded = np.pad(np.where(x >= 0, 1.0, -1.0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (-(-size // strides) for size in x.shape[1:3])
    y = np.zeros((len(x), height, width, bits.shape[-1]))
    for row in range(height):
        for column in range(width):
            top, left = row * strides, column * strides
            window = padded[:, top : top + 3, left : left + 3]
            y[:, row, column] = np.einsum("nhwi,hwio->no", window, 2.0 * bits - 1)
    return y * alpha


@pytest.mark.parametrize("size", [4, 5])
def test_a_block_computes_what_numpy_does(size, x64):
    block = TwoShortcutBlock(
        features=6,
        strides=2,
        conv=partial(BinaryConv, activation_rule="approx_sign", dtype=jnp.float64),
        shortcut=pooled_shortcut,
        norm=partial(BatchNorm, dtype=jnp.float64),
        shifts=True,
    )
    rng = np.random.default_rng(2)
    x = draw(rng, 2, size, size, 4)
    variables = block.init(jax.random.key(0), jnp.asarray(x), False)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(abs(draw(rng, *leaf.shape)) + 0.1, leaf.dtype), variables
    )
    bits = {
        "conv1": {"binary_kernel": jnp.asarray(rng.choice([0, 1], (3, 3, 4, 6)))},
        "conv2": {"binary_kernel": jnp.asarray(rng.choice([0, 1], (3, 3, 6, 6)))},
    }
    found = block.apply({**variables, "bits": bits}, jnp.asarray(x), False)

    p, s = (jax.tree.map(np.float64, variables[name]) for name in ("params", "batch_stats"))
    half = -(-size // 2)
    pooled = np.array(
        [
            [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in range(half)]
            for i in range(half)
        ]
    ).transpose(2, 0, 1, 3)
    shortcut = norm(pooled @ p["shortcut_conv"]["kernel"][0, 0], p["shortcut_bn"], s["shortcut_bn"])
    moved = x + p["shift1"]["shift"]
    y = signs_convolved(moved, bits["conv1"]["binary_kernel"], p["conv1"]["alpha"], 2)
    middle = rprelu(norm(y, p["bn1"], s["bn1"]) + shortcut, p["prelu1"])
    moved = middle + p["shift2"]["shift"]
    y = signs_convolved(moved, bits["conv2"]["binary_kernel"], p["conv2"]["alpha"], 1)
    expected = rprelu(norm(y, p["bn2"], s["bn2"]) + middle, p["prelu2"])
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_without_the_last_norm_means_are_classified(name):
    model, variables, images = trained(name, jnp.float32, width=8)
    assert "bn2" not in variables["params"]
    logits, state = model.apply(
        variables, images, train=False, capture_intermediates=lambda block, _: True
    )
    last = list(state["intermediates"])
    last = max(name for name in last if name.startswith("layer"))
    features = np.asarray(state["intermediates"][last]["__call__"][0]).mean((1, 2))
    fc = jax.tree.map(np.asarray, variables["params"]["fc"])
    np.testing.assert_allclose(logits, features @ fc["kernel"] + fc["bias"], rtol=1e-4, atol=1e-4)


def leaves(name, **arguments):
    model = build_model(name, 10, width=8, **arguments)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


RESIDUAL = ["cifar.resnet20_1w1a", "cifar.resnet18_1w1a", "imagenet.resnet18_1w1a"]


@pytest.mark.parametrize("name", RESIDUAL)
def test_each_option_alone_adds_or_removes_its_own_leaves(name):
    plain = leaves(name)
    shifted, unnormed = leaves(name, shifts=True), leaves(name, last_norm=False)
    hard_tanh = name == "cifar.resnet18_1w1a"
    assert {path[-1] for path in shifted.keys() - plain.keys()} == ({"shift", "slope"})
    assert {path[-1] for path in plain.keys() - shifted.keys()} == (
        set() if hard_tanh else {"slope"}
    )
    assert {path[1] for path in plain.keys() - unnormed.keys()} == {"bn2"}
    assert unnormed.keys() < plain.keys()
    pooled = leaves(name, pooled_shortcuts=True)
    changed = pooled.items() ^ plain.items()
    assert all("shortcut" in path[2] for path, _ in changed)
    assert bool(changed) == (name != "imagenet.resnet18_1w1a")


def test_networks_without_an_option_refuse_it():
    for name, option, value in (
        ("cifar.vgg_small_1w1a", "shifts", True),
        ("cifar.vgg_small_1w1a", "last_norm", False),
        ("cifar.react20_1w1a", "pooled_shortcuts", True),
    ):
        with pytest.raises(UsageError, match=f"{name} has no option {option}; leave"):
            build_model(name, 10, **{option: value})
    everything = {"shifts": False, "pooled_shortcuts": False, "last_norm": True}
    for name in NETWORKS:
        build_model(name, 10, **everything)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_second_step_takes_everything_of_the_first(name):
    """Of the two steps: binary activations with real weights, then both binary."""
    rules = {"activation_rule": "approx_sign"}

    def variables(seed, **more):
        model = build_model(name, 10, width=8, **rules, **more)
        return model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)), train=False)

    first, second = variables(0, weight_rule="real"), variables(1)
    result = transfer(second, first, "half_half", lambda: pytest.fail("shapes differ"))
    assert not result.new
    assert len(result.made_binary) == (18 if "20" in name else 16)
    for path, leaf in flatten_dict(result.variables).items():
        if path[-1] != "alpha":
            origin = tuple(part.replace("binary_kernel", "kernel") for part in path)
            np.testing.assert_array_equal(leaf, flatten_dict(first)[origin])


def test_decay_of_shifts_is_a_choice():
    params = {"shift1": {"shift": 0.0}, "conv1": {"binary_kernel": 0.0}}
    assert decay_mask(params, ("binary_kernel", "alpha"))["shift1"] == {"shift": True}
    undecayed = ("binary_kernel", "alpha", "shift")
    assert not any(jax.tree.leaves(decay_mask(params, undecayed)))


@pytest.mark.slow
def test_seeds_together_and_devices_train_as_one_alone():
    model = build_model("cifar.react20_1w1a", 10, width=4).clone(stages=(1, 1))
    optimizer = optax.sgd(0.1)
    schedules = {"clip_percent": lambda step: jnp.float32(15)}
    step = partial(train_step, model=model, optimizer=optimizer, schedules=schedules)
    rng = np.random.default_rng(4)
    images = jnp.float32(rng.standard_normal((8, 8, 8, 3)))
    labels = jnp.asarray(rng.integers(0, 10, 8), jnp.int32)
    one, other = (create_state(model, optimizer, jax.random.key(s), (8, 8, 3)) for s in (0, 1))
    alone, _ = jax.jit(step)(one, images, labels)
    assert np.abs(alone.params["layer2_0"]["shift1"]["shift"]).max() > 0

    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), other, one).replace(step=one.step)
    batch = jnp.stack([images] * 2), jnp.stack([labels] * 2)
    together, _ = jax.jit(over_seeds(step, both, 2))(both, *batch)
    mesh = make_mesh(4)
    batch = jax.device_put((images, labels), by_example(mesh))
    spread, _ = jax.jit(step)(jax.device_put(one, replicated(mesh)), *batch)
    for a, b, c in zip(
        *(jax.tree.leaves(state.params) for state in (alone, together, spread)), strict=True
    ):
        np.testing.assert_allclose(b[1], a, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(c, a, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_packs(tmp_path, monkeypatch):
    config = small_config()
    config.model.name = "cifar.react20_1w1a"
    config.epochs = 2
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole, make_mesh(1))
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 7)
        with pytest.raises(Preempted, match="step 7 is saved"):
            train(config, stopped, make_mesh(1))
    train(config, stopped, make_mesh(1))
    steps = max(int(folder.name) for folder in (whole / "checkpoints").iterdir())
    expected, found = leaves_of(whole, steps), leaves_of(stopped, steps)
    assert any("shift" in name for name in expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    file = tmp_path / "react20.safetensors"
    call(export, whole, f"--out={file}")
    packed, test = siman_jax.load(file), load_dataset(config.data).test
    hits = np.argmax(packed(test.images), axis=1) == test.labels
    evaluated = evaluate_run(config, whole, make_mesh(1))["last"]
    assert 100 * hits.mean() == pytest.approx(evaluated["top1"])
    assert packed.notes.accuracy["top1"] == evaluated["top1"]
