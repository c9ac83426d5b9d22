"""Tests of layers and networks: exactness, shapes, initial values, twins, arguments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from siman_jax.errors import UsageError
from siman_jax.models import NETWORKS, build_model
from siman_jax.models.activations import PReLU
from siman_jax.models.layers import BinaryConv, BinaryDense
from siman_jax.models.leaves import BINARY_KERNEL, BITS, LEAF_NAMES, binary_bits
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.rules import WEIGHT_RULES
from siman_jax.rules.siman import siman_kernel

IMAGE_SIZES = {"cifar": 32, "imagenet": 224}


def abstract_init(name, num_classes=10, **arguments):
    size = IMAGE_SIZES[name.partition(".")[0]]
    model = build_model(name, num_classes, **arguments)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return model, jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_networks_give_float32_logits_and_parameters(name, dtype):
    size = IMAGE_SIZES[name.partition(".")[0]]
    model, variables = abstract_init(name, 7, dtype=dtype, width=8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, updated = jax.eval_shape(apply, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert jax.tree.map(lambda x: x.shape, dict(updated)) == jax.tree.map(
        lambda x: x.shape, {"batch_stats": variables["batch_stats"]}
    )


def test_leaf_names_are_those_of_the_networks():
    networks = [(name, "half_half") for name in NETWORKS]
    networks += [("cifar.resnet20_1w1a", rule) for rule in WEIGHT_RULES]
    leaves = [
        abstract_init(name, width=8, weight_rule=rule)[1]["params"] for name, rule in networks
    ]
    assert {path[-1] for params in leaves for path in flatten_dict(params)} == set(LEAF_NAMES)


@pytest.mark.parametrize("name", NETWORKS)
def test_twins_have_the_same_layers_but_no_binary_leaf(name):
    _, binary = abstract_init(name)
    _, twin = abstract_init(name, weight_rule="real", activation_rule="real")
    binary, twin = flatten_dict(binary["params"]), flatten_dict(twin["params"])
    assert not any(path[-1] in (BINARY_KERNEL, "alpha") for path in twin)
    shapes = {
        (*path[:-1], path[-1].replace(BINARY_KERNEL, "kernel")): leaf.shape
        for path, leaf in binary.items()
        if path[-1] != "alpha"
    }
    assert shapes == {path: leaf.shape for path, leaf in twin.items()}


def test_the_two_resnet18_differ():
    _, cifar = abstract_init("cifar.resnet18_1w1a")
    _, imagenet = abstract_init("imagenet.resnet18_1w1a")
    assert BINARY_KERNEL in cifar["params"]["layer2_0"]["shortcut_conv"]
    assert "kernel" in imagenet["params"]["layer2_0"]["shortcut_conv"]


def test_unknown_network_names_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean 'cifar\.resnet20_1w1a'"):
        build_model("cifar.resnet21_1w1a", 10)
    with pytest.raises(UsageError, match="activation rule"):
        abstract_init("cifar.resnet20_1w1a", activation_rule="sign")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 64, 1024])
def test_sums_of_plus_minus_one_are_exact_in_bfloat16(channels):
    """Sums of up to 9,216 terms, far above 256, up to which bfloat16 holds all integers."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, channels))
    layer = BinaryConv(8, activation_rule="approx_sign", dtype=jnp.bfloat16)
    bits = jax.random.bernoulli(jax.random.key(1), shape=(3, 3, channels, 8))
    seen = []

    def record(*args, **kwargs):
        seen.append(conv(*args, **kwargs))
        return seen[-1]

    conv = lax.conv_general_dilated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lax, "conv_general_dilated", record)
        params = {BINARY_KERNEL: jnp.ones((3, 3, channels, 8)), "alpha": jnp.ones(8)}
        layer.apply({"params": params, BITS: {BINARY_KERNEL: bits}}, x)
    (y,) = seen
    exact = conv(
        jnp.where(x >= 0, 1, -1),
        jnp.where(bits, 1, -1),
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, exact)


