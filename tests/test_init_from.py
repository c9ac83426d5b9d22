"""Runs that start from trained weights: leaf by leaf, from a run, and from a PyTorch file."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_data import load_golden
from small_runs import leaves_of

from siman_jax.configs import digits
from siman_jax.devices.mesh import make_mesh
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.models.transfer import transfer
from siman_jax.pytorch.checkpoint import find_state
from siman_jax.pytorch.names import variables_by_name, variables_from_torch
from siman_jax.runs import init_from
from siman_jax.runs.init_from import class_axes
from siman_jax.runs.log import read_rows
from siman_jax.runs.train import train, train_together
from siman_jax.stop import Preempted

FC = ("params", "fc", "kernel"), ("params", "fc", "bias")
OF_CLASSES = {FC[0]: (1,), FC[1]: (0,)}


def variables(seed, binary=True, *, channels=4, classes=3, more=None):
    """A network of one convolution and a classifier; numbers are random."""
    rng = np.random.default_rng(seed)
    shapes = {
        ("params", "conv1", "binary_kernel" if binary else "kernel"): (3, 3, 2, channels),
        **({("params", "conv1", "alpha"): (channels,)} if binary else {}),
        ("batch_stats", "bn1", "mean"): (channels,),
        FC[0]: (channels, classes),
        FC[1]: (classes,),
        **(more or {}),
    }
    return unflatten_dict({path: jnp.float32(rng.random(s)) for path, s in shapes.items()})


def transferred(here, there, rule="half_half"):
    """Leaves by their paths, and everything else that `transfer` gives."""
    result = transfer(here, there, rule, lambda: OF_CLASSES)
    return flatten_dict(result.variables), result


def test_everything_that_fits_is_taken():
    there = variables(1)
    leaves, result = transferred(variables(0), there)
    assert (result.taken, result.made_binary, result.new) == (5, (), ())
    for path, leaf in flatten_dict(there).items():
        np.testing.assert_array_equal(leaves[path], leaf)


def test_a_classifier_of_other_classes_starts_anew():
    here, there = variables(0), variables(1, classes=7)
    leaves, result = transferred(here, there)
    assert result.new == ("fc/bias", "fc/kernel")
    for path in FC:
        np.testing.assert_array_equal(leaves[path], flatten_dict(here)[path])
    np.testing.assert_array_equal(
        leaves["batch_stats", "bn1", "mean"], there["batch_stats"]["bn1"]["mean"]
    )


@pytest.mark.parametrize("rule", ["half_half", "recu"])
def test_a_real_kernel_becomes_the_latent_one(rule):
    here, there = variables(0), variables(1, binary=False)
    kernel = np.asarray(there["params"]["conv1"]["kernel"])
    leaves, result = transferred(here, there, rule)
    assert result.made_binary == ("conv1",)
    np.testing.assert_array_equal(leaves["params", "conv1", "binary_kernel"], kernel)
    alpha = here["params"]["conv1"]["alpha"]
    if rule == "half_half":
        alpha = np.abs(kernel).mean((0, 1, 2))
    np.testing.assert_allclose(leaves["params", "conv1", "alpha"], alpha, rtol=1e-6)
    assert result.new == (() if rule == "half_half" else ("conv1/alpha",))


def test_all_that_does_not_fit_is_listed():
    extra = {("params", "prelu1", "slope"): (4,)}
    with pytest.raises(UsageError) as error:
        transferred(variables(0), variables(1, channels=8, classes=7, more=extra))
    assert str(error.value).splitlines() == [
        "these leaves do not fit:",
        "  bn1/mean has shape [8] there, [4] here",
        "  conv1/alpha has shape [8] there, [4] here",
        "  conv1/binary_kernel has shape [3, 3, 2, 8] there, [3, 3, 2, 4] here",
        "  fc/kernel has shape [8, 7] there, [4, 3] here",
        "  prelu1/slope of there has no place here",
    ]
    with pytest.raises(UsageError, match="prelu1/slope is missing there"):
        transferred(variables(0, more=extra), variables(1))
    with pytest.raises(UsageError, match="conv1/alpha of there has no place here"):
        transferred(variables(0, binary=False), variables(1))


def test_which_axes_are_those_of_the_classes():
    """Also if as many channels as classes would mislead."""
    config = digits.get_config()
    config.model.update(name="cifar.vgg_small_1w1a", width=10)
    assert {path: axes for path, axes in class_axes(config).items() if axes} == OF_CLASSES


def test_names_of_pytorch_alone_place_every_array():
    arrays = load_golden("resnet20").arrays
    expected = flatten_dict(variables_from_torch("cifar.resnet20_1w1a", arrays))
    found = flatten_dict(variables_by_name(arrays))
    assert found.keys() == {path for path in expected if path[0] != "bits"}
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])


def small(weight_rule, source=""):
    """Two epochs of four steps of a network with one binary convolution."""
    config = digits.get_config()
    config.update(epochs=2, batch_size=64, eval_batch_size=360, keep_checkpoints=3)
    config.update(init_from=str(source))
    config.model.name = "tests.own_networks:named_as_in_torch"
    config.model.update(width=8, weight_rule=weight_rule, activation_rule="siman")
    config.data.train_examples = 256
    return config


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder of a finished run with real weights and binary activations."""
    workdir = tmp_path_factory.mktemp("sources") / "real"
    train(small("real"), workdir, make_mesh(1))
    return workdir


