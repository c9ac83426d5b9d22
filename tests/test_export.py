"""Tests of exporting a run: the checkpoint's bits and logits, and nothing is overwritten."""

import json
import shutil
import tomllib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import REPOSITORY, call, run
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image

import siman_jax
from siman_jax.configs import digits, image_folder
from siman_jax.data import load_dataset
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.export import main as export
from siman_jax.models.leaves import binary_bits
from siman_jax.models.normalization import normalize
from siman_jax.packed.model import PackedModel
from siman_jax.packed.notes import parse_notes
from siman_jax.program.kernels import unpack_kernel
from siman_jax.program.operations import BinaryConv
from siman_jax.runs.log import best_row, read_rows
from siman_jax.runs.model_notes import notes_from_config
from siman_jax.runs.stored_run import create_run, load_run
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.workdir import read_config
from siman_jax.training.metrics import score
from siman_jax.training.task import model_from_config


def test_the_notes_say_how_files_become_pixels():
    """The config decides, or defaults if it lacks such fields."""
    data = image_folder.get_config().data
    assert not notes_from_config(data).exif_orientation
    data.update(background=255, exif_orientation=True)
    notes = parse_notes(notes_from_config(data).as_json(), (32, 32, 3), 10)
    assert (notes.background, notes.exif_orientation) == (255, True)
    for fields in (digits.get_config().data, {"mean": (0.5,), "std": (0.5,), "resident": True}):
        notes = notes_from_config(ConfigDict(fields))
        assert (notes.background, notes.exif_orientation) == (0, False)


def small_config():
    config = digits.get_config()
    config.epochs = 2
    config.model.width = 4
    config.batch_size = 256
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Train a narrow network on the digits for two epochs."""
    config = small_config()
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config, folder, make_mesh(1))
    return folder


def state_of(workdir, best=False):
    return load_run(read_config(workdir), workdir, make_mesh(1), best=best).progress.state


def assert_same_network(model, workdir, best=False):
    """Bits and logits of the model are the checkpoint's."""
    config, state = read_config(workdir), state_of(workdir, best)
    params = flatten_dict(state.params)
    words = {
        one.path: one.words
        for one in model.network.program.operations
        if isinstance(one, BinaryConv)
    }
    for name, bits in binary_bits(state.params, config.model.weight_rule).items():
        path = tuple(name.split("/"))
        negated = np.asarray(params[*path, "alpha"] < 0)
        found = unpack_kernel(words[name], bits.shape[2])
        np.testing.assert_array_equal(found, np.asarray(bits) ^ negated)
    data = load_dataset(config.data)
    images = data.test.images
    network, variables = model_from_config(config), state.variables()
    normalized = normalize(jnp.asarray(images), config.data.mean, config.data.std)
    logits = jax.jit(partial(network.apply, variables, train=False))(normalized[:50])
    np.testing.assert_allclose(model(images[:50]), logits, rtol=1e-4, atol=1e-4)
    # Compared with evaluation on the whole test set.
    evaluated = evaluate_run(config, workdir, make_mesh(1))["best" if best else "last"]
    exact = score(jnp.asarray(PackedModel(model.network, exact=True)(images)), data.test.labels)
    assert exact.means()["top1"] == evaluated["top1"]
    assert exact.means()["loss"] == pytest.approx(evaluated["loss"], rel=1e-5)


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_file_does_what_the_checkpoint_does(workdir, tmp_path, checkpoint):
    out = tmp_path / "model.safetensors"
    call(export, workdir, f"--out={out}", f"--checkpoint={checkpoint}")
    model, config = siman_jax.load(out), read_config(workdir)
    assert_same_network(model, workdir, best=checkpoint == "best")
    notes = model.notes
    assert notes.class_names == tuple("0123456789")
    assert (notes.mean, notes.std) == (tuple(config.data.mean), tuple(config.data.std))
    assert len(notes.config_sha256) == 64
    rows = read_rows(workdir)
    row = rows[-1] if checkpoint == "last" else best_row(rows)
    assert notes.accuracy["top1"] == row["test_top1"]
    assert notes.accuracy["epoch"] == row["epoch"]


