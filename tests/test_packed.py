"""Tests of packed kernels, whose integers are exact, and of the authors' logits by them."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from golden_data import NETWORKS, load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from parameters import first_quickly
from small_networks import trained

import siman_jax
from siman_jax.models import build_model
from siman_jax.models.leaves import binary_bits
from siman_jax.native import binary_conv as native
from siman_jax.native import library
from siman_jax.program import kernels
from siman_jax.program import operations as op
from siman_jax.program.bits import dot, pack, signs, unpack
from siman_jax.program.interpret import interpret
from siman_jax.program.operations import Program, packed_bits, word_count
from siman_jax.program.pools import max_pool
from siman_jax.program.trace import trace
from siman_jax.pytorch.names import variables_from_torch

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
    x = plus_minus_one(bits)
    for binary in (True, False):
        y = dense(np.float32(x), kernel, binary=binary)
        np.testing.assert_array_equal(y, x @ plus_minus_one(kernel))


def dense(x, kernel, *, binary):
    """Multiply by a program whose operand is binary, or real."""
    (batch, inputs), zeros = x.shape, np.zeros(x.shape[1], np.float32)
    operations = [op.Images(shape=(1, 1, inputs)), op.Reshape(inputs=(0,), shape=(inputs,))]
    if binary:
        operations.append(op.Signs(inputs=(1,), threshold=zeros))
    last = len(operations)
    operations.append(op.BinaryDense(inputs=(last - 1,), words=packed_bits(kernel)))
    return interpret(Program(tuple(operations), last), jnp.asarray(x).reshape(batch, 1, 1, inputs))


@settings(few, max_examples=5)
@given(convolutions())
def test_weight_only_convolution(case):
    bits, kernel, strides, padding = case
    x = np.random.default_rng(0).integers(-9, 10, bits.shape).astype(np.float32)
    words = kernels.pack_kernel(jnp.asarray(kernel)).words
    y = kernels.weight_only_conv(x, words, strides=strides, padding=padding)
    # Integers, so that rounding cannot hide a wrong tap.
    np.testing.assert_array_equal(y, convolve(x, signs(kernel, x.dtype), strides, padding))


def test_dense_of_real_numbers():
    x = np.random.default_rng(0).standard_normal((4, 45)).astype(np.float32)
    kernel = random_bits(1, 45, 6)
    y = dense(x, kernel, binary=False)
    np.testing.assert_allclose(y, x @ np.float32(plus_minus_one(kernel)), rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("weight_rule", ["half_half", "angle_optimal"])
def test_bits_that_are_not_stored_are_the_rule_s(weight_rule):
    model, variables, images = trained("cifar.vgg_small_1w1a", jnp.float32, weight_rule=weight_rule)
    program = trace(model, variables, images.shape[1:])
    (conv,) = (one for one in program.operations if one.path == "conv3" and hasattr(one, "words"))
    layer = variables["params"]["conv3"]
    bits = (
        binary_bits({"conv3": layer}, weight_rule)["conv3"] ^ (layer["alpha"] < 0)[None, None, None]
    )
    np.testing.assert_array_equal(kernels.unpack_kernel(conv.words, bits.shape[2]), bits)


@pytest.mark.parametrize("golden_name", first_quickly(NETWORKS))
def test_logits_of_the_authors(golden_name):
    """The authors' float64 logits by their stored bits, up to the precision of float32."""
    golden, name = load_golden(golden_name), NETWORKS[golden_name]
    model = build_model(name, golden.settings["classes"])
    variables = jax.tree.map(jnp.float32, variables_from_torch(name, golden.arrays))
    images = jnp.float32(golden.images)
    logits = jax.jit(interpret)(trace(model, variables, images.shape[1:]), images)
    assert_close(logits, np.float32(golden.results["eval_logits"]), 1e-5)
