"""Tests that calls with arrays that do not fit are refused before reading out of bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_calls import ALONE, CALLS, F32, I32, NO_ROWS, NOTHING, ROWS, X, call

from siman_jax.models.norm_layer import BatchNorm
from siman_jax.native import library
from siman_jax.native.convolution import ONE, Geometry
from siman_jax.native.dispatch import native
from siman_jax.native.pooling import max_pool
from siman_jax.native.real_convolution import real_conv
from siman_jax.program import bits as packed_bits
from siman_jax.program import pools
from siman_jax.program.kernels import (
    PackedKernel,
    binary_conv,
    pack_kernel,
    unpack_kernel,
    weight_only_conv,
)
from siman_jax.rules.order_statistics import exceeds_kth_smallest, kth_smallest

needs_library = pytest.mark.skipif(not library.variants(), reason="the library is not built")

# Axes that may be larger by two: results over padding only, and kernels that reach into it. The
# padded image of a packed convolution is scratch.
MAY_GROW = {
    (library.CONV_FORWARD, 1): {0, 1},
    ("scaled " + library.CONV_FORWARD, 1): {0, 1},
    ("later " + library.CONV_FORWARD, 1): {0, 1},
    ("scaled " + library.CONV_FORWARD, 9): {1, 2},
    (library.CONV_FORWARD, 7): {1, 2},
    ("later " + library.CONV_FORWARD, 7): {1, 2},
    ("scaled " + library.CONV_BACKWARD, 4): {1, 2},
    (library.REAL_FORWARD, 1): {0, 1},
    (library.REAL_FORWARD, 2): {1, 2},
    (library.REAL_KERNEL_GRADIENT, 1): {1, 2},
    (library.REAL_KERNEL_GRADIENT, 2): {0, 1},
    (library.KTH_OF_ALL, 0): {0},
    (library.NORM_STATISTICS, 0): {0, 1},
    (library.BINARY_CONV, 0): {3},
    (library.BINARY_CONV, 4): {1, 2},
}


def refused(name, operands, results, attributes, expected=""):
    message = rf"{name.split()[-1]}: expected {expected}"
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
        call(name, operands, results, attributes)


def larger(shape, axis):
    return (*shape[:axis], shape[axis] + 2, *shape[axis + 1 :])


@needs_library
@pytest.mark.parametrize("name", CALLS)
def test_arrays_that_do_not_fit_are_refused(name):
    """Make one axis of one array larger by two than in a valid call."""
    operands, results, attributes = CALLS[name]
    call(name, operands, results, attributes)
    arrays = [*operands, *results]
    for place, (shape, dtype) in enumerate(arrays):
        for axis in set(range(len(shape))) - MAY_GROW.get((name, place), set()):
            if not all(shape):
                continue
            other = [*arrays]
            other[place] = larger(shape, axis), dtype
            refused(name, other[: len(operands)], other[len(operands) :], attributes)


@needs_library
@pytest.mark.parametrize("name", CALLS)
def test_numbers_that_make_no_sense_are_refused(name):
    operands, results, attributes = CALLS[name]
    for attribute, value in attributes.items():
        if type(value) is not int:
            continue
        wrong = {-1, 2**40, -(2**63)}
        if attribute in ("stride", "down", "across", "row_stride", "column_stride"):
            wrong.add(0)
        for other in wrong:
            refused(name, operands, results, {**attributes, attribute: other})
    # Some of these may be in the library, but this processor cannot run them.
    for variant in {*range(-1, 6), 2**40} - set(library.indices().values()):
        chosen = {**attributes, "variant": variant}
        refused(name, operands, results, chosen, "a variant that this processor can run")


@needs_library
def test_a_shortcut_that_is_the_input_has_its_shape():
    name = "scaled " + library.CONV_BACKWARD
    operands, results, attributes = CALLS[name]
    refused(name, operands, results, {**attributes, "shortcut_is_input": True})


@needs_library
@pytest.mark.parametrize("name", [library.NORM_FORWARD, library.NORM_STATISTICS])
@pytest.mark.parametrize("dtype", ["f2", "i4", "u1"])
def test_other_dtypes_are_refused(name, dtype):
    operands, results, attributes = CALLS[name]
    other = [(operands[0][0], jnp.dtype(dtype)), *operands[1:]]
    refused(name, other, results, attributes)


@needs_library
@pytest.mark.parametrize("shape", [(0, 36, 16), (2, 0, 16), (2, 36, 0), (2, 36), (2, 6, 6, 16)])
def test_samples_of_another_rank_or_without_pixels_are_refused(shape):
    refused(library.NORM_STATISTICS, [(shape, F32)], [((2, 16), F32)], {})
    if all(shape):  # empty results are not computed
        given = [(shape, F32), NOTHING, ROWS]
        refused(library.NORM_FORWARD, given, [(shape, F32)], {"activation": 0})


@needs_library
def test_a_shortcut_that_is_the_input_has_the_results_shape():
    operands, _, attributes = CALLS[library.CONV_BACKWARD]
    x, kernel = ((2, 6, 6, 32), F32), ((3, 3, 32, 16), F32)
    wider = [x, kernel, *operands[2:6], NOTHING, *operands[7:]]
    results = [kernel, x, NOTHING, NO_ROWS]
    call(library.CONV_BACKWARD, wider, results, attributes)
    attributes = {**attributes, "shortcut_is_input": True}
    refused(library.CONV_BACKWARD, wider, results, attributes, "a result of")


@needs_library
@pytest.mark.parametrize("missing", [3, 4, 5])
def test_a_norm_before_has_all_its_arrays(missing):
    """Only its shortcut may be missing."""
    name = "later " + library.CONV_FORWARD
    operands, results, attributes = CALLS[name]
    given = [*operands]
    given[missing] = ALONE[missing - 3]
    if missing == 4:
        call(name, given, results, attributes)
    else:
        refused(name, given, results, attributes)


@needs_library
def test_an_input_is_given_or_computed():
    name = "later " + library.CONV_FORWARD
    operands, results, attributes = CALLS[name]
    refused(name, [X, *operands[1:]], results, attributes, "either an input or a norm before")


@needs_library
@pytest.mark.parametrize("number", [-1.0, -0.0, -np.float32(np.nan)])
def test_numbers_with_a_sign_have_no_rank(number):
    """Their bits, read as integers, are not valid indices."""
    x = jnp.array([1.0, 2.0, 0.0]).at[1].set(number)
    with pytest.raises(jax.errors.JaxRuntimeError, match="numbers that are not negative"):
        library.call(
            library.KTH_OF_ALL, jax.ShapeDtypeStruct((1,), F32), x, jnp.zeros(1, I32)
        ).block_until_ready()


@pytest.mark.parametrize("rank", [-1, 3])
def test_ranks_that_there_are_not(rank):
    with pytest.raises(ValueError, match=f"no rank {rank} of 3 numbers; expected 0 to 2"):
        kth_smallest(jnp.ones((3, 1)), rank)
    with pytest.raises(ValueError, match="of 0 numbers"):
        exceeds_kth_smallest(jnp.ones((0, 4)), 0)
    with pytest.raises(ValueError, match="no rank 3 of 3 numbers; expected -1 to 2"):
        exceeds_kth_smallest(jnp.ones((3, 1)), 3)


@pytest.mark.parametrize(
    ("strides", "padding"), [(0, ((1, 1), (1, 1))), (1, ((-1, 1), (1, 1))), (1, ((1, 1), (1, -2)))]
)
def test_strides_and_padding_that_make_no_sense(strides, padding):
    with pytest.raises(ValueError, match=r"expected strides of 1 or more|no.negative padding"):
        Geometry(strides, padding, ONE, centred=True)
    kernel = pack_kernel(jnp.ones((3, 3, 40, 16), bool))
    with pytest.raises(ValueError, match=r"expected strides of 1 or more|no.negative padding"):
        binary_conv(jnp.ones((2, 6, 6, 40), bool), kernel, strides=strides, padding=padding)


def test_operands_of_a_geometry_that_do_not_fit():
    geometry = Geometry(1, ((0, 0), (0, 0)), ONE, centred=True)
    x = jnp.ones((2, 6, 6, 16))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, in\] and"):
        geometry.result(x, jnp.ones((3, 3, 8, 16)))
    with pytest.raises(ValueError, match="larger than the padded input"):
        geometry.result(x, jnp.ones((7, 7, 16, 16)))


WORDS = jnp.ones((3, 3, 2, 16), jnp.uint32)
CORNERS = jnp.ones((4, 4, 16), jnp.int32)
BITS = jnp.ones((2, 6, 6, 40), bool)


@pytest.mark.parametrize("uses_library", [True, False])
@pytest.mark.parametrize(
    ("bits", "words", "sums", "message"),
    [
        (BITS[..., :32], WORDS, CORNERS, "the input has 32 channels, but the kernel has 2 words"),
        (BITS, WORDS[:, :, :1], CORNERS, "the input has 40 channels, but the kernel has 1 words"),
        (BITS, WORDS, CORNERS[:3], r"the corner sums are int32\[3, 4, 16\]"),
        (BITS, WORDS, CORNERS[..., :8], r"expected int32\[4, 4, 16\]"),
        (BITS[0], WORDS, CORNERS, r"the input has shape \(6, 6, 40\)"),
        (BITS, WORDS.astype(jnp.int32), CORNERS, r"the words are int32"),
        (BITS.astype(jnp.float32), WORDS, CORNERS, "the bits have dtype float32"),
        (BITS[:, :2], WORDS, CORNERS, "larger than the padded input"),
    ],
)
def test_packed_kernels_that_do_not_fit(bits, words, sums, message, uses_library):
    with pytest.raises(ValueError, match=message):
        binary_conv(bits, PackedKernel(words, sums), native=uses_library)


def test_packed_products_that_do_not_fit():
    kernel = pack_kernel(jnp.ones((1, 1, 40, 16), bool))
    with pytest.raises(ValueError, match="the input has 70 channels, but the kernel has 2 words"):
        binary_conv(jnp.ones((2, 1, 1, 70), bool), kernel)
    with pytest.raises(ValueError, match="the input has 70 channels, but the kernel has 2 words"):
        weight_only_conv(jnp.ones((2, 6, 6, 70)), kernel.words)
    with pytest.raises(ValueError, match="there are 2 words for 65 bits; expected 3"):
        unpack_kernel(kernel.words, 65)
    with pytest.raises(ValueError, match="there are 2 words for 3 bits; expected 1"):
        packed_bits.dot(jnp.ones(2, jnp.uint32), jnp.ones(2, jnp.uint32), 3)
    with pytest.raises(ValueError, match="expected the same"):
        packed_bits.dot(jnp.ones((1, 1), jnp.uint32), jnp.ones(1, jnp.uint32), 3)
    with pytest.raises(ValueError, match="larger than the input"):
        pools.max_pool(jnp.ones((1, 3, 3, 1)), (5, 5), (1, 1))


def test_an_empty_batch_gives_an_empty_result():
    kernel = pack_kernel(jnp.ones((3, 3, 40, 16), bool))
    assert binary_conv(BITS[:0], kernel).shape == (0, 4, 4, 16)


def agrees(function, *arrays):
    with native(False):
        expected = function(*arrays)
    found = function(*arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


def example(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("padding", [((-1, 0), (0, 0)), ((0, -2), (1, 1)), ((1, 1), (-1, -1))])
def test_negative_padding_of_a_real_convolution_cuts(padding):
    x, kernel = example(2, 8, 8, 3), example(3, 3, 3, 16)
    agrees(
        lambda *xs: real_conv(*xs, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")),
        x,
        kernel,
    )


def test_a_kernel_larger_than_the_image_has_no_results():
    x, kernel = example(2, 2, 2, 3), example(5, 5, 3, 16)
    agrees(
        lambda *xs: real_conv(
            *xs, (1, 1), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        x,
        kernel,
    )
    agrees(lambda x: max_pool(x, (3, 3), (1, 1)), x)


@pytest.mark.parametrize("shape", [(3, 1, 1, 8), (1, 4, 4, 8), (3, 4, 4, 1)])
def test_a_shortcut_may_be_broadcast(shape):
    """The library takes only a shortcut of the norm's own shape."""
    norm = BatchNorm()
    x, shortcut = example(3, 4, 4, 8), example(*shape)
    variables = norm.init(jax.random.key(0), x, train=True)

    def apply(x, shortcut):
        y, _ = norm.apply(
            variables,
            x,
            train=True,
            shortcut=shortcut,
            activation=jnp.tanh,
            mutable=["batch_stats"],
        )
        return y

    agrees(apply, x, shortcut)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_the_mean_of_no_pixels_is_not_a_number():
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.ones((2, 4, 4, 8)), train=True)
    x = jnp.ones((0, 4, 4, 8))
    y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.shape == x.shape
    assert np.isnan(state["batch_stats"]["mean"]).all()
