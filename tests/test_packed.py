"""Tests of packed inference: exact integers, whole networks, the authors' logits."""

import json
import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_data import NETWORKS, load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from packed_example import outputs_of
from parameters import first_quickly
from small_networks import trained, with_random_bits

import siman_jax
from siman_jax.models import MODELS, build_model
from siman_jax.models.folding import fold, folded_twin
from siman_jax.models.layers import BinaryDense
from siman_jax.models.leaves import BINARY_KERNEL, BITS, binary_bits
from siman_jax.native import library
from siman_jax.native import packed_calls as native
from siman_jax.packed.layers import (
    CORNER_SUMS,
    DERIVED,
    WORDS,
    PackedDense,
)
from siman_jax.packed.network import pack_unchecked, packed_logits, packed_twin
from siman_jax.program import kernels
from siman_jax.program.bits import dot, pack, signs, unpack
from siman_jax.program.operations import word_count
from siman_jax.program.pools import max_pool
from siman_jax.pytorch.names import variables_from_torch
from siman_jax.rules import ACTIVATION_RULES
from siman_jax.rules.siman import siman_activation

# Every example has its own shapes, so most of the time is compilation.
few = settings(max_examples=10, deadline=None, derandomize=True)


def random_bits(seed, *shape):
    return np.random.default_rng(seed).random(shape) < 0.5


def plus_minus_one(bits):
    return np.where(bits, 1, -1).astype(np.int32)


def convolve(x, kernel, strides, padding):
    """Compute the convolution that all others must equal."""
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def exact_conv(bits, kernel, strides, padding):
    """Convolve +-1, padded with zeros, in 32-bit integers."""
    return convolve(plus_minus_one(bits), plus_minus_one(kernel), strides, padding)


@few
@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_bits_survive_packing(length, seed):
    bits = random_bits(seed, 3, length)
    words = pack(bits)
    assert (words.shape, words.dtype) == ((3, word_count(length)), jnp.uint32)
    np.testing.assert_array_equal(unpack(words, length), bits)
    # The same layout by NumPy, which packs bytes.
    octets = np.packbits(bits, axis=-1, bitorder="little")
    octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 4)))
    np.testing.assert_array_equal(words, octets.view("<u4"))


@few
@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_dot_product_of_bits(length, seed):
    a, b = random_bits(seed, 2, 4, length)
    expected = np.sum(plus_minus_one(a) * plus_minus_one(b), axis=-1)
    np.testing.assert_array_equal(dot(pack(a), pack(b), length), expected)


@st.composite
def convolutions(draw):
    """Draw input, kernel, strides and padding of unusual sizes."""
    sizes = st.integers(1, 7)
    image, kernel = (draw(sizes), draw(sizes)), (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    padding = []
    for size, taps in zip(image, kernel, strict=True):
        least = max(0, taps - size)  # so that the kernel fits at least once
        low = draw(st.integers(0, 3))
        padding.append((low, draw(st.integers(max(0, least - low), max(3, least)))))
    channels = draw(st.integers(1, 70))
    seed = draw(st.integers(0, 2**32 - 1))
    bits = random_bits(seed, draw(st.integers(0, 2)), *image, channels)
    kernel_bits = random_bits(seed + 1, *kernel, channels, draw(st.integers(1, 5)))
    return bits, kernel_bits, draw(st.integers(1, 3)), tuple(padding)


def cpp_conv(variant):
    """Return the native convolution by one variant, with the arguments of the others."""

    def conv(bits, kernel, *, strides, padding):
        words, sums = kernel
        return native.conv(bits, words, sums, strides=strides, padding=padding, variant=variant)

    return conv


PRODUCTS = {
    "chosen": kernels.binary_conv,
    "popcount": kernels.conv_by_popcount,
    "matrix unit": kernels.conv_by_matrix_unit,
    **{variant: cpp_conv(variant) for variant in library.variants()},
}


@pytest.mark.skipif(
    not (shutil.which("c++") and platform.machine() in {"x86_64", "aarch64"}),
    reason="nothing to build the native library with",
)
def test_the_native_library_was_built():
    assert library.variants()


@pytest.mark.parametrize("name", PRODUCTS)
def test_convolution_is_exact(name):
    product = PRODUCTS[name]

    @few
    @given(convolutions())
    def check(case):
        bits, kernel, strides, padding = case
        packed = kernels.pack_kernel(jnp.asarray(kernel))
        call = jax.jit(product, static_argnames=("strides", "padding"))
        y = call(bits, packed, strides=strides, padding=padding)
        assert y.dtype == jnp.int32
        np.testing.assert_array_equal(y, exact_conv(bits, kernel, strides, padding))

    check()


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("channels", "features"), [(64, 8), (130, 3), (512, 4), (1100, 150)])
def test_convolution_is_exact_beyond_one_block(name, channels, features):
    bits, kernel = random_bits(0, 2, 4, 5, channels), random_bits(1, 3, 3, channels, features)
    padding = ((1, 1), (1, 1))
    packed = kernels.pack_kernel(jnp.asarray(kernel))
    y = PRODUCTS[name](bits, packed, strides=1, padding=padding)
    np.testing.assert_array_equal(y, exact_conv(bits, kernel, 1, padding))


