"""Programs give the same natively as by the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packable_networks import PACKABLE
from parameters import first_quickly
from program_example import every_operation
from small_networks import trained, with_random_bits
from test_program import FAST, drawn, images_of

from siman_jax.models import NETWORKS
from siman_jax.native import library
from siman_jax.program.interpret import interpret
from siman_jax.program.native import native_network
from siman_jax.program.trace import trace

pytestmark = pytest.mark.skipif(not library.variants(), reason="the library is not built")


def check(program, images, least=0.6):
    """Compare the results of most images; in others, rounding may change a bit."""
    expected = np.asarray(jax.jit(interpret, compiler_options=FAST)(program, images))
    expected = expected.reshape(len(images), -1)
    for variant in library.variants():
        network = native_network(program, variant=variant)
        found = network(np.asarray(images), threads=1)
        close = abs(found - expected).max(1) <= 2e-5 * max(1.0, abs(expected).max())
        assert close.mean() >= least
        np.testing.assert_array_equal(network(np.asarray(images), threads=2), found)


@pytest.mark.parametrize("name", first_quickly(NETWORKS))
def test_networks_of_the_project(name):
    size = 8 if name.startswith("cifar") else 32
    model, variables, images = trained(name, jnp.float32, width=16, shape=(5, size, size, 3))
    check(trace(model, with_random_bits(variables), images.shape[1:]), images)


@pytest.mark.parametrize(
    ("name", "width", "shape"),
    [
        ("cifar.resnet20_1w1a", 16, (2, 9, 17, 3)),
        ("cifar.resnet20_1w1a", 40, (1, 8, 8, 1)),  # incomplete blocks of filters
        ("imagenet.resnet18_1w1a", 5, (1, 33, 66, 2)),
        ("imagenet.resnet18_1w1a", 20, (1, 47, 31, 3)),  # the stem's rows have odd sizes
        ("imagenet.resnet18_1w1a", 16, (1, 1, 2, 3)),
    ],
)
def test_networks_for_images_of_odd_sizes(name, width, shape):
    arguments = {"shape": shape, "width": width, "activation_rule": "approx_sign"}
    model, variables, images = trained(name, jnp.float32, **arguments)
    check(trace(model, with_random_bits(variables), images.shape[1:]), images, least=1)


@pytest.mark.parametrize("name", ["cifar.resnet20_1w1a", "imagenet.resnet18_1w1a"])
def test_an_image_has_the_same_logits_alone_and_among_others(name):
    model, variables, images = trained(name, jnp.float32)
    network = native_network(trace(model, with_random_bits(variables), images.shape[1:]))
    images = np.asarray(images)
    together = network(images)
    for index in range(len(images)):
        np.testing.assert_array_equal(network(images[index : index + 1])[0], together[index])
    assert network(images[:0]).shape == (0, 7)


@pytest.mark.parametrize("name", PACKABLE)
def test_networks_of_one_s_own(name):
    model, images = PACKABLE[name](), images_of()
    check(trace(model, drawn(model, images), images.shape[1:]), images)


def test_every_operation():
    program = every_operation()
    images = images_of(6)
    for place in range(len(program.operations)):
        check(type(program)(program.operations, place), images)
