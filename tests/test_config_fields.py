"""Configs in another mode, or without some fields: errors name what is missing."""

import importlib
import os

import pytest
from cli import TINY, run

from siman_jax.configs import cifar10, digits, image_folder, imagenet
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.runs.log import read_rows
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.workdir import read_config
from siman_jax.training.config_check import check_config
from siman_jax.training.field_types import faults_of_stored, flat

CONFIGS = ["cifar10", "cifar100", "cifar10_short", "cifar10_strong", "digits", "image_folder"]
CONFIGS += ["imagenet", "imagenet_two_step"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_its_fields(name):
    config = importlib.import_module(f"siman_jax.configs.{name}").get_config()
    check_config(config.lock(), make_mesh(1))
    assert faults_of_stored(flat(config.to_dict())) == []


@pytest.mark.parametrize(
    ("config", "source", "resident", "message"),
    [
        (digits, "digits", False, r"source is 'digits', whose data are in memory; set"),
        (digits, "tests.own_data:stripes", False, r"images in files the config lacks data.name, "),
        (digits, "tfds", True, r"for images in files the config lacks data.name, data.tfds_dir"),
        (cifar10, "image_folder", True, r"Name ROOT with --config.data.root=ROOT"),
        (imagenet, "image_folder", True, r"Name ROOT with --config.data.root=ROOT"),
        (image_folder, "digit", True, r"did you mean 'digits'"),
    ],
)
def test_another_mode(config, source, resident, message, tmp_path):
    config = config.get_config()
    config.data.update({"source": source, "resident": resident})
    with pytest.raises(UsageError, match=message):
        train(config.lock(), tmp_path / "run", make_mesh(1))
    assert not (tmp_path / "run").exists()


def test_a_field_that_is_missing_or_of_another_kind():
    for path in flat(digits.get_config().to_dict()):
        config = digits.get_config()
        *tables, name = path.split(".")
        table = config[tables[0]] if tables else config
        del table[name]
        with pytest.raises(UsageError, match=rf"the config lacks {path}[,;]"):
            check_config(config, make_mesh(1))
    config = digits.get_config()
    with config.ignore_type():
        config.batch_size = "many"
    with pytest.raises(UsageError, match="batch_size is 'many'; it must be a whole number"):
        check_config(config, make_mesh(1))


@pytest.mark.slow
def test_training_without_jit(tmp_path):
    """For debugging: every operation is compiled by itself, so XLA should compile fast."""
    small = ["--config.epochs=1", "--config.data.train_examples=256"]
    flags = {"JAX_DISABLE_JIT": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    result = run("main", *TINY, *small, f"--workdir={tmp_path}", env=os.environ | flags)
    assert result.returncode == 0, result.stderr
    (row,) = read_rows(tmp_path)
    compiled = evaluate_run(read_config(tmp_path), tmp_path, make_mesh(1))
    assert compiled["last"]["loss"] == pytest.approx(row["test_loss"], rel=1e-3)


@pytest.mark.slow
def test_imagenet_without_its_data_is_a_clear_word(tmp_path):
    """The error is clear and has no traceback."""
    result = run("main", "--config=configs/imagenet.py", f"--config.data.tfds_dir={tmp_path}")
    assert result.returncode == 2, result.stderr
    assert "runs/imagenet" in result.stdout
    assert "error: imagenet2012" in result.stderr
    assert "Traceback" not in result.stderr