WITHOUT_LIBRARY = """
import numpy as np
from siman_jax.program import kernels

rng = np.random.default_rng(0)
bits, kernel = rng.random((1, 4, 5, 40)) < 0.5, rng.random((3, 3, 40, 6)) < 0.5
for padding in (((1, 1), (1, 1)), ((2, 1), (1, 0))):
    y = kernels.binary_conv(bits, kernels.pack_kernel(kernel), padding=padding)
    print(np.asarray(y).tolist())
"""


@pytest.mark.parametrize("built", ["not", "for another system"])
def test_a_machine_without_the_native_library_says_so_once(built, tmp_path):
    package = Path(siman_jax.__file__).parent
    skipped = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(package, tmp_path / "siman_jax", ignore=skipped)
    if built != "not":
        name = f"_native{EXTENSION_SUFFIXES[0]}"
        (tmp_path / "siman_jax" / "native" / name).write_text("not a library")
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    rng = np.random.default_rng(0)
    bits, kernel = rng.random((1, 4, 5, 40)) < 0.5, rng.random((3, 3, 40, 6)) < 0.5
    for line, padding in zip(
        process.stdout.splitlines(), (((1, 1), (1, 1)), ((2, 1), (1, 0))), strict=True
    ):
        np.testing.assert_array_equal(json.loads(line), exact_conv(bits, kernel, 1, padding))
    message = (
        "C++ compiler, or it failed; pip install -v"
        if built == "not"
        else "install siman-jax again"
    )
    assert process.stderr.count(message) == 1


@few
@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_dense_is_exact(inputs, outputs, seed):
    bits, kernel = random_bits(seed, 3, inputs), random_bits(seed + 1, inputs, outputs)
    packed = kernels.pack_kernel(jnp.asarray(kernel[None, None]))
    y = kernels.binary_dense(bits, packed)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, plus_minus_one(bits) @ plus_minus_one(kernel))


@settings(few, max_examples=5)
@given(convolutions())
def test_weight_only_convolution(case):
    bits, kernel, strides, padding = case
    x = np.random.default_rng(0).integers(-9, 10, bits.shape).astype(np.float32)
    words = kernels.pack_kernel(jnp.asarray(kernel)).words
    y = kernels.weight_only_conv(x, words, strides=strides, padding=padding)
    # Integers, so that rounding cannot hide a wrong tap.
    np.testing.assert_array_equal(y, convolve(x, signs(kernel, x.dtype), strides, padding))


def test_weight_only_dense():
    x = jax.random.normal(jax.random.key(0), (4, 45))
    kernel = random_bits(1, 45, 6)
    y = kernels.weight_only_dense(x, kernels.pack_kernel(jnp.asarray(kernel[None, None])).words)
    np.testing.assert_allclose(y, x @ signs(jnp.asarray(kernel), x.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [(8, 2, 2, "VALID"), (7, 2, 2, "VALID"), (9, 3, 2, ((1, 1), (1, 1))), (5, 3, 1, ((0, 2),) * 2)],
)
def test_max_pool_is_flax_s(dtype, size, window, stride, padding):
    x = np.random.default_rng(0).integers(-99, 0, (2, size, size + 2, 3)).astype(dtype)
    arguments = (window, window), (stride, stride), padding
    expected = nn.max_pool(jnp.asarray(x, jnp.float32), *arguments)
    y = max_pool(jnp.asarray(x), *arguments)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), expected)


