"""Networks that the native library runs, against NumPy: integers exactly, floats to 1e-5."""

import gc
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native_networks import Builder, Undecided, every_kind, packed, random_network, results

from siman_jax.native import library
from siman_jax.native.network import Network, Operation
from siman_jax.native.network_call import network_call
from siman_jax.native.shared import path

pytestmark = pytest.mark.skipif(not library.variants(), reason="the library is not built")


def decided(operations, batch, seed=0):
    """Return random images for which rounding decides no bit, and all results for them."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        images = rng.standard_normal((batch, *operations[0].numbers)).astype(np.float32)
        try:
            return images, results(operations, images)
        except Undecided:
            continue
    raise Undecided("rounding decides a bit of all images")


def check(operations, result=None, batch=3, seed=0, exact=False, tolerance=1e-5):
    """Compare a network with NumPy, for each instruction set, batch and number of threads."""
    result = len(operations) - 1 if result is None else result
    images, expected = decided(operations, batch, seed)
    expected = expected[result].reshape(batch, -1)
    for variant in library.variants():
        network = Network(operations, result, variant=variant)
        found = network(images, threads=1)
        if exact:
            np.testing.assert_array_equal(found, expected)
        scale = max(1.0, abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
        # However images and threads meet, the numbers are the same.
        for threads, count in ((2, batch), (3, 1), (5, batch)):
            np.testing.assert_array_equal(network(images[:count], threads=threads), found[:count])
    return expected


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 24, 32, 40, 48, 64, 70, 128])
@pytest.mark.parametrize("out", [1, 16, 33, 64, 130])
def test_binary_convolutions_are_exact(channels, out):
    build = Builder((5, 6, channels))
    build.binary_conv(build.signs(0), out)
    check(build.operations, exact=True)


@pytest.mark.parametrize("channels", [5, 16, 32])
@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        ((1, 1), (2, 2), (0, 0, 0, 0)),
        ((1, 1), (1, 1), (0, 0, 0, 0)),
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((3, 3), (2, 2), (0, 1, 0, 1)),
        ((2, 3), (1, 2), (1, 0, 2, 5)),
        ((5, 4), (3, 1), (2, 2, 1, 2)),
        ((7, 7), (1, 1), (3, 3, 3, 3)),
        ((7, 6), (1, 1), (0, 0, 0, 0)),
        ((1, 3), (1, 1), (4, 4, 1, 1)),
    ],
)
def test_windows_of_all_kinds(channels, size, strides, padding):
    build = Builder((7, 6, channels))
    build.binary_conv(build.signs(0), 18, size, strides, padding)
    check(build.operations, exact=True)
    build = Builder((7, 6, channels))
    build.conv(0, 18, size, strides, padding)
    check(build.operations)


def test_signs_about_zero_thresholds_and_means():
    for threshold in (None, np.zeros(20, np.float32), Builder((1,)).floats(20)):
        build = Builder((4, 4, 20))
        build.binary_conv(build.signs(0, threshold), 32)
        check(build.operations, exact=True)
        build = Builder((4, 4, 20))
        y = build.signs(0, threshold)
        build.add("add", [y, y])
        check(build.operations, exact=True)


def test_numbers_at_their_threshold_are_plus_one():
    threshold = np.float32([0.5, -0.0, 3, np.inf])
    images = np.float32([0.5, 0.0, np.nextafter(np.float32(3), np.float32(0)), np.inf])
    words = packed(np.ones((4, 1)))
    operations = [
        Operation("images", (), (1, 1, 4)),
        Operation("reshape", (0,), (4,)),
        Operation("signs", (1,), (), (threshold,)),
        Operation("binary_dense", (2,), (), (words,)),
    ]
    assert Network(operations, 2)(images[None]).tolist() == [[1, 1, -1, 1]]
    # inf - inf is not a number, so that infinite thresholds need care.
    assert Network(operations, 3)(images[None]).tolist() == [[2]]


def test_dense_layers():
    build = Builder((3, 2, 7))
    flat = build.add("reshape", [0], (42,))
    hidden = build.add("binary_dense", [build.signs(flat)], (), [build.words(42, 70)])
    check(build.operations, exact=True)
    hidden = build.prelu(build.affine(hidden, 0.1))
    build.add("dense", [hidden], (), [build.floats(70, 11)])
    check(build.operations)
    build = Builder((3, 2, 7))
    build.add("dense", [0], (), [build.floats(7, 5)])
    check(build.operations)


def test_sums_beyond_sixteen_bits_are_exact():
    channels = 140_000
    build = Builder((1, 1, channels))
    flat = build.add("reshape", [0], (channels,))
    build.add("binary_dense", [build.signs(flat)], (), [build.words(channels, 70)])
    rng = np.random.default_rng(0)
    images = rng.choice([-1.0, 1.0], (1, 1, 1, channels)).astype(np.float32)
    expected = results(build.operations, images)[-1]
    for variant in library.variants():
        network = Network(build.operations, len(build.operations) - 1, variant=variant)
        np.testing.assert_array_equal(network(images), expected)


def test_binary_weights_and_real_activations():
    build = Builder((5, 5, 37))
    x = build.binary_conv(0, 20, (3, 3), (2, 2))
    flat = build.add("reshape", [x], (180,))
    build.add("binary_dense", [flat], (), [build.words(180, 10)])
    check(build.operations)


@pytest.mark.parametrize(
    ("channels", "out", "groups"), [(8, 8, 1), (6, 4, 2), (64, 96, 2), (20, 20, 20), (7, 14, 7)]
)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("fused", [False, True])
def test_groups_and_dilation(channels, out, groups, dilation, fused):
    build = Builder((8, 9, channels))
    x = build.conv(0, out, (3, 3), (2, 1), (2, 1, 3, 3), dilation, groups)
    if fused:
        more = build.conv(0, out, (3, 3), (2, 1), (2, 1, 3, 3), dilation)
        build.clip(build.prelu(build.add("add", [more, build.affine(x)])), -0.5, 2)
        # The first convolution is fused with the sum, since it comes first.
    check(build.operations)


@pytest.mark.parametrize("kind", ["max_pool", "sum_pool"])
@pytest.mark.parametrize("channels", [3, 16, 21])
def test_pools(kind, channels):
    for numbers in ((2, 2, 2, 2, 0, 0, 0, 0), (3, 3, 2, 2, 1, 1, 1, 1), (3, 1, 1, 2, 2, 0, 0, 0)):
        build = Builder((7, 6, channels))
        x = build.add(kind, [0], numbers)
        check(build.operations)
        build.clip(build.affine(x))
        check(build.operations)


@pytest.mark.parametrize("kind", ["sum", "max"])
def test_sums_and_maxima_over_axes(kind):
    for axes in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)):
        build = Builder((5, 4, 18))
        build.add(kind, [0], axes)
        check(build.operations)


def test_single_numbers():
    build = Builder((3, 5, 18))
    x = build.affine(0)
    gain, shift = build.floats(18), build.floats(18)
    x = build.add("affine", [x], (), [gain, None])
    x = build.add("affine", [x], (), [None, shift])
    x = build.prelu(x)
    x = build.clip(x, -np.inf, 3)
    x = build.add("tanh", [x])
    x = build.add("sigmoid", [x])
    build.add("softmax", [x])
    for place in range(1, len(build.operations)):
        check(build.operations, place)
    total = build.add("sum", [0], (0, 1, 2))
    build.clip(total, -2, 2)
    check(build.operations)


def test_two_operands():
    for kind in ("add", "multiply"):
        for shape in ((4, 5, 18), (1, 1, 18), (4, 5, 1), (1, 5, 18), (1, 1, 1)):
            build = Builder((4, 5, 18))
            value = build.add("constant", [], (), [build.floats(*shape)])
            build.add(kind, [0, value])
            check(build.operations)
            build = Builder((4, 5, 18))
            value = build.add("constant", [], (), [build.floats(*shape)])
            build.prelu(build.add(kind, [value, build.affine(0)]))
            check(build.operations)


def test_places():
    build = Builder((4, 5, 18))
    x = build.affine(0)
    build.add("concatenate", [x, 0, x], (2,))
    build.add("concatenate", [0, x], (1,))
    build.add("concatenate", [x], (0,))
    build.add("pad", [x], (1, 0, 7, 0, 2, 7), [np.float32([-1.5])])
    build.add("slice", [x], (1, 0, 3, 4, 5, 17, 2, 3, 4))
    build.add("reshape", [x], (360,))
    build.add("reshape", [0], (6, 60))
    build.add("reshape", [x], (20, 18))
    build.add("transpose", [x], (2, 0, 1))
    build.add("transpose", [x], (1, 0, 2))
    total = build.add("sum", [x], (0, 1))
    row = build.add("reshape", [total], (1, 1, 18))
    build.add("broadcast", [row], (3, 2, 18))
    column = build.add("reshape", [total], (18, 1))
    build.add("broadcast", [column], (18, 20))
    for place in range(len(build.operations)):
        check(build.operations, place)


def residual(seed=0, width=16, threshold=None):
    """A network like those of the paper."""
    build = Builder((9, 9, 3), seed)
    x = build.clip(build.affine(build.conv(0, width)), 0, np.inf)
    x = build.unit(x, width, shortcut=x, threshold=threshold)
    rows = -(-build.shapes[x][0] // 2)
    part = build.add("slice", [x], (0, 0, 0, *build.shapes[x], 2, 2, 1))
    wide = build.add("pad", [part], (0, 0, width // 2, 0, 0, width - width // 2), [np.float32([0])])
    assert build.shapes[wide] == (rows, rows, 2 * width)
    x = build.unit(x, 2 * width, (2, 2), wide)
    shortcut = build.affine(build.conv(x, 48, (1, 1), (2, 2), (0, 0, 0, 0)))
    x = build.unit(x, 48, (2, 2), shortcut)
    x = build.unit(x, 48, shortcut=x)
    mean = build.add("sum", [x], (0, 1))
    mean = build.affine(mean, 1 / 9)
    x = build.add("dense", [mean], (), [build.floats(48, 10)])
    build.add("affine", [x], (), [None, build.floats(10)])
    return build


@pytest.mark.parametrize("width", [16, 20, 32])
def test_residual_networks(width):
    check(residual(width=width).operations, batch=2)


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("shape", [(17, 14), (7, 30), (1, 2)])
def test_the_first_layers_for_large_images(channels, shape):
    """A norm may be before the maxima, after them, or both, and signs about the mean follow."""
    for width, before, after in ((64, 1, 0), (80, 0, 1), (20, 1, 1), (16, 0, 0)):
        build = Builder((*shape, channels))
        x = build.conv(0, width, (7, 7), (2, 2))
        if before:
            x = build.clip(build.affine(x), 0, np.inf)
        x = build.add("max_pool", [x], (3, 3, 2, 2, 1, 1, 1, 1))
        if after:
            x = build.prelu(build.affine(x))
        check(build.operations)
        build.unit(x, 16)
        check(build.operations)
    # What hinders a single step: an addition, a PReLU, an upper limit, another user.
    for hinder in range(4):
        build = Builder((*shape, channels))
        x = build.affine(build.conv(0, 16, (7, 7), (2, 2)))
        if hinder == 0:
            x = build.clip(build.add("add", [x, build.conv(0, 16, (7, 7), (2, 2))]), 0, np.inf)
        elif hinder == 1:
            x = build.prelu(x)
        elif hinder == 2:
            x = build.clip(x, 0, 1)
        y = build.add("max_pool", [x], (3, 3, 2, 2, 1, 1, 1, 1))
        if hinder == 3:
            build.add("sum", [x], (0, 1))
            flat = build.add("sum", [y], (0, 1))
            build.add("add", [flat, len(build.operations) - 2])
        check(build.operations)


def test_every_kind_of_operation():
    header = (Path(library.__file__).parent / "program.h").read_text()
    kinds = set(re.findall(r'^    {"(\w+)", Kind::', header, re.MULTILINE))
    build = every_kind()
    assert {operation.kind for operation in build.operations} == kinds
    check(build.operations)


def test_squeeze_and_excite():
    build = Builder((6, 6, 16))
    x = build.unit(0, 32)
    mean = build.add("sum", [x], (0, 1))
    mean = build.add("affine", [mean], (), [np.full(32, 1 / 36, np.float32), None])
    gate = build.clip(build.add("dense", [mean], (), [build.floats(32, 8)]), 0, np.inf)
    gate = build.add("sigmoid", [build.add("dense", [gate], (), [build.floats(8, 32)])])
    x = build.add("multiply", [x, build.add("reshape", [gate], (1, 1, 32))])
    build.unit(x, 16, shortcut=0)
    check(build.operations)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_random_networks(seed):
    """Each of several results in turn, since what is needed later decides what is overwritten."""
    build = random_network(seed)
    try:
        images, expected = decided(build.operations, 2)
    except Undecided:
        assume(False)
    places = build.rng.permutation(len(build.operations))[:4].tolist()
    for place in {*places, len(build.operations) - 1}:
        network = Network(build.operations, place)
        found = network(images, threads=1)
        wanted = expected[place].reshape(2, -1)
        atol = 1e-5 * max(1.0, abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=str(place))
        np.testing.assert_array_equal(network(images[:1], threads=2), found[:1])


def test_networks_of_very_many_operations():
    """Of so many results, places in memory are found in another way."""
    build, places = Builder((1, 2, 18)), [0]
    for _ in range(1500):
        recent = build.rng.choice(places[-5:], 2).tolist()
        x = build.add("sigmoid", [build.affine(build.add("add", recent))])
        if build.rng.random() < 0.1:
            row = build.add("reshape", [build.add("sum", [x], (0, 1))], (1, 1, 18))
            x = build.add("broadcast", [row], (1, 2, 18))
        places.append(x)
    check(build.operations)


def test_a_result_that_is_also_used():
    """What it is made of must not be overwritten, nor fused away."""
    build = Builder((4, 4, 16))
    x = build.affine(0)
    y = build.prelu(x)
    z = build.add("add", [y, x])
    build.clip(z)
    for place in range(len(build.operations)):
        check(build.operations, place)


def test_no_images_give_no_results():
    assert Network([Operation("images", (), (2, 2, 3))], 0)(np.zeros((0, 2, 2, 3), "f4")).shape == (
        0,
        12,
    )


def test_inside_jit():
    build = residual()
    network = Network(build.operations, len(build.operations) - 1)
    images = np.random.default_rng(0).standard_normal((5, 9, 9, 3)).astype(np.float32)
    expected = network(images)

    @jax.jit
    def double(images):
        return 2 * network_call(network, images)

    np.testing.assert_array_equal(double(images), 2 * expected)
    mapped = jax.jit(jax.vmap(lambda image: double(image[None])[0]))(images)
    np.testing.assert_array_equal(mapped, 2 * expected)
    with pytest.raises(ValueError, match="243 numbers for each image"):
        double(images[:, 1:])
    with pytest.raises(ValueError, match="expected float32"):
        double(images.astype(jnp.bfloat16))


def test_compiled_programs_keep_their_networks():
    build = Builder((2, 2, 3))
    build.affine(0)
    network = Network(build.operations, 1)
    images = np.ones((1, 2, 2, 3), np.float32)
    expected = network(images)
    compiled = jax.jit(partial(network_call, network)).lower(images).compile()
    del network
    gc.collect()
    np.testing.assert_array_equal(compiled(images), expected)


def test_a_network_that_is_gone_is_an_error():
    build = Builder((2, 2, 3))
    number = Network(build.operations, 0).number
    call = jax.ffi.ffi_call(library.NETWORK_CALL, jax.ShapeDtypeStruct((1, 12), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the network was destroyed"):
        call(jnp.ones((1, 12)), network=np.int64(number)).block_until_ready()


def test_many_threads_call_one_network():
    build = residual()
    network = Network(build.operations, len(build.operations) - 1)
    images = np.random.default_rng(0).standard_normal((7, 9, 9, 3)).astype(np.float32)
    expected = network(images, threads=1)
    wrong = []

    def call(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            some = rng.permutation(7)[: rng.integers(1, 8)]
            if not np.array_equal(network(images[some], threads=1 + seed % 3), expected[some]):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def _call_after_fork(network, images, connection):
    connection.send([network(images, threads=threads) for threads in (1, 2, 3)])


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_after_a_fork():
    build = residual()
    network = Network(build.operations, len(build.operations) - 1)
    images = np.random.default_rng(0).standard_normal((4, 9, 9, 3)).astype(np.float32)
    expected = network(images, threads=2)  # there are threads before the fork
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_call_after_fork, args=(network, images, sender))
    child.start()
    try:
        assert receiver.poll(60), "the forked process hangs"
        for found in receiver.recv():
            np.testing.assert_array_equal(found, expected)
    finally:
        child.kill()
        child.join()
    np.testing.assert_array_equal(network(images, threads=2), expected)


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_the_example_in_c(tmp_path):
    """Compile it with the command that it names, with all warnings as errors."""
    folder = Path(library.__file__).parent
    built = path()
    program = tmp_path / "example"
    subprocess.run(
        [
            *("cc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-I", folder),
            *(folder / "example.c", built, f"-Wl,-rpath,{built.parent}", "-o", program),
        ],
        check=True,
    )
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    # By hand: the signs are - - + + and + - - +; a filter's taps are every third bit.
    images = np.float32([1, 2, 3, 4, 9, 0, 0, 9]).reshape(2, 2, 2, 1)
    bits = np.float64([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0]).reshape(4, 3)
    sums = np.where(images.reshape(2, 4) >= images.mean((1, 2)), 1, -1) @ (2 * bits - 1)
    expected = sums * [0.5, 1, 2] + [0, 0.25, -1]
    np.testing.assert_array_equal(np.loadtxt(lines.splitlines()), expected)


def test_no_jax_is_imported():
    code = (
        "import sys; import numpy as np; from siman_jax.native.network import Network, Operation;"
        "network = Network([Operation('images', (), (1, 2, 3))], 0);"
        "print(network(np.ones((2, 1, 2, 3), np.float32)).sum());"
        "assert not {'jax', 'flax', 'jaxlib'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "12.0\n"


REFUSED = [
    ([], 0, "from 1 to 65536 operations"),
    ([Operation("affine", (0,), (), (None, None))], 0, "the images as the first operation"),
    ([Operation("images", (), (2, 2))], 0, "another number of integers"),
    ([Operation("images", (), (2, 0, 2))], 0, "sizes from 1"),
    ([Operation("images", (), (2**20, 2**20, 2**20))], 0, "at most 2\\^31 numbers"),
    ([Operation("images", (), (2**40, 2**40, 2**40))], 0, "at most 2\\^31 numbers"),
    ([Operation("images", (), (1, 2**28, 1))], 0, "a result of at most 2\\^31 numbers"),
    ([Operation("images", (), (2, 2, 3))], 1, "a result that is one of the operations"),
    ([Operation("images", (), (2, 2, 3))], -1, "a result that is one of the operations"),
]


@pytest.mark.parametrize(("operations", "result", "message"), REFUSED)
def test_networks_that_are_refused(operations, result, message):
    with pytest.raises(ValueError, match=message):
        Network(operations, result)


F = np.ones
WRONG = [
    Operation("colour", (0,)),
    Operation("images", (), (4, 5, 18)),
    Operation("tanh", ()),
    Operation("tanh", (1,)),
    Operation("tanh", (-1,)),
    Operation("tanh", (0,), (1,)),
    Operation("tanh", (0, 0)),
    Operation("tanh", (0,), (), (F(3, "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 1), (F((3, 3, 17, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 1), (F((3, 3, 18, 4), "u4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 1), (F((3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 1), (None,)),
    Operation("conv", (0,), (0, 1, 0, 0, 0, 0, 1, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 2**40, 0, 0, 0, 0, 1, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, -1, 0, 0, 0, 1, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 2**62, 0, 0, 0, 1, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 2**20, 2**20, 2**20, 2**20, 1, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 0, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 2, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 0), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 4), (F((3, 3, 4, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 3), (F((3, 3, 6, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1), (F((3, 3, 18, 4), "f4"),)),
    Operation("conv", (0,), (1, 1, 0, 0, 0, 0, 1, 1, 1), (F((5, 3, 18, 4), "f4"),)),
    Operation("binary_conv", (0,), (1, 1, 0, 0, 0, 0), (F((3, 3, 2, 4), "u4"),)),
    Operation("binary_conv", (0,), (1, 1, 0, 0, 0, 0), (F((3, 3, 1, 4), "f4"),)),
    Operation("binary_conv", (0,), (1, 1, 0, 0, 0, 0), (F((3, 3, 1, 4), "u4") << 18,)),
    Operation("binary_conv", (0,), (1, 1, 0, 0, 0, 0), (F((3, 6, 1, 4), "u4"),)),
    Operation("dense", (0,), (), (F((5, 4), "f4"),)),
    Operation("dense", (0,), (), (F(18, "f4"),)),
    Operation("binary_dense", (0,), (), (F((1, 4), "u4"),)),
    Operation("max_pool", (0,), (2, 2, 1, 1, 2, 0, 0, 0)),
    Operation("max_pool", (0,), (5, 2, 1, 1, 0, 0, 0, 0)),
    Operation("sum_pool", (0,), (2, 2, 0, 1, 0, 0, 0, 0)),
    Operation("sum_pool", (0,), (2, 2, 1, 1, 0, -1, 0, 0)),
    Operation("sum", (0,)),
    Operation("sum", (0,), (3,)),
    Operation("sum", (0,), (-1,)),
    Operation("max", (0,), (1, 0)),
    Operation("max", (0,), (1, 1)),
    Operation("max", (0,), tuple(range(25))),
    Operation("affine", (0,), (), (F(17, "f4"), None)),
    Operation("affine", (0,), (), (None,)),
    Operation("affine", (0,), (), (F((1, 18), "f4"), None)),
    Operation("prelu", (0,), (), (F(1, "f4"),)),
    Operation("prelu", (0,), (), (None,)),
    Operation("clip", (0,), (), (np.float32([1, -1]),)),
    Operation("clip", (0,), (), (np.float32([0, np.nan]),)),
    Operation("clip", (0,), (), (F(3, "f4"),)),
    Operation("signs", (0,), (), (F(4, "f4"),)),
    Operation("concatenate", ()),
    Operation("concatenate", (0, 0), (3,)),
    Operation("pad", (0,), (1, 1, 1, 1, 1), (F(1, "f4"),)),
    Operation("pad", (0,), (1, 1, 1, 1, 1, -1), (F(1, "f4"),)),
    Operation("pad", (0,), (1, 1, 1, 1, 1, 2**62), (F(1, "f4"),)),
    Operation("pad", (0,), (0, 0, 0, 0, 0, 2**31), (F(1, "f4"),)),
    Operation("pad", (0,), (1, 1, 1, 1, 1, 1), (F(2, "f4"),)),
    Operation("slice", (0,), (0, 0, 0, 4, 5, 19, 1, 1, 1)),
    Operation("slice", (0,), (0, 0, 0, 4, 5, 18, 1, 1, 0)),
    Operation("slice", (0,), (0, 0, 5, 4, 5, 5, 1, 1, 1)),
    Operation("slice", (0,), (-1, 0, 0, 4, 5, 18, 1, 1, 1)),
    Operation("slice", (0,), (0, 0, 0, 4, 5, 18)),
    Operation("reshape", (0,), (361,)),
    Operation("reshape", (0,), (-4, -5, 18)),
    Operation("reshape", (0,), (2**32, 2**32, 360)),
    Operation("reshape", (0,), (1,) * 9 + (360,)),
    Operation("transpose", (0,), (0, 1)),
    Operation("transpose", (0,), (0, 1, 1)),
    Operation("transpose", (0,), (0, 1, 3)),
    Operation("broadcast", (0,), (4, 5, 36)),
    Operation("broadcast", (0,), (4, 5)),
]


@pytest.mark.parametrize("operation", WRONG, ids=lambda operation: operation.kind)
def test_operations_that_do_not_fit_are_refused(operation):
    with pytest.raises(ValueError, match=r"operation 1( \(\w+\))?: expected ") as caught:
        Network([Operation("images", (), (4, 5, 18)), operation], 1)
    assert operation.kind in str(caught.value) or operation.kind == "colour"


def test_operands_of_other_sizes_are_refused():
    for kind, numbers in (("add", ()), ("multiply", ()), ("concatenate", (0,))):
        for shape in ((4, 5, 17), (5, 18), (2, 5, 18)):
            if kind == "concatenate" and shape == (2, 5, 18):
                continue  # sizes differ along the axis alone
            build = Builder((4, 5, 18))
            other = build.add("constant", [], (), [build.floats(*shape)])
            wrong = Operation(kind, (0, other), numbers)
            with pytest.raises(ValueError, match=rf"operation 2 \({kind}\): expected operands"):
                Network([*build.operations, wrong], 2)


def test_wrong_calls():
    with pytest.raises(ValueError, match="an instruction set that this processor has"):
        Network([Operation("images", (), (2, 2, 3))], 0, variant="abacus")
    network = Network([Operation("images", (), (2, 2, 3))], 0)
    for images in (np.zeros((1, 2, 2, 4), "f4"), np.zeros((1, 2, 2, 3)), np.float32(1)):
        with pytest.raises(ValueError, match="12 numbers for each image"):
            network(images)
    with pytest.raises(ValueError, match="there are 0 threads; expected 1 or more"):
        network(np.zeros((1, 2, 2, 3), "f4"), threads=0)
    with pytest.raises(ValueError, match="a weight is float64; expected float32 or uint32"):
        Network([Operation("images", (), (2, 2, 3)), Operation("prelu", (0,), (), (F(3),))], 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells no memory")
def test_memory_does_not_grow_with_batches():
    build = residual()
    network = Network(build.operations, len(build.operations) - 1)
    images = build.floats(256, 9, 9, 3)

    def pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    def calls(count):
        for size in build.rng.integers(1, 257, count):
            network(images[:size], threads=2)

    calls(20)
    before = pages()
    calls(200)
    assert (pages() - before) * os.sysconf("SC_PAGE_SIZE") < 2**20


def test_images_in_any_layout():
    build = Builder((4, 5, 18))
    build.affine(0)
    network = Network(build.operations, 1)
    images = build.floats(6, 18, 5, 4)
    turned = images.transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(network(turned), network(turned.copy()))
    np.testing.assert_array_equal(network(turned[::-2]), network(turned)[::-2])
