"""Tests of residual networks as one native call against the same network run by XLA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from small_networks import trained, with_random_bits

from siman_jax.models import build_model
from siman_jax.native import library
from siman_jax.packed import residual
from siman_jax.packed.network import pack_unchecked, packed_logits, packed_twin
from siman_jax.rules import REAL

COVERED = ["cifar.resnet20_1w1a", "imagenet.resnet18_1w1a"]
needs_native = pytest.mark.skipif(not library.variants(), reason="no native library here")


def by_xla(model, packed, images):
    return jax.jit(partial(packed_twin(model, native=False).apply, train=False))(packed, images)


def natively(model, packed, images, variant=None):
    call = partial(residual.residual_logits, model, variant=variant)
    return jax.jit(call)(packed, images)


@needs_native
@pytest.mark.parametrize("rule", ["siman", "approx_sign"])
@pytest.mark.parametrize("name", COVERED)
def test_logits_are_those_of_xla(name, rule):
    model, variables, images = trained(name, jnp.float32, activation_rule=rule)
    packed = pack_unchecked(model, with_random_bits(variables))
    expected = by_xla(model, packed, images)
    for variant in library.variants():
        assert_close(natively(model, packed, images, variant), expected, 1e-5)


@needs_native
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
def test_logits_of_odd_shapes(name, width, shape):
    arguments = {"shape": shape, "width": width, "activation_rule": "approx_sign"}
    model, variables, images = trained(name, jnp.float32, **arguments)
    packed = pack_unchecked(model, with_random_bits(variables))
    expected = by_xla(model, packed, images)
    for variant in library.variants():
        assert_close(natively(model, packed, images, variant), expected, 1e-5)


@needs_native
@pytest.mark.parametrize("name", COVERED)
def test_a_sample_has_the_same_logits_alone_and_among_others(name):
    model, variables, images = trained(name, jnp.float32)
    packed = pack_unchecked(model, with_random_bits(variables))
    together = natively(model, packed, images)
    for index in range(len(images)):
        alone = natively(model, packed, images[index : index + 1])
        np.testing.assert_array_equal(alone[0], together[index])
    assert natively(model, packed, images[:0]).shape == (0, 7)


@needs_native
def test_packed_logits_are_native_where_they_can_be(monkeypatch):
    model, variables, images = trained("cifar.resnet20_1w1a", jnp.float32)
    packed = pack_unchecked(model, with_random_bits(variables))
    text = [
        jax.jit(partial(packed_logits, model, native=choice)).lower(packed, images).as_text()
        for choice in (True, False)
    ]
    assert ["siman_residual_logits" in program for program in text] == [True, False]
    monkeypatch.setattr(library, "variants", tuple)
    assert not residual.covers(model)


@needs_native
def test_what_one_call_covers():
    assert all(residual.covers(build_model(name, 7)) for name in COVERED)
    for name, arguments in (
        ("cifar.resnet18_1w1a", {}),
        ("cifar.vgg_small_1w1a", {}),
        (COVERED[0], {"dtype": jnp.bfloat16}),
        (COVERED[0], {"activation_rule": REAL}),
        (COVERED[1], {"weight_rule": REAL, "activation_rule": REAL}),
    ):
        assert not residual.covers(build_model(name, 7, **arguments))