@pytest.mark.slow
def test_bfloat16_trains_with_bfloat16_cotangents():
    layer = BinaryConv(8, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4), jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x)
    gradients, dx = jax.grad(lambda v, x: layer.apply(v, x).astype(jnp.float32).sum(), (0, 1))(
        variables, x
    )
    assert dx.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_padding_contributes_nothing():
    """A corner of a 3x3 convolution sees four taps; padding with -1 would change its sum."""
    layer = BinaryConv(1, activation_rule="approx_sign")
    params = {BINARY_KERNEL: jnp.ones((3, 3, 1, 1)), "alpha": jnp.ones(1)}
    bits = {BINARY_KERNEL: jnp.ones((3, 3, 1, 1))}
    y = layer.apply({"params": params, BITS: bits}, jnp.ones((1, 3, 3, 1)))
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6, 4], [6, 9, 6], [4, 6, 4]])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernel_size": (3, 3)}, r"kernel_size of a BinaryConv is \(3, 3\); expected a single"),
        ({"strides": 0}, "strides of a BinaryConv is 0"),
        ({"features": 2.0}, r"features of a BinaryConv is 2\.0"),
    ],
)
def test_a_convolution_takes_single_numbers(sizes, message):
    layer = BinaryConv(**{"features": 2, **sizes})
    with pytest.raises(UsageError, match=message):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


def test_binary_dense_is_a_1x1_convolution():
    x = jax.random.normal(jax.random.key(0), (6, 20))
    dense, conv = BinaryDense(5), BinaryConv(5, kernel_size=1)
    params = dense.init(jax.random.key(1), x)["params"]
    as_conv = {**params, BINARY_KERNEL: params[BINARY_KERNEL][None, None]}
    np.testing.assert_allclose(
        dense.apply({"params": params}, x),
        conv.apply({"params": as_conv}, x[:, None, None])[:, 0, 0],
        rtol=1e-6,
    )


def test_binary_weights_may_meet_real_activations():
    x = jax.random.normal(jax.random.key(0), (6, 20))
    layer = BinaryDense(5, activation_rule="real")
    params = layer.init(jax.random.key(1), x)["params"]
    expected = x @ siman_kernel(params[BINARY_KERNEL]) * params["alpha"][None]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-5)


def test_batch_norm_keeps_the_unbiased_variance():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 5)) * 3 + 1
    layer = BatchNorm()
    variables = layer.init(jax.random.key(1), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    y, updated = layer.apply(variables, x, True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 5), expected, atol=1e-5)


def test_prelu():
    x = jnp.array([[-2.0, 3.0], [4.0, -1.0]])
    layer = PReLU()
    np.testing.assert_array_equal(
        layer.apply({"params": {"slope": jnp.array([0.5, 0.25])}}, x), [[-1, 3], [4, -0.25]]
    )


def init(name, **arguments):
    model = build_model(name, 10, **arguments)
    compiled = jax.jit(
        partial(model.init, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return compiled(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


@pytest.mark.slow
def test_initial_values_follow_the_authors():
    resnet20 = init("cifar.resnet20_1w1a")
    conv = resnet20["layer3_1"]["conv2"]
    assert conv[BINARY_KERNEL].std() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert conv["alpha"].mean() == pytest.approx(0.5 / 24, rel=0.02)
    assert resnet20["fc"]["kernel"].std() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert jnp.abs(resnet20["fc"]["bias"]).max() <= 1 / 8

    vgg = init("cifar.vgg_small_1w1a", width=16)
    assert vgg["conv4"][BINARY_KERNEL].std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert vgg["fc"]["kernel"].std() == pytest.approx(0.01, rel=0.05)
    assert not vgg["fc"]["bias"].any()

    resnet18 = init("cifar.resnet18_1w1a", width=16)
    kernel = resnet18["layer2_1"]["conv1"][BINARY_KERNEL]
    assert jnp.abs(kernel).max() == pytest.approx((9 * 32) ** -0.5, rel=0.01)
    assert kernel.std() == pytest.approx((3 * 9 * 32) ** -0.5, rel=0.02)


def test_imagenet_blocks_start_as_their_shortcuts():
    for path, leaf in flatten_dict(init("imagenet.resnet18_1w1a", width=8)).items():
        if path[-1] == "scale":
            expected = 1 if path == ("bn2", "scale") else np.float32(1e-8)
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, expected))


def test_evaluation_recomputes_bits_unless_they_are_given():
    x = jax.random.normal(jax.random.key(0), (4, 16))
    layer = BinaryDense(8)
    params = layer.init(jax.random.key(1), x)["params"]
    bits = binary_bits({"layer": params}, "half_half")["layer"]
    recomputed = layer.apply({"params": params}, x)
    np.testing.assert_array_equal(
        layer.apply({"params": params, BITS: {BINARY_KERNEL: bits}}, x), recomputed
    )
    other = layer.apply({"params": params, BITS: {BINARY_KERNEL: ~bits}}, x)
    np.testing.assert_allclose(other, -recomputed)
