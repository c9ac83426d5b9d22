"""Networks outside the package, by `--config.model.name=PACKAGE.MODULE:FUNCTION`."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import REPOSITORY, TINY, call, run
from packable_networks import PACKABLE
from PIL import Image
from small_runs import small_config

import siman_jax
from siman_jax import export, models
from siman_jax.configs import image_folder
from siman_jax.data import load_dataset
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.normalization import normalize
from siman_jax.models.own import build_own
from siman_jax.runs.log import read_rows
from siman_jax.runs.stored_run import load_run
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.workdir import read_config
from siman_jax.training.task import model_from_config

BRANCHES = "tests.own_networks:branches"


def config_of(name):
    config = small_config()
    config.epochs = 2
    config.model.name = name
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own") / "run"
    return workdir, train(config_of(BRANCHES), workdir, make_mesh(1))


def epochs(workdir):
    return [row for row in read_rows(workdir) if "test_loss" in row]


def test_it_trains(trained):
    workdir, _ = trained
    first, second = epochs(workdir)
    assert second["train_loss"] < first["train_loss"]
    assert second["flips"].keys() == {"left", "right", "dense"}
    assert read_config(workdir).model.name == BRANCHES


def test_its_evaluation_is_that_of_the_log(trained):
    workdir, results = trained
    assert evaluate_run(config_of(BRANCHES), workdir, make_mesh(1)) == results


def test_classes_that_were_counted_in_folders_are_those_of_the_run(tmp_path):
    """The network's classifier is not called fc, by which the package's networks tell."""
    for name in ("train/no", "train/yes", "test/no", "test/yes"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(4):
            image = np.full((8, 8, 3), 60 * index, np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    config = image_folder.get_config()
    config.data.update({"root": str(tmp_path), "image_size": 8, "cache_dir": ""})
    config.update({"epochs": 1, "batch_size": 4, "eval_batch_size": 4})
    config.model.update({"name": BRANCHES, "width": 16})
    workdir = tmp_path / "run"
    results = train(config, workdir, make_mesh(1))
    assert evaluate_run(config, workdir, make_mesh(1)) == results
    bits = load_run(config, workdir, make_mesh(1)).bits
    assert bits.keys() == {"left", "right", "dense"}


def test_a_finished_run_stays_finished(trained):
    workdir, _ = trained
    before = epochs(workdir)
    train(config_of(BRANCHES), workdir, make_mesh(1))
    assert epochs(workdir) == before


def test_its_summary_names_its_layers():
    done = run("main", *TINY, f"--config.model.name={BRANCHES}", "--mode=summary")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("left", "right", "dense", "classifier"))


PREDICT = """
import sys
import numpy as np
import siman_jax
model = siman_jax.load(sys.argv[1])
model.summary()
np.save(sys.argv[3], model(np.load(sys.argv[2])))
assert not any("own_networks" in name for name in sys.modules)
"""


def test_it_is_packed_and_predicts_the_same_without_its_code(trained, tmp_path):
    workdir, results = trained
    config = config_of(BRANCHES)
    model, images, logits = (tmp_path / name for name in ("m.safetensors", "x.npy", "y.npy"))
    call(export.main, workdir, f"--out={model}")
    np.save(images, load_dataset(config.data).test.images)
    command = [sys.executable, "-c", PREDICT, model, images, logits]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert all(layer in done.stdout for layer in ("left", "right", "dense", "binary_conv"))
    variables = load_run(config, workdir, make_mesh(1)).progress.state.variables()
    network = build_own(BRANCHES, 10, weight_rule="half_half")
    normalized = normalize(jnp.asarray(np.load(images)), config.data.mean, config.data.std)
    expected = jax.jit(partial(network.apply, train=False))(variables, normalized)
    np.testing.assert_array_equal(np.load(logits).argmax(1), expected.argmax(1))
    assert siman_jax.load(model).notes.accuracy["top1"] == results["last"]["top1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKABLE)
def test_networks_of_many_kinds_train_and_predict_the_same_packed(name, tmp_path):
    function = f"tests.packable_networks:{PACKABLE[name].__name__}"
    config = config_of(function)
    if name == "learned threshold":
        config.model.activation_rule = "approx_sign"
    if name == "no normalization":
        config.optimizer.learning_rate = 1e-4  # its sums are large
    workdir, out = tmp_path / "run", tmp_path / "model.safetensors"
    train(config, workdir, make_mesh(1))
    call(export.main, workdir, f"--out={out}")
    split = load_dataset(config.data).test
    variables = load_run(config, workdir, make_mesh(1)).progress.state.variables()
    network = model_from_config(read_config(workdir))
    normalized = normalize(jnp.asarray(split.images), config.data.mean, config.data.std)
    logits = jax.jit(partial(network.apply, train=False))(variables, normalized)
    for exact in (False, True):
        classes = siman_jax.load(out, exact=exact).predict(split.images).classes
        # Rounding may change a bit, and so seldom a class.
        assert (classes != logits.argmax(1)).sum() <= 1


def test_a_network_without_batch_norm_or_bits_trains(tmp_path):
    config = config_of("tests.own_networks:plain")
    train(config, tmp_path / "run", make_mesh(1))
    assert np.isfinite(epochs(tmp_path / "run")[-1]["test_loss"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.own_networks:branch", "has no function 'branch'; it has: always_bnn, branches"),
        ("tests.own_network:branches", "importing tests.own_network failed"),
        ("tests.own_networks:nothing", "returned int; expected a function"),
        ("tests.own_networks:image", "expected logits of shape"),
        ("tests.own_networks:fewer_classes", r"2 images to \(2, 9\); .*, here \(2, 10\)"),
        (
            "tests.own_networks:no_classes",
            r"no_classes\(\) cannot be called with \(int\): ",
        ),
        ("tests.own_networks:drops", r"train=True\): InvalidRngError.*layers like Dropout"),
        ("tests.own_networks:always_bnn", "has the weight rule 'bnn'.*Set the field to 'bnn'"),
        ("builtins:int", "the parameters of builtins:int cannot be found out"),
        ("cifar.resnet2", "unknown model.*cifar.resnet20_1w1a"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(name, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(config_of(name), tmp_path / "run", make_mesh(1))
    assert not (tmp_path / "run").exists()


def test_what_would_have_no_effect_is_refused():
    with pytest.raises(UsageError, match="takes no argument norm_groups"):
        build_own("tests.own_networks:plain", 10, norm_groups=2)


def test_a_width_without_effect_is_told(caplog):
    build_own("tests.own_networks:plain", 10, width=4)
    assert "--config.model.width=4 has no effect" in caplog.text


def test_no_model_file_names_a_module():
    with pytest.raises(UsageError, match="unknown model"):
        models.build_model("tests.own_networks:plain", 10)
