"""The trained models that come with the package."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli import REPOSITORY, call
from PIL import Image

import siman_jax
from siman_jax import trained
from siman_jax.data import load_dataset
from siman_jax.errors import UsageError
from siman_jax.predict import main as predict
from siman_jax.runs.workdir import read_config

DIGITS = "digits/resnet20"
NAMES = [model.name for model in siman_jax.trained_models()]
MOST_BYTES = 5_000_000


def row(name):
    return {model.name: model for model in siman_jax.trained_models()}[name]


def digits_test():
    config = read_config(REPOSITORY / "results" / "trained" / DIGITS)
    return load_dataset(config.data).test


def test_the_models_have_the_accuracy_of_their_runs():
    for model in siman_jax.trained_models():
        notes = siman_jax.load(model.name).notes
        assert notes.accuracy["top1"] == pytest.approx(model.top1, abs=1e-9)
        assert notes.accuracy["epoch"] == model.epoch
        assert model.config["model"]["name"] == model.network
    assert sum(model.bytes for model in siman_jax.trained_models()) <= MOST_BYTES


@pytest.mark.parametrize("exact", [True, False])
def test_the_digits_model_classifies_as_the_manifest_says(exact):
    """With `exact` the accuracy is that of evaluation; rounding may change one image by default."""
    test = digits_test()
    predicted = siman_jax.load(DIGITS, exact=exact).predict(test.images).classes
    right = int((predicted == test.labels).sum())
    expected = round(row(DIGITS).top1 * len(test) / 100)
    assert len(test) == row(DIGITS).images == 360
    assert abs(right - expected) <= (0 if exact else 1)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_logits(name):
    """In two images of 64, rounding may change a bit."""
    logits = json.loads((Path(__file__).parent / "trained_logits" / f"{name}.json").read_text())
    model = siman_jax.load(name)
    shape = (64, *model.network.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    equal = np.isclose(model(images), logits, rtol=1e-3, atol=1e-3).all(axis=1)
    assert equal.sum() >= 62


def test_a_file_of_that_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / DIGITS).write_bytes(b"another file")
    with pytest.raises(UsageError, match="not a usable model file"):
        siman_jax.load(DIGITS)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'digits/resnet20'.*Choose one of: digits"):
        siman_jax.load("digits/resnet2")
    with pytest.raises(UsageError, match=r"there is no file model\.safetensors"):
        siman_jax.load("model.safetensors")


def test_nothing_is_downloaded():
    with pytest.raises(UsageError, match=r"downloads nothing\. Fetch the file yourself"):
        siman_jax.load("https://example.org/model.safetensors", sha256="0" * 64)


def test_digests(tmp_path):
    model = row(DIGITS)
    copy = shutil.copy(model.path, tmp_path / "model.safetensors")
    siman_jax.load(copy, sha256=model.sha256.upper())
    for source in (copy, model.path.read_bytes(), DIGITS):
        with pytest.raises(UsageError, match=f"SHA-256 is {model.sha256}; expected 00"):
            siman_jax.load(source, sha256="0" * 64)


def test_a_changed_file_of_the_package_is_refused(tmp_path, monkeypatch):
    """Even if it is a usable model file."""
    shutil.copytree(trained.FOLDER, tmp_path / "trained")
    monkeypatch.setattr(trained, "FOLDER", tmp_path / "trained")
    siman_jax.load(DIGITS)
    other = siman_jax.load(DIGITS)
    path = tmp_path / "trained" / f"{DIGITS}.safetensors"
    from siman_jax.packed.program_file import write_program

    write_program(path, other.network, np.float16)
    siman_jax.load(path)
    with pytest.raises(UsageError, match="its SHA-256 is"):
        siman_jax.load(DIGITS)


def test_a_damaged_list_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "MANIFEST", tmp_path / "manifest.json")
    for text in ("", "{}]", '[{"name": "a"}]', "[1]"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UsageError, match="not a readable list of models"):
            siman_jax.load(DIGITS)


def test_the_table():
    lines = repr(siman_jax.trained_models()).splitlines()
    assert lines[0].split("  ")[0] == "name"
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert "98.06" in next(line for line in lines if line.startswith(DIGITS))


def test_predict_takes_the_name(tmp_path, capsys):
    test = digits_test()
    Image.fromarray(test.images[0, ..., 0]).save(tmp_path / "digit.png")
    call(predict, DIGITS, tmp_path / "digit.png", "--json", "--top=1")
    found = json.loads(capsys.readouterr().out)["predictions"][0]["class"]
    assert found == test.labels[0]
    with pytest.raises(UsageError, match="trained model 'digits/vgg'"):
        call(predict, "digits/vgg", tmp_path / "digit.png")
