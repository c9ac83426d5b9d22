"""Packed inference: exact integers, whole networks, the authors' logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from siman_jax.packed import kernels
from siman_jax.packed.bits import dot, pack, signs, unpack, word_count

# Every example of a property has shapes of its own, so most of its time is compilation.
few = settings(max_examples=10, deadline=None, derandomize=True)


def random_bits(seed, *shape):
    return np.random.default_rng(seed).random(shape) < 0.5


def plus_minus_one(bits):
    return np.where(bits, 1, -1).astype(np.int32)


def convolve(x, kernel, strides, padding):
    """The convolution that everything here must equal."""
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def exact_conv(bits, kernel, strides, padding):
    """That of +-1, zeros around it, in 32-bit integers."""
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
    """Input, kernel, strides and padding, any of them odd."""
    sizes = st.integers(1, 7)
    image, kernel = (draw(sizes), draw(sizes)), (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    padding = []
    for size, taps in zip(image, kernel, strict=True):
        least = max(0, taps - size)  # so that the kernel fits at least once
        low = draw(st.integers(0, 3))
        padding.append((low, draw(st.integers(max(0, least - low), max(3, least)))))
    channels = draw(st.integers(1, 70))
    seed = draw(st.integers(0, 2**32 - 1))
    bits = random_bits(seed, draw(st.integers(1, 2)), *image, channels)
    kernel_bits = random_bits(seed + 1, *kernel, channels, draw(st.integers(1, 5)))
    return bits, kernel_bits, draw(st.integers(1, 3)), tuple(padding)


@pytest.mark.parametrize(
    "product", [kernels.binary_conv, kernels.conv_by_popcount, kernels.conv_by_matrix_unit]
)
def test_convolution_is_exact(product):
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


@pytest.mark.parametrize(("channels", "features"), [(64, 8), (130, 3), (512, 4)])
def test_convolution_is_exact_beyond_one_block(channels, features):
    bits, kernel = random_bits(0, 2, 4, 5, channels), random_bits(1, 3, 3, channels, features)
    padding = ((1, 1), (1, 1))
    y = kernels.binary_conv(bits, kernels.pack_kernel(jnp.asarray(kernel)), padding=padding)
    np.testing.assert_array_equal(y, exact_conv(bits, kernel, 1, padding))


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
    # Sums of whole numbers, so that rounding cannot hide a wrong tap.
    np.testing.assert_array_equal(y, convolve(x, signs(kernel, x.dtype), strides, padding))


def test_weight_only_dense():
    x = jax.random.normal(jax.random.key(0), (4, 45))
    kernel = random_bits(1, 45, 6)
    y = kernels.weight_only_dense(x, kernels.pack_kernel(jnp.asarray(kernel[None, None])).words)
    np.testing.assert_allclose(y, x @ signs(jnp.asarray(kernel), x.dtype), rtol=1e-5, atol=1e-5)
