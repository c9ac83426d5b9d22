"""Runs of older versions: new fields get defaults, and errors name removed fields."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from cli import REPOSITORY

from siman_jax.errors import UsageError
from siman_jax.runs.workdir import (
    check_workdir,
    claim_workdir,
    config_digest,
    fields_that_matter,
    read_config,
)

# Files written by older versions, and the config that made each.
OLD = [
    ("results/digits_resnet20_12epochs/config.json", "digits"),
    ("results/cifar10_jpeg_resnet20_10epochs/config.json", "image_folder"),
    ("results/clip/constant_15/seed0/config.json", "cifar10_short"),
    ("results/published_resnet20/config.json", "image_folder"),
    ("tests/old_configs/imagenet.json", "imagenet"),
]


def copy(file, folder):
    shutil.copy(REPOSITORY / file, folder / "config.json")
    return json.loads((folder / "config.json").read_text())


def config_of(name, saved):
    """Today's config with the values of a saved one."""
    config = importlib.import_module(f"siman_jax.configs.{name}").get_config()
    config.unlock()
    config.update(saved)
    return config


@pytest.mark.parametrize(("file", "name"), OLD, ids=[file for file, _ in OLD])
def test_an_older_run_goes_on(tmp_path, file, name):
    """If this fails for a new field, add it to those in `runs.workdir` or `data.defaults`."""
    config = config_of(name, copy(file, tmp_path))
    check_workdir(config, tmp_path)
    old, new = (fields_that_matter(each) for each in (read_config(tmp_path), config))
    assert repr(sorted(old.items())) == repr(sorted(new.items()))  # as reports compare runs


def test_new_fields_and_their_values_are_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    saved = copy("results/digits_resnet20_12epochs/config.json", tmp_path)
    config = config_of("digits", saved)
    check_workdir(config, tmp_path)
    assert "is of an older version; fields that it lacks get their defaults" in (caplog.text)
    assert "config.optimizer.kernel_decay=0.0" in caplog.text
    config.optimizer.kernel_decay = 0.1  # the run had none
    with pytest.raises(UsageError, match=r"kernel_decay: 0.0 there, 0.1 here"):
        check_workdir(config, tmp_path)


def test_removed_fields_are_named(tmp_path):
    saved = copy("tests/old_configs/imagenet.json", tmp_path)
    config = config_of("imagenet", saved)
    saved["optimizer"]["lookahead"] = 5
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"optimizer.lookahead: 5 there, no such field here"):
        check_workdir(config, tmp_path)


def test_a_field_that_no_default_is_known_of_is_named(tmp_path):
    saved = copy("tests/old_configs/imagenet.json", tmp_path)
    config = config_of("imagenet", saved)
    del saved["model"]["dtype"]
    Path(tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"model.dtype: no such field there, float32 here"):
        check_workdir(config, tmp_path)


def test_a_warmup_of_whole_epochs_is_stored_as_it_was(tmp_path):
    """It was a whole number before it took fractions."""
    config = importlib.import_module("siman_jax.configs.cifar10").get_config()
    claim_workdir(config, tmp_path)
    assert '"warmup_epochs": 5,' in (tmp_path / "config.json").read_text()
    assert config_digest(read_config(tmp_path)) == config_digest(config)
    check_workdir(config, tmp_path)
    config.optimizer.warmup_epochs = 5.5
    with pytest.raises(UsageError, match=r"warmup_epochs: 5 there, 5.5 here"):
        check_workdir(config, tmp_path)
    claim_workdir(config, tmp_path)
    assert read_config(tmp_path).optimizer.warmup_epochs == 5.5
