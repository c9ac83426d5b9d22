"""What evaluation runs: a network's program, or the network itself where there is none."""

import logging
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packable_networks import PlainCnn
from test_program import drawn

from siman_jax.configs import digits
from siman_jax.data.dataset import Split
from siman_jax.data.resident import padded_batches
from siman_jax.devices.mesh import make_mesh
from siman_jax.models.cifar import resnet20_1w1a
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.models.normalization import normalize
from siman_jax.program import prove
from siman_jax.program.interpret import interpret
from siman_jax.program.trace import trace
from siman_jax.training.epoch import make_evaluator
from siman_jax.training.metrics import score

SHAPE = (8, 8, 1)


class Erf(nn.Module):
    """It computes what no program can."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(name="norm")(BinaryConv(4, name="conv").product(x), train)
        return nn.Dense(3)(jnp.mean(jax.scipy.special.erf(x), (1, 2)))


def small_resnet(dtype=jnp.float32):
    return resnet20_1w1a(3, width=4, dtype=dtype).clone(stages=(1,))


def evaluate(model):
    """Evaluate twice; return the results, the logits of `model.apply`, and those of a program."""
    config = digits.get_config()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, *SHAPE), np.uint8)
    labels = np.int32(rng.integers(0, 3, 24))
    normalized = normalize(jnp.asarray(images), config.data.mean, config.data.std)
    first, second = drawn(model, normalized), drawn(model, normalized)
    second["params"] = jax.tree.map(lambda leaf: -leaf, second["params"])
    evaluate = make_evaluator(
        model,
        padded_batches(Split(images, labels), make_mesh(1), 16),
        24,
        make_mesh(1),
        config.data,
        damaged_limit=0,
        use_native=config.native,
    )
    apply = jax.jit(partial(model.apply, train=False))
    for variables in (first, second):
        logits = apply(variables, normalized)
        yield variables, normalized, evaluate(variables), score(logits, labels).means(), labels


def assert_programs_are_evaluated(model, caplog):
    caplog.set_level(logging.INFO, "siman_jax")
    for variables, images, found, expected, labels in evaluate(model):
        logits = jax.jit(interpret)(trace(model, variables, SHAPE), images)
        assert found == pytest.approx(score(logits, jnp.asarray(labels)).means(), rel=1e-6)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert not caplog.text


def test_networks_of_the_project_run_as_programs(caplog):
    assert_programs_are_evaluated(small_resnet(), caplog)


def test_networks_of_one_s_own_run_as_programs(caplog):
    assert_programs_are_evaluated(PlainCnn(), caplog)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Erf(), "erf of activations"), (small_resnet(jnp.bfloat16), "in bfloat16")],
)
def test_what_cannot_be_packed_runs_as_it_is(model, reason, caplog):
    caplog.set_level(logging.INFO, "siman_jax")
    for _, _, found, expected, _ in evaluate(model):
        assert found == pytest.approx(expected, rel=1e-5)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert reason in caplog.text


def test_a_program_that_differs_is_not_run(caplog, monkeypatch):
    """As if tracing had gone wrong: the weights are others."""
    traced = prove.tracer

    def wrong(*arguments):
        return lambda variables: traced(*arguments)(
            {**variables, "params": jax.tree.map(lambda leaf: 1.1 * leaf, variables["params"])}
        )

    monkeypatch.setattr(prove, "tracer", wrong)
    for _, _, found, expected, _ in evaluate(small_resnet()):
        assert found == pytest.approx(expected, rel=1e-5)
    assert "evaluating by model.apply" in caplog.text
    assert "would differ from evaluation" in caplog.text
