"""Tests of the code for accelerators without one: lowered programs, and a simpler step."""

import math
import re
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import Array, lax
from parameters import first_quickly

from benchmarks.compile_ahead import lower_step
from siman_jax import rules
from siman_jax.configs import cifar10
from siman_jax.models import MODELS, build_model, norm_layer, product
from siman_jax.models.batch_norm import Affine, KeptSums, Moments, Norm, Operands
from siman_jax.models.layers import BinaryConv
from siman_jax.models.leaves import BINARY_KERNEL, binary_bits
from siman_jax.rules.estimators import approx_sign
from siman_jax.rules.kernels_together import divided
from siman_jax.rules.standardize import standardize
from siman_jax.training import step
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import create_state, train_step


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("network", first_quickly(MODELS))
def test_step_lowers_for_accelerators(network, dtype, platform):
    """There is no loop, no call of the CPU's library, and no array of doubles."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    lowered = lower_step(network, "half_half", 2, dtype, mesh, lowering_platforms=(platform,))
    program = lowered.as_text()
    assert "stablehlo.while" not in program
    assert "siman_" not in program
    assert not re.search(r"tensor<[\dx]*f64>", program)
    # In each matrix of kernels, one barrier for the magnitudes that have percentiles, and one for
    # those that have medians.
    barriers = 2 * len(divided(kernel_sizes(network)))
    assert program.count("stablehlo.optimization_barrier") == barriers


def kernel_sizes(network):
    """Lengths and columns of all binary kernels."""
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    model = build_model(network, num_classes=10)
    init = partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    leaves = flatten_dict(params).items()
    shapes = [leaf.shape for path, leaf in leaves if path[-1] == BINARY_KERNEL]
    return [(math.prod(shape[:-1]), shape[-1]) for shape in shapes]


@pytest.mark.parametrize(
    ("channels", "kept"), [(3, np.int8), (15, np.int16), (28, np.int8), (30, np.int16)]
)
def test_largest_sums_are_kept_exactly(channels, kept):
    """With an even number of channels, half a sum is kept: 126 and 135 for the last two."""
    layer = BinaryConv(2, weight_rule="bnn", dtype=jnp.bfloat16, activation_rule="ste_sign")
    images = jnp.ones((1, 4, 4, channels), jnp.bfloat16)
    for sign in (1, -1):
        kernel = jnp.full((3, 3, channels, 2), float(sign))
        params = {"params": {BINARY_KERNEL: kernel}}
        product = layer.apply(params, images, method="product")
        sums = product.sums.forward(product.operands)
        assert sums.dtype == kept
        found = product.sums.read(sums, jnp.float32)[0, :, :, 0]
        assert found[1, 1] == sign * 9 * channels
        assert found[0, 0] == sign * 4 * channels


def plain_kernel(kernel: Array, rule: str = "half_half", bits: Array | None = None) -> Array:
    """Do what `siman.siman_kernel` does, by sorting, differentiated by JAX."""
    u = standardize(kernel, range(kernel.ndim - 1))
    magnitude = jnp.abs(u).reshape(-1, u.shape[-1])
    median = jnp.sort(magnitude, axis=0)[(len(magnitude) - 1) // 2]
    code = jnp.where(magnitude > median[None], 1.0, -1.0).reshape(u.shape)
    # Exactly +-1: max pools compare sums, and rounding must not choose between equal ones.
    return code + (jnp.abs(u) - lax.stop_gradient(jnp.abs(u)))


def plain_project(params: dict, percent: Array) -> dict:
    """Do what `optimizer.project_binary_kernels` does, by `jnp.percentile`."""

    def project(path: tuple, kernel: Array) -> Array:
        if path[-1].key != BINARY_KERNEL:
            return kernel
        centred = kernel - jnp.mean(kernel, (0, 1, 2))[None, None, None]
        magnitude = jnp.abs(centred)
        low, high = jnp.percentile(magnitude, jnp.stack([percent, 100 - percent]))
        return jnp.sign(centred) * jnp.clip(magnitude, low, high)

    return jax.tree_util.tree_map_with_path(project, params)


def plain_norm(norm: Norm, y: Array, affine: Affine, near: Array) -> tuple[Array, Moments]:
    """Do what `batch_norm.batch_norm` does, in two passes, differentiated by JAX."""
    mean = jnp.mean(y, range(y.ndim - 1))
    spread = lambda v: v.reshape((1,) * (y.ndim - 1) + (-1,)).astype(y.dtype)  # noqa: E731
    var = jnp.mean(jnp.square(y - spread(mean)), range(y.ndim - 1))
    z = (y - spread(mean)) / jnp.sqrt(spread(var) + norm.epsilon)
    z = z * spread(affine.gamma) + spread(affine.beta)
    z = z if affine.shortcut is None else z + affine.shortcut
    activate = {
        "identity": lambda z: z,
        "relu": lambda z: jnp.where(z > 0, z, 0),
        "prelu": lambda z: jnp.where(z > 0, z, spread(affine.slopes) * z),
        "hard_tanh": lambda z: jnp.where(jnp.abs(z) <= 1, z, jnp.sign(z)),
    }[norm.activation]
    return activate(z), Moments(mean[None], var[None])


def plain_product(sums: KeptSums, operands: Operands) -> Array:
    """Do what `batch_norm.scaled_product` does, differentiated by JAX."""
    y = sums.multiply(operands.x, operands.kernel)
    return y if operands.alpha is None else y * operands.alpha.astype(y.dtype)[None, None, None]


def plain_product_norm(
    sums: KeptSums, norm: Norm, operands: Operands, affine: Affine, near: Array
) -> tuple[Array, Moments]:
    """Do what `batch_norm.product_norm` does, differentiated by JAX."""
    return plain_norm(norm, plain_product(sums, operands), affine, near)


def plainly(function):
    """Trace a function of the step with every hand-written derivative replaced by JAX's."""

    def traced(*arguments):
        rule = rules.WeightRule(plain_kernel, "siman", alpha="mean magnitude", projected=True)
        activation = rules.ActivationRule(lambda x: approx_sign(standardize(x, range(1, x.ndim))))
        with (
            mock.patch.dict(rules.WEIGHT_RULES, {"half_half": rule}),
            mock.patch.dict(rules.ACTIVATION_RULES, {"siman": activation}),
            mock.patch.object(step, "project_binary_kernels", plain_project),
            mock.patch.object(norm_layer, "batch_norm", plain_norm),
            mock.patch.object(product, "scaled_product", plain_product),
            mock.patch.object(norm_layer, "product_norm", plain_product_norm),
        ):
            return function(*arguments)

    return traced


