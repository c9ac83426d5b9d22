"""Tests of networks that cannot be folded: they are evaluated unfolded, and not packed."""

import logging
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siman_jax.configs import digits
from siman_jax.data.dataset import Split
from siman_jax.data.resident import padded_batches
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.cifar import resnet20_1w1a
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm, PReLU
from siman_jax.models.normalization import normalize
from siman_jax.models.product import computed
from siman_jax.models.resnet import TwoShortcutBlock
from siman_jax.packed.network import pack_variables
from siman_jax.training.epoch import make_evaluator
from siman_jax.training.metrics import score

SHAPE = (8, 8, 1)


class ShortcutFirst(TwoShortcutBlock):
    """The shortcut is added before the norm, although folding expects only the convolution."""

    @nn.compact
    def __call__(self, x, train):
        y = computed(self.conv(self.features, strides=self.strides, name="conv1").product(x))
        y = y + self.shortcut(self, x, train)
        return self.norm(name="bn1")(y, train, activation=PReLU(name="prelu1"))


class OtherNames(nn.Module):
    """The stem's norm has the name expected for the binary convolution's norm."""

    num_classes: int
    conv: partial
    norm: partial
    stem: str = "bn1"
    other: str = "bn2"
    width: int = 8
    dtype: type = jnp.float32
    max_pool: object = nn.max_pool

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), use_bias=False, dtype=self.dtype, name="stem")(x)
        x = self.norm(name=self.stem)(x, train)
        x = self.norm(name=self.other)(self.conv(8, name="conv1").product(x), train)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(jnp.mean(x, (1, 2))).astype(
            jnp.float32
        )


class OwnConvolution(OtherNames):
    """Its second binary convolution is not built by the field `conv`."""

    @nn.compact
    def __call__(self, x, *, train):
        x = self.norm(name="bn1")(self.conv(4, name="conv1").product(x), train)
        x = self.norm(name="bn2")(BinaryConv(4, name="conv2").product(x), train)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(jnp.mean(x, (1, 2))).astype(
            jnp.float32
        )


class NoFields(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(name="bn1")(BinaryConv(4, name="conv1").product(x), train)
        return nn.Dense(3, name="fc")(jnp.mean(x, (1, 2)))


def small_resnet(dtype=jnp.float32, **fields):
    return resnet20_1w1a(3, width=4, dtype=dtype).clone(stages=(1,), **fields)


def layers(dtype=jnp.float32):
    model = resnet20_1w1a(3, dtype=dtype)
    return {"num_classes": 3, "conv": model.conv, "norm": model.norm, "dtype": dtype}


OTHERS = {
    "shortcut first": lambda: small_resnet(block=ShortcutFirst),
    "names": lambda: OtherNames(**layers()),
    "names, bfloat16": lambda: OtherNames(**layers(jnp.bfloat16)),
    "no norm of that name": lambda: OtherNames(**layers(), stem="bn0"),
    "own convolution": lambda: OwnConvolution(**layers()),
    "no fields": NoFields,
}


def trained(model):
    """Return variables with norms and scales far from 1."""
    init = jax.jit(partial(model.init, train=False))
    shapes = init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(rng.uniform(0.5, 1.5, leaf.shape)), shapes)


def evaluate(model, variables):
    """Return the results of the evaluator and of `model.apply`."""
    config = digits.get_config()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, *SHAPE), np.uint8)
    split = Split(images, np.int32(rng.integers(0, 3, 24)))
    mesh = make_mesh(1)
    batches = padded_batches(split, mesh, 16)
    evaluate = make_evaluator(
        model, batches, 24, mesh, config.data, damaged_limit=0, use_native=config.native
    )
    found = evaluate(variables)
    normalized = normalize(jnp.asarray(images), config.data.mean, config.data.std)
    logits = jax.jit(partial(model.apply, train=False))(variables, normalized)
    return found, score(logits, jnp.asarray(split.labels)).means()


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_that_does_not_fold_is_evaluated_as_it_is_and_not_packed(name, caplog):
    caplog.set_level(logging.WARNING, "siman_jax")
    model = OTHERS[name]()
    variables = trained(model)
    found, expected = evaluate(model, variables)
    assert found == pytest.approx(expected, rel=1e-2 if "bfloat16" in name else 1e-5)
    assert "evaluating by model.apply" in caplog.text
    with pytest.raises(UsageError, match=r"this \w+ cannot be packed: .* such as conv1 and bn1"):
        pack_variables(model, variables, SHAPE)


def test_packing_compares_logits():
    """This network's packed form runs, but its norms have each other's scales."""
    model = OTHERS["names"]()
    with pytest.raises(UsageError, match="cannot be packed: it would give other logits"):
        pack_variables(model, trained(model), SHAPE)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_networks_of_the_project_are_folded(dtype, caplog):
    caplog.set_level(logging.WARNING, "siman_jax")
    model = small_resnet(dtype)
    variables = trained(model)
    found, expected = evaluate(model, variables)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4 if dtype == jnp.float32 else 1)
    assert not caplog.text
    assert pack_variables(model, variables, SHAPE)["params"]["layer1_0"]["conv1"].keys() == {
        "words"
    }