def test_bits_of_activations_are_their_signs_about_the_mean():
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 20)) + 3
    np.testing.assert_array_equal(ACTIVATION_RULES["siman"].bits(x), siman_activation(x) > 0)
    zero = jnp.array([0.0, -0.0, -1e-30])
    np.testing.assert_array_equal(ACTIVATION_RULES["approx_sign"].bits(zero), [True, True, False])


def test_bits_of_equal_activations_are_one():
    assert ACTIVATION_RULES["siman"].bits(jnp.full((1, 2, 2, 3), 0.25)).all()


@pytest.mark.parametrize("name", first_quickly(MODELS))
def test_every_integer_of_every_network(name, x64):
    """In float64, where no activation is so close to its mean that rounding decides its bit."""
    model, variables, images = trained(name, jnp.float64)
    variables = with_random_bits(variables)
    logits, outputs = outputs_of(model, variables, images)
    logits_of_bits, packed_outputs = outputs_of(
        packed_twin(model), pack_unchecked(model, variables), images
    )
    assert outputs.keys() == packed_outputs.keys()
    for path, output in outputs.items():
        leaves = flatten_dict(variables["params"])
        if (*path, BINARY_KERNEL) not in leaves:  # a real convolution
            continue
        alpha = np.asarray(leaves[(*path, "alpha")])
        ratio = np.asarray(output) / alpha
        sums = np.rint(ratio)
        np.testing.assert_allclose(ratio, sums, atol=1e-9)
        assert packed_outputs[path].dtype == jnp.int32
        np.testing.assert_array_equal(packed_outputs[path], sums * np.sign(alpha))
    assert_close(logits_of_bits, logits, 1e-12)


@pytest.mark.parametrize("name", first_quickly(MODELS))
def test_logits_are_those_of_evaluation(name):
    """Exactly equal, by XLA and by the native library, since both are folded in the same way."""
    model, variables, images = trained(name, jnp.float32)
    variables = with_random_bits(variables)
    folded = jax.jit(partial(fold, model))(variables)
    evaluated = jax.jit(partial(folded_twin(model).apply, train=False))(folded, images)
    packed = pack_unchecked(model, variables)
    for choice in (False, True):
        twin = packed_twin(model, native=choice)
        logits = jax.jit(partial(twin.apply, train=False))(packed, images)
        np.testing.assert_array_equal(logits, evaluated)


@pytest.mark.parametrize(
    ("size", "count", "together"),
    [(160, 8, 8), (160, 9, 9), (320, 2, 1)],
    ids=["pieces and a rest", "pieces", "one by one"],
)
def test_pieces_of_a_batch_give_the_logits_of_the_whole(size, count, together):
    """Images so large that three of them, or one, fill a piece.

    The largest are compared with batches of one: XLA sums so many features in another order.
    """
    shape = (count, size, size, 3)
    model, variables, images = trained("cifar.vgg_small_1w1a", jnp.float32, shape=shape)
    packed = pack_unchecked(model, with_random_bits(variables))
    by_pieces = jax.jit(partial(packed_logits, model))
    assert "stablehlo.while" in by_pieces.lower(packed, images).as_text()
    apply = jax.jit(partial(packed_twin(model).apply, train=False))
    batches = [images[i : i + together] for i in range(0, count, together)]
    whole = jnp.concatenate([apply(packed, batch) for batch in batches])
    assert_close(by_pieces(packed, images), whole, 1e-6)


def assert_logits_agree(model, variables, images):
    """In float32, up to rounding; this small network has no activation close to its mean."""
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    apply = jax.jit(partial(packed_twin(model).apply, train=False))
    assert_close(apply(pack_unchecked(model, variables), images), expected, 1e-5)


def test_logits_with_recomputed_bits():
    assert_logits_agree(*trained("cifar.vgg_small_1w1a", jnp.float32))


@pytest.mark.parametrize("name", first_quickly(MODELS))
def test_logits_without_standardized_activations(name):
    model, variables, images = trained(name, jnp.float32, activation_rule="approx_sign")
    assert_logits_agree(model, with_random_bits(variables), images)