@pytest.mark.slow
@pytest.mark.parametrize("network", MODELS)
def test_ten_steps_are_those_of_the_plain_formulas(network, x64):
    """In float64 all bits are equal, and parameters are equal up to rounding.

    The simpler step sorts, computes variances in two passes, and leaves all derivatives except
    those of estimators to JAX.
    """
    size, batch = (16, 6) if network.startswith("cifar") else (32, 4)
    model = build_model(network, 10, width=8, dtype=jnp.float64)
    optimizer = build_optimizer(cifar10.get_config().optimizer, 0.05)
    quickly = {"xla_backend_optimization_level": 0}
    create = partial(create_state, model, optimizer, image_shape=(size, size, 3))
    start = jax.jit(create, compiler_options=quickly)(jax.random.key(0))
    start = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, start
    )
    one = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedules={"clip_percent": lambda step: 15 - step.astype(jnp.float64)},
    )
    ends = []
    for function in (one, plainly(one)):
        run, state, rng = (
            jax.jit(function, compiler_options=quickly),
            start,
            np.random.default_rng(0),
        )
        for _ in range(10):
            images = rng.standard_normal((batch, size, size, 3))
            state, _ = run(state, images, rng.integers(0, 10, batch).astype(np.int32))
        ends.append(state)
    ours, plain = ends
    for name, bits in binary_bits(ours.params, "half_half").items():
        np.testing.assert_array_equal(bits, binary_bits(plain.params, "half_half")[name], name)
    expected = flatten_dict({"params": plain.params, "batch_stats": plain.batch_stats})
    for path, leaf in flatten_dict(
        {"params": ours.params, "batch_stats": ours.batch_stats}
    ).items():
        error = np.max(np.abs(leaf - expected[path])) / np.max(np.abs(expected[path]))
        assert error < 1e-9, (path, error)
