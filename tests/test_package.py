"""The wheel and the source archive, used in folders that know nothing of the repository."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import numpy as np
import pytest
from cli import REPOSITORY
from PIL import Image

import siman_jax

pytestmark = pytest.mark.slow

SMALL = {
    "model.name": "cifar.vgg_small_1w1a",
    "model.width": 4,
    "batch_size": 256,
    "epochs": 1,
    "data.train_examples": 512,
}
MINE = f"""
from siman_jax.configs import digits

def get_config():
    config = digits.get_config()
    config.update_from_flattened_dict({SMALL})
    return config
"""


def done(command, **options):
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result


def apart():
    """Environment variables by which nothing of the clone is found."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def tracked():
    """Files of the repository, those that are not committed yet included."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a clone")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = done(listed, cwd=REPOSITORY).stdout.split("\0")[:-1]
    return [name for name in names if os.path.lexists(REPOSITORY / name)]


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    """The source archive, and the wheel that is built from it."""
    pytest.importorskip("build")
    source, folder = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name, follow_symlinks=False)
    # What builds it is in the extra dev, so nothing is fetched for it.
    done([sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder}", source])
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """A new environment with the wheel; it shares this one's dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    # Without PYTHONPATH, by which pip would find the package in the clone.
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps"]
    done([*pip, built[1]], env=apart())
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    return python


@pytest.fixture
def run(python, tmp_path):
    """Runs Python in an empty folder, where it finds no compiler and nothing else of this one."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = apart() | {"PATH": str(python.parent), "HOME": str(tmp_path)}
    return lambda *arguments: done([python, *arguments], cwd=folder, env=environment)


def test_the_wheel_is_whole(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    for name in ("py.typed", "configs/digits.py", "configs/sweeps/methods.py", "rules/__init__.py"):
        assert f"siman_jax/{name}" in names
    for model in siman_jax.trained_models():
        assert f"siman_jax/trained/{model.name}.safetensors" in names
    assert any(re.fullmatch(r"siman_jax/native/_native\..*so", name) for name in names)
    header = "siman_jax/native/siman.h"
    assert header in names
    others = names - {header}
    assert not [name for name in others if re.search(r"\.(cc|h|inc)$|^(tests|benchmarks)", name)]


def test_commands_in_an_empty_folder(run, tmp_path):
    code = (
        "import sys; from siman_jax import configs; from siman_jax.native.library import variants;"
        " print(configs.__file__.startswith(sys.prefix), len(variants()) > 0)"
    )
    assert run("-c", code).stdout.split() == ["True", "True"]
    summary = run("-m", "siman_jax.main", "--config=configs/digits.py", "--mode=summary")
    assert "configs/digits.py is not in this folder; using the one shipped" in summary.stderr
    (tmp_path / "mine.py").write_text(MINE)
    trained = run("-m", "siman_jax.main", f"--config={tmp_path / 'mine.py'}")
    assert "top-1" in trained.stdout
    run("-m", "siman_jax.export", "runs/mine", "--out=digits.safetensors")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "digit.png")
    for model in ("digits.safetensors", "digits/resnet20"):
        predicted = run("-m", "siman_jax.predict", model, tmp_path / "digit.png")
        assert "digit.png" in predicted.stdout
    run("-m", "siman_jax.report", "runs/mine", "--out=report")
    assert (tmp_path / "empty" / "report" / "index.html").is_file()
    settings = [f"--set={field}={value}" for field, value in SMALL.items()]
    sweep = ("configs/sweeps/digits.py", "--workdir=sweep", "--only=half_half")
    assert "half_half" in run("-m", "siman_jax.sweep", *sweep, *settings).stdout


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(built[0]) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def test_the_source_archive_holds_the_repository(unpacked, tracked):
    assert [name for name in tracked if not os.path.lexists(unpacked / name)] == []
    assert os.readlink(unpacked / "siman_jax" / "configs") == "../configs"


def test_the_tests_of_the_source_archive_pass(unpacked, python):
    """All are collected, and some that read its files pass."""
    pytest_ = [python, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    done([*pytest_, "--collect-only"], cwd=unpacked, env=apart())
    # Of configs, of results/, and of golden files.
    some = ["tests/test_config_flag.py", "tests/test_older_runs.py", "siman_jax/field_names.py"]
    some.append("tests/test_convert.py::test_other_networks_are_refused")
    passed = done([*pytest_, "-m", "not slow", *some], cwd=unpacked, env=apart())
    assert re.search(r"\d+ passed", passed.stdout)
