"""Averages and distillation against closed forms; a run of a whole recipe, stopped and resumed."""

import json
from dataclasses import asdict, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from small_runs import leaves_of

from siman_jax import export
from siman_jax.configs import digits
from siman_jax.devices.mesh import by_example, make_mesh, replicated
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.export import pack_run
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.runs.log import read_rows
from siman_jax.runs.stored_run import create_run, load_run
from siman_jax.runs.teacher import check_teacher, read_teacher
from siman_jax.runs.train import evaluate_run, train
from siman_jax.stop import Preempted
from siman_jax.training.distillation import Distillation
from siman_jax.training.metrics import cross_entropy, to_teacher
from siman_jax.training.seeds_together import over_seeds
from siman_jax.training.step import AveragedRotatedState, create_state, state_from, train_step
from siman_jax.training.task import image_shape, model_from_config

DECAY = 0.5  # after nine steps it is reached


class Tiny(nn.Module):
    """The smallest network with running statistics."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(BatchNorm()(x, train).mean((1, 2)))


def tiny_state(seed):
    return create_state(Tiny(), optax.sgd(0.5), jax.random.key(seed), (2, 2, 4), averaged=True)


tiny_step = partial(
    train_step, model=Tiny(), optimizer=optax.sgd(0.5), schedules={}, average_decay=DECAY
)


def tiny_batch(seed):
    rng = np.random.default_rng(seed)
    images = jnp.float32(rng.standard_normal((8, 2, 2, 4)))
    return images, jnp.asarray(rng.integers(0, 3, 8), jnp.int32)


@pytest.fixture(scope="module")
def averaged():
    """A tiny state after every one of twelve steps."""
    states, step = [tiny_state(0)], jax.jit(tiny_step)
    for seed in range(12):
        states.append(step(states[-1], *tiny_batch(seed))[0])
    return states


def test_the_average_is_that_of_the_formula(averaged):
    expected = flatten_dict(averaged[0].variables())
    for t, state in enumerate(averaged[1:], start=1):
        d = min(DECAY, (1 + t) / (10 + t))
        for path, leaf in flatten_dict(state.variables()).items():
            expected[path] = d * expected[path] + (1 - d) * leaf
    found = flatten_dict(averaged[-1].evaluated())
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6)


def test_an_average_changes_nothing_of_the_training(averaged):
    optimizer = optax.sgd(0.5)
    state, step = create_state(Tiny(), optimizer, jax.random.key(0), (2, 2, 4)), jax.jit(tiny_step)
    for seed in range(12):
        state, _ = step(state, *tiny_batch(seed))
    for after, before in zip(
        *(jax.tree.leaves(s.variables()) for s in (averaged[-1], state)), strict=True
    ):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)


def test_every_seed_has_its_own_average(averaged):
    """As vmapped seeds, and on four devices."""
    own = tiny_state(0)
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), tiny_state(1), own)
    stacked = stacked.replace(step=own.step)
    step = jax.jit(over_seeds(tiny_step, stacked, 2))
    mesh = make_mesh(4)
    spread = jax.device_put(own, replicated(mesh))
    for seed in range(2):
        images, labels = tiny_batch(seed)
        stacked, _ = step(stacked, jnp.stack([images] * 2), jnp.stack([labels] * 2))
        batch = jax.device_put((images, labels), by_example(mesh))
        spread, _ = jax.jit(tiny_step)(spread, *batch)
    alone = jax.tree.leaves(averaged[2].average)
    for a, b, c in zip(
        alone, jax.tree.leaves(stacked.average), jax.tree.leaves(spread.average), strict=True
    ):
        np.testing.assert_allclose(a, b[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)


def test_rotations_are_not_averaged():
    variables = {"params": {"w": jnp.ones(2)}, "rotations": {"left": jnp.eye(2)}}
    state = state_from(variables, optax.sgd(0.1), averaged=True)
    assert isinstance(state, AveragedRotatedState)
    state = state.replace(params={"w": jnp.zeros(2)}, rotations={"left": 2 * jnp.eye(2)})
    assert float(state.evaluated()["params"]["w"][0]) == 1
    np.testing.assert_array_equal(state.evaluated()["rotations"]["left"], 2 * jnp.eye(2))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_the_loss_to_a_teacher_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    logits, answers = rng.standard_normal((2, 5, 4))
    temperature = 3.0
    learned, taught = (softmax(x / temperature) for x in (logits, answers))
    losses, pull = jax.vjp(
        lambda x: to_teacher(x, jnp.float32(answers), temperature), jnp.float32(logits)
    )
    expected = -(temperature**2) * (taught * np.log(learned)).sum(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    (gradient,) = pull(jnp.ones(5))
    np.testing.assert_allclose(gradient, temperature * (learned - taught), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_teacher_and_the_labels_share_the_loss(weight):
    images, labels = tiny_batch(0)
    teacher = tiny_state(5).variables()
    answers = Tiny().apply(teacher, images, train=False)
    logits = jnp.float32(np.random.default_rng(1).standard_normal((8, 3)))
    loss = Distillation(Tiny(), 2.0, weight).loss(teacher, images, cross_entropy)
    expected = weight * to_teacher(logits, answers, 2.0)
    expected += (1 - weight) * cross_entropy(logits, labels)
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-5)


class Dense(nn.Module):
    """Without batch norm, so that parts of a batch give what the whole batch does."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x.mean((1, 2)))