@pytest.mark.slow
def test_logits_with_bits_of_the_smallest_angle():
    """Stored: that optimum is flat, so that rounding moves a bit or two of a filter from one
    compilation to the next, the float network's own included.
    """
    model, variables, images = trained(
        "cifar.vgg_small_1w1a", jnp.float32, weight_rule="angle_optimal"
    )
    bits = binary_bits(variables["params"], "angle_optimal")
    stored = {(*path.split("/"), BINARY_KERNEL): leaf for path, leaf in bits.items()}
    assert_logits_agree(model, {**variables, BITS: unflatten_dict(stored)}, images)


@pytest.mark.parametrize("name", ["cifar.resnet18_1w1a", "cifar.vgg_small_1w1a"])
def test_logits_with_real_activations(name):
    model, variables, images = trained(name, jnp.float32, activation_rule="real")
    assert_logits_agree(model, with_random_bits(variables), images)


@pytest.mark.parametrize("weight_rule", ["half_half", "angle_optimal"])
def test_bits_that_are_not_stored_are_the_rule_s(weight_rule):
    model, variables, _ = trained("cifar.vgg_small_1w1a", jnp.float32, weight_rule=weight_rule)
    packed = pack_unchecked(model, variables)["params"]["conv3"][WORDS]
    layer = variables["params"]["conv3"]
    bits = (
        binary_bits({"conv3": layer}, weight_rule)["conv3"] ^ (layer["alpha"] < 0)[None, None, None]
    )
    np.testing.assert_array_equal(kernels.unpack_kernel(packed, bits.shape[2]), bits)


@pytest.mark.parametrize("activation_rule", ["siman", "approx_sign", "real"])
def test_dense_layer(activation_rule):
    x = jax.random.normal(jax.random.key(0), (5, 70))
    layer = BinaryDense(9, activation_rule=activation_rule)
    params = layer.init(jax.random.key(1), x)["params"]
    kernel = kernels.pack_kernel(binary_bits({"": params}, "half_half")[""][None, None])
    packed = {
        "params": {WORDS: kernel.words, "alpha": params["alpha"]},
        DERIVED: {CORNER_SUMS: kernel.corner_sums},
    }
    y = PackedDense(9, activation_rule=activation_rule).apply(packed, x)
    assert_close(y, layer.apply({"params": params}, x), 1e-6)


def test_logits_with_real_weights():
    """Only batch norms change when it is packed."""
    assert_logits_agree(*trained("cifar.vgg_small_1w1a", jnp.float32, weight_rule="real"))


def test_a_packed_network_does_not_train():
    model, variables, images = trained("cifar.vgg_small_1w1a", jnp.float32)
    with pytest.raises(ValueError, match="cannot be trained"):
        packed_twin(model).apply(pack_unchecked(model, variables), images, train=True)


def test_packed_variables_are_those_that_the_twin_expects():
    model, variables, images = trained("imagenet.resnet18_1w1a", jnp.float32)
    init = partial(packed_twin(model).init, train=False)
    expected = jax.eval_shape(init, jax.random.key(0), images)
    packed = pack_unchecked(model, variables)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), packed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), dict(expected)
    )


@pytest.mark.parametrize("golden_name", first_quickly(NETWORKS))
def test_logits_of_the_authors(golden_name):
    """The authors' float64 logits by their stored bits, up to the precision of float32."""
    golden, name = load_golden(golden_name), NETWORKS[golden_name]
    model = build_model(name, golden.settings["classes"])
    variables = jax.tree.map(jnp.float32, variables_from_torch(name, golden.arrays))
    apply = jax.jit(partial(packed_twin(model).apply, train=False))
    logits = apply(pack_unchecked(model, variables), jnp.float32(golden.images))
    assert_close(logits, np.float32(golden.results["eval_logits"]), 1e-5)


def test_one_program_for_every_platform_and_batch_size():
    model, variables, images = trained("cifar.vgg_small_1w1a", jnp.float32)
    variables = with_random_bits(variables)
    packed = pack_unchecked(model, variables)
    apply = jax.jit(partial(packed_twin(model, native=False).apply, train=False))
    batch = jax.export.symbolic_shape("batch")
    program = jax.export.export(apply, platforms=("cpu", "cuda", "tpu"))(
        packed, jax.ShapeDtypeStruct((*batch, *images.shape[1:]), jnp.float32)
    )
    for taken in (images, images[:1]):
        assert_close(program.call(packed, taken), apply(packed, taken), 1e-5)