def stop_at(monkeypatch, step):
    monkeypatch.setattr(StopSignals, "should_stop", lambda self, reached: reached == step)


def leaf(workdir, step, *path):
    """A leaf of the state in a checkpoint."""
    names = "".join(f"['{name}']" for name in ("progress", "state", *path))
    return leaves_of(workdir, step)[names]


def test_two_steps_of_which_the_second_goes_on_without_the_first(
    real, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    source, workdir = shutil.copytree(real, tmp_path / "source"), tmp_path / "binary"
    config = small("half_half", source)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Preempted, match="step 3 is saved"):
            train(config, workdir, make_mesh(1))
    assert f"started from {source}, step 8: 12 arrays taken; latent kernels" in caplog.text
    kernel = leaf(real, 8, "params", "conv1", "kernel")
    np.testing.assert_array_equal(leaf(workdir, 0, "params", "conv1", "binary_kernel"), kernel)
    np.testing.assert_allclose(
        leaf(workdir, 0, "params", "conv1", "alpha"), np.abs(kernel).mean((0, 1, 2)), rtol=1e-6
    )
    for path in (("params", "fc", "kernel"), ("batch_stats", "bn1", "mean")):
        np.testing.assert_array_equal(leaf(workdir, 0, *path), leaf(real, 8, *path))

    shutil.rmtree(source)
    other = small("half_half", tmp_path / "another")
    with pytest.raises(UsageError, match=r"config\.init_from: .*source there, .*another here"):
        train(other, workdir, make_mesh(1))
    train(config, workdir, make_mesh(1))
    assert [row["step"] for row in read_rows(workdir)] == [4, 8]


def test_seeds_start_from_the_same_weights_and_a_torch_file(tmp_path, monkeypatch):
    """The file has other classes, so each seed has a classifier of its own."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv0.weight": rng.standard_normal((8, 1, 3, 3)),
        "conv1.weight": rng.standard_normal((16, 8, 3, 3)),
        "fc.weight": rng.standard_normal((3, 16)),
        "fc.bias": rng.standard_normal(3),
    }
    for name, size in (("bn0", 8), ("bn1", 16)):
        for own in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{name}.{own}"] = 1 + rng.random(size)
    np.savez(tmp_path / "net.npz", **arrays)
    # In the place of `read_state`, since SciPy looks into a module `torch` that is in place.
    monkeypatch.setattr(
        init_from, "read_state", lambda path: find_state({"net": dict(np.load(path))}, path)
    )
    runs = {}
    for seed in (0, 1):
        runs[tmp_path / str(seed)] = small("half_half", tmp_path / "net.npz")
        runs[tmp_path / str(seed)].seed = seed
    stop_at(monkeypatch, 1)
    with pytest.raises(Preempted, match="step 1 is saved"):
        train_together(runs, make_mesh(1))
    kernel = np.float32(arrays["conv1.weight"].transpose(2, 3, 1, 0))
    classifiers = []
    for workdir in runs:
        np.testing.assert_array_equal(leaf(workdir, 0, "params", "conv1", "binary_kernel"), kernel)
        classifiers.append(leaf(workdir, 0, "params", "fc", "kernel"))
    assert classifiers[0].shape == (16, 10)
    assert (classifiers[0] != classifiers[1]).any()


def test_weights_that_do_not_fit_start_no_run(real, tmp_path):
    config = small("half_half", real)
    config.model.name = "tests.own_networks:branches"
    with pytest.raises(UsageError, match="cannot be taken: these leaves do not fit:\n"):
        train(config, tmp_path / "new", make_mesh(1))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match=r"there is no run in .*nothing; expected its config"):
        train(small("half_half", tmp_path / "nothing"), tmp_path / "new", make_mesh(1))
    assert not (tmp_path / "new").exists()