def test_a_taught_step_by_parts_seeds_and_devices():
    images, labels = tiny_batch(0)
    optimizer, student = optax.sgd(0.5), Dense()
    state = create_state(student, optimizer, jax.random.key(0), (2, 2, 4))
    teacher = tiny_state(5).variables()
    step = partial(
        train_step,
        model=student,
        optimizer=optimizer,
        schedules={},
        distillation=Distillation(Tiny(), 2.0, 1.0),
    )
    whole = jax.jit(step)(state, images, labels, teacher)[0].params["Dense_0"]
    x = np.asarray(images).mean((1, 2))
    before = {name: np.asarray(leaf) for name, leaf in state.params["Dense_0"].items()}
    answers = np.asarray(Tiny().apply(teacher, images, train=False))
    error = softmax((x @ before["kernel"] + before["bias"]) / 2) - softmax(answers / 2)
    expected = before["kernel"] - 0.5 * 2 * x.T @ error / 8
    np.testing.assert_allclose(whole["kernel"], expected, rtol=1e-5, atol=1e-6)

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state).replace(step=state.step)
    both = jnp.stack([images[::-1], images]), jnp.stack([labels[::-1], labels])
    mesh = make_mesh(4)
    spread = jax.device_put((images, labels), by_example(mesh))
    everywhere = jax.device_put((state, teacher), replicated(mesh))
    for other in (
        jax.jit(partial(step, accumulation=2))(state, images, labels, teacher)[0].params,
        jax.tree.map(
            lambda leaf: leaf[1],
            jax.jit(over_seeds(step, stacked, 2))(stacked, *both, teacher)[0].params,
        ),
        jax.jit(step)(everywhere[0], *spread, everywhere[1])[0].params,
    ):
        for name, leaf in other["Dense_0"].items():
            np.testing.assert_allclose(leaf, whole[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a run that may teach; it starts from random weights, and never trained."""
    config, workdir = small(), tmp_path_factory.mktemp("recipes") / "teacher"
    model = model_from_config(config)
    images = jnp.zeros((1, *image_shape(config)))
    variables = model.init(jax.random.key(7), images, train=False)
    create_run(config, workdir, make_mesh(1), variables)
    return workdir


def small():
    """Two epochs of two steps of a tiny network."""
    config = digits.get_config()
    config.update(epochs=2, batch_size=256, eval_batch_size=360)
    config.model.update(name="tests.own_networks:named_as_in_torch", width=8)
    config.data.train_examples = 512
    return config


def recipe(teacher):
    """Nearly nothing as in the published recipe."""
    config = small()
    config.average_decay = 0.3
    config.data.update(color_jitter=0.3, cutout=2, mixup=0.3, cutmix=1.0)
    config.loss.label_smoothing = 0.1
    config.distillation.update(teacher=str(teacher), temperature=2.0, weight=0.6)
    config.optimizer.update(
        name="adam",
        learning_rate=0.01,
        clip_norm=0.5,
        gradient_floor=0.04,
        schedule="linear",
        warmup_epochs=2,
    )
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher):
    """The folder of a finished run of that recipe, and the results of `train`."""
    workdir = tmp_path_factory.mktemp("recipes") / "finished"
    return workdir, train(recipe(teacher), workdir, make_mesh(1))


def test_a_stopped_run_of_a_recipe_resumes_bit_for_bit(finished, teacher, tmp_path, monkeypatch):
    workdir, _ = finished
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 3)
        with pytest.raises(Preempted, match="step 3 is saved"):
            train(recipe(teacher), stopped, make_mesh(1))
    train(recipe(teacher), stopped, make_mesh(1))
    expected, found = leaves_of(workdir, 4), leaves_of(stopped, 4)
    assert expected.keys() == found.keys()
    assert any("average" in name for name in expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_the_average_is_evaluated_and_exported(finished, teacher, monkeypatch):
    workdir, results = finished
    row = read_rows(workdir)[-1]
    assert row["test_loss"] != row["unaveraged_test_loss"]
    differs = row["average_differs"].values()
    assert len(differs) == 1
    assert 0 < max(differs) < 0.5
    assert row["learning_rate"] == pytest.approx(0.005)  # a straight line to 0
    again = evaluate_run(recipe(teacher), workdir, make_mesh(1))
    assert again["last"]["loss"] == pytest.approx(results["last"]["loss"])
    packed, proven = [], export.proven_program

    def note(model, variables, *others):
        packed.append(variables)
        return proven(model, variables, *others)

    monkeypatch.setattr(export, "proven_program", note)
    state = load_run(recipe(teacher), workdir, make_mesh(1)).progress.state
    for unaveraged, loss, variables in (
        (False, row["test_loss"], state.evaluated()),
        (True, row["unaveraged_test_loss"], state.variables()),
    ):
        _, notes = pack_run(recipe(teacher), workdir, best=False, unaveraged=unaveraged)
        assert notes.accuracy["loss"] == loss
        jax.tree.map(np.testing.assert_array_equal, packed.pop(), variables)


def test_a_run_without_an_average_has_no_other_weights(finished, teacher, tmp_path):
    config = recipe(teacher)
    config.average_decay = 0.0
    with pytest.raises(UsageError, match="does not average its weights; leave out --unaveraged"):
        pack_run(config, tmp_path, best=False, unaveraged=True)
    config.average_decay = 0.2  # it is part of the run's identity
    with pytest.raises(UsageError, match=r"average_decay: 0.3 there, 0.2 here"):
        train(config, finished[0], make_mesh(1))
    assert json.loads((finished[0] / "config.json").read_text())["average_decay"] == 0.3


def test_a_teacher_that_does_not_fit_or_changed_is_refused(finished, teacher, tmp_path):
    for field, value, message in (
        ("data.mean", (0.5,), r"mean is \(?\[?0.3054.* there, \(?0.5,\)? here"),
        ("data.image_size", 16, "image_size is 8 there, 16 here"),
    ):
        config = recipe(teacher)
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UsageError, match=message):
            read_teacher(config, tuple("0123456789"), make_mesh(1))
    shown = json.loads((finished[0] / "teacher.json").read_text())
    (teacher / "data.json").write_text(json.dumps({"classes": ["a", "b"], "train_examples": 9}))
    with pytest.raises(UsageError, match="its classes have other names or another order"):
        read_teacher(recipe(teacher), ("b", "a"), make_mesh(1))
    read = read_teacher(recipe(teacher), ("a", "b"), make_mesh(1))
    (teacher / "data.json").unlink()
    assert asdict(read.identity) == shown
    assert len(shown["sha256"]) == 64
    changed = replace(read, identity=replace(read.identity, sha256="0" * 64))
    with pytest.raises(UsageError, match="has other weights, of step 0, than when the run started"):
        check_teacher(changed, finished[0])
    check_teacher(changed, tmp_path)  # it has not started