@pytest.mark.slow
def test_bits_of_another_weight_rule(tmp_path, capsys):
    """Export a run that was created and never evaluated."""
    config = small_config()
    config.model.weight_rule = "angle_optimal"
    init = jax.jit(partial(model_from_config(config).init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    create_run(config, tmp_path / "run", make_mesh(1), variables)
    call(export, tmp_path / "run", f"--out={tmp_path / 'model'}")
    model = siman_jax.load(tmp_path / "model")
    assert_same_network(model, tmp_path / "run")
    assert model.notes.accuracy is None
    assert "unknown" in capsys.readouterr().out


def test_equal_runs_give_equal_bytes_and_what_is_there_stays(workdir, tmp_path, capsys):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for out in (first, second):
        call(export, workdir, f"--out={out}")
    assert f"{first.stat().st_size:,} bytes" in capsys.readouterr().out.replace("\n", " ")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(UsageError, match="exists; name another file, or replace it by --overwrite"):
        call(export, workdir, f"--out={first}", "--float16")
    assert first.read_bytes() == second.read_bytes()
    capsys.readouterr()
    call(export, workdir, f"--out={first}", "--float16", "--overwrite")
    assert "a few predictions may differ" in capsys.readouterr().out
    assert len(first.read_bytes()) < len(second.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.slow
def test_a_program_of_all_platforms(workdir, tmp_path):
    """Run the command as a user does."""
    out, program = tmp_path / "model.safetensors", tmp_path / "model.stablehlo"
    result = run("export", workdir, "--out", out, "--stablehlo", program)
    assert result.returncode == 0, result.stderr
    assert "StableHLO for cpu, cuda and tpu" in result.stdout
    model = siman_jax.load(out)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    exported = jax.export.deserialize(bytearray(program.read_bytes()))
    np.testing.assert_allclose(exported.call(images), model(images), rtol=1e-5, atol=1e-5)


def write_images(folder, name, level, count=4):
    folder = folder / name
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (8, 8), (level, level, index)).save(folder / f"{index}.png")


@pytest.mark.slow
def test_a_run_on_a_folder_that_changes_and_then_is_gone(tmp_path):
    """The run knows its classes and the number of its examples; to pack it, no image is needed."""
    images, folder = tmp_path / "images", tmp_path / "run"
    for split in ("train", "test"):
        for name, level in (("dark", 0), ("light", 255)):
            write_images(images / split, name, level)
    config = image_folder.get_config()
    config.data.root = str(images)
    config.data.cache_dir = str(tmp_path / "cache")
    config.update({"epochs": 1, "batch_size": 4})
    config.model.width = 4
    config.data.image_size = 8
    mesh = make_mesh(1)
    train(config, folder, mesh)
    logged = (folder / "log.jsonl").read_text()

    def export_to(name):
        call(export, folder, f"--out={tmp_path / name}")
        return siman_jax.load(tmp_path / name)

    assert export_to("with").notes.class_names == ("dark", "light")

    for split in ("train", "test"):
        (images / split / "dark").rename(images / split / "shade")
    message = r"missing: dark; new: shade"
    for refused in (
        partial(train, config, folder, mesh),
        partial(evaluate_run, config, folder, mesh),
    ):
        with pytest.raises(UsageError, match=message):
            refused()
    with pytest.raises(UsageError, match=message):
        export_to("renamed")
    for split in ("train", "test"):
        (images / split / "shade").rename(images / split / "dark")
        write_images(images / split, "grey", 128)
    with pytest.raises(UsageError, match="new: grey"):
        evaluate_run(config, folder, mesh)
    for split in ("train", "test"):
        shutil.rmtree(images / split / "grey")

    (images / "train" / "dark" / "3.png").unlink()
    with pytest.raises(UsageError, match="has 7 examples now, and had 8"):
        train(config, folder, mesh)
    assert evaluate_run(config, folder, mesh)["last"]["epoch"] == 1
    assert (folder / "log.jsonl").read_text() == logged

    shutil.rmtree(images)
    model = export_to("without")
    assert model.notes.class_names == ("dark", "light")
    assert model.network.num_classes == 2
    (folder / "data.json").unlink()  # as an older version left it
    assert export_to("older").notes.class_names is None
    (folder / "data.json").write_text('{"classes": ["dark"]}')
    with pytest.raises(UsageError, match=r"data.json is damaged"):
        export_to("damaged")


def test_what_is_wrong_is_said_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    out = f"--out={tmp_path / 'model'}"
    wrong = {
        "name the folder of one run": [out],
        "--out is missing": [tmp_path],
        "expected its config.json": [tmp_path / "empty", out],
        "does not exist": [tmp_path, f"--out={tmp_path / 'no' / 'model'}"],
        "is a folder": [tmp_path, f"--out={tmp_path}"],
        "name the same file": [tmp_path, out, f"--stablehlo={tmp_path / 'model'}"],
        "checkpoint": [tmp_path, out, "--checkpoint=first"],
        "Unknown command line flag 'ot'": [tmp_path, "--ot=x"],
    }
    for message, arguments in wrong.items():
        with pytest.raises(UsageError, match=message):
            call(export, *arguments)
    (tmp_path / "empty" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UsageError, match=r"config.json is damaged \(not a table\)"):
        call(export, tmp_path / "empty", out)


def test_a_program_needs_flatbuffers_before_anything_is_written(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("siman_jax.export.importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"needs the package flatbuffers\. Run pip install"):
        call(export, workdir, f"--out={tmp_path / 'a'}", f"--stablehlo={tmp_path / 'b'}")
    assert not any(tmp_path.iterdir())
    required = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(name.startswith("flatbuffers") for name in required)


def test_the_command_ends_with_status_2(tmp_path):
    result = run("export", tmp_path, f"--out={tmp_path / 'model'}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no run in")
