"""Networks and data sources outside the package that fail: each command says where, in one line."""

import importlib
import re
import sys

import pytest
from cli import call
from small_runs import small_config

import siman_jax.main
from siman_jax import export
from siman_jax.data import load_dataset
from siman_jax.data.dataset import Dataset, Record
from siman_jax.data.defaults import image_files
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.own import build_own
from siman_jax.outside import find_function
from siman_jax.report.__main__ import main as report
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.verify import verify_run

SOURCE = """
from tests.own_data import stripes
from tests.own_networks import branches
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the user's module `theirs`, and forget the one that was imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        sys.modules.pop("theirs", None)
        (tmp_path / "theirs.py").write_text(text)
        importlib.invalidate_caches()

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = before
    sys.modules.pop("theirs", None)


def their_config():
    config = small_config()
    config.data.source, config.data.num_classes = "theirs:stripes", 2
    config.model.name = "theirs:branches"
    return config


BROKEN = [
    ("import not_installed\n", r"ModuleNotFoundError: No module .* \(theirs.py, line 1\)"),
    ("\n1 / 0\n", r"ZeroDivisionError: division by zero \(theirs.py, line 2\)"),
    ("def f(:\n", r"SyntaxError: invalid syntax \(theirs.py, line 1\)"),
    ("import sys\nsys.exit()\n", r"SystemExit \(theirs.py, line 2\)"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_module_that_fails_is_told_with_its_line(text, message, module):
    module(text)
    with pytest.raises(UsageError, match=f"importing theirs failed: {message}. Fix the module."):
        find_function("theirs:stripes", "data.source", ["digits"])


@pytest.mark.parametrize("name", [":f", ".theirs:f", "their:f", "theirs.more:f"])
def test_a_module_that_is_not_there_is_told_with_the_other_choices(name, module):
    module("")
    with pytest.raises(UsageError, match=r"Write PACKAGE.MODULE:FUNCTION .* one of: digits\."):
        find_function(name, "data.source", ["digits"])


def test_a_network_whose_function_fails_is_told_with_its_line(module):
    module("def small(num_classes):\n    return {}['width']\n")
    with pytest.raises(UsageError, match=r"small failed: KeyError: 'width' \(theirs.py, line 2\)"):
        build_own("theirs:small", 10)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"failed: ZeroDivisionError: division by zero \(theirs.py, line 4\)"),
        ("raise SystemExit(1)", r"failed: SystemExit: 1 \(theirs.py, line 4\)"),
        ("return Dataset(None, None, ('a', 'b'))", "training split .* type NoneType; expected"),
        ("return Dataset(Split([], []), None, ('a', 'b'))", "images of type list .* NumPy arrays"),
        ("return Dataset(None, None, 'ab')", "gave the classes 'ab'; expected their names"),
        ("return Dataset(None, None, (0, 1))", r"gave the classes \(0, 1\); expected their names"),
        ("return Dataset(None, None, None)", "gave the classes None; expected their names"),
    ],
)
def test_a_source_that_fails_or_gives_something_else_is_told(body, message, module):
    module(
        f"from siman_jax.data.dataset import Dataset, Split\n\ndef stripes(config):\n    {body}\n"
    )
    with pytest.raises(UsageError, match=message):
        load_dataset(their_config().data)


class Records:
    """Records of a user, the first of which is something else."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return self.first() if index == 0 else Record(b"", 0, "")


def no_file():
    raise FileNotFoundError("no file")


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (lambda: {}["path"], r"reading image 0 of .* failed: KeyError: 'path' \(test_outside.py,"),
        (lambda: (b"", 0), "image 0 .* is of type tuple; expected Record"),
        (lambda: Record("text", 0, ""), "expected Record.*: bytes, a whole number and a text"),
        (lambda: Record(b"", 0.5, ""), "expected Record.*: bytes, a whole number and a text"),
        (no_file, "cannot be read: no file"),
    ],
)
def test_a_record_that_cannot_be_read_is_told(first, message, monkeypatch):
    def source(config):
        return Dataset(Records(first), Records(first), ("a", "b"))

    monkeypatch.setattr(sys.modules[__name__], "source", source, raising=False)
    config = image_files()
    config.source, config.num_classes = f"{__name__}:source", 2
    with pytest.raises(UsageError, match=message):
        load_dataset(config)


@pytest.mark.slow
def test_every_command_tells_of_a_module_that_broke_after_training(module, tmp_path, capsys):
    module(SOURCE)
    config, workdir = their_config(), tmp_path / "run"
    config.epochs = 1
    train(config, workdir, make_mesh(1))
    out = tmp_path / "model.safetensors"
    told = r"importing theirs failed: RuntimeError: gone \(theirs.py, line 1\)"

    module("raise RuntimeError('gone')\n")
    for do in (train, evaluate_run):
        with pytest.raises(UsageError, match=told):
            do(config, workdir, make_mesh(1))
    with pytest.raises(UsageError, match=told):
        call(export.main, workdir, f"--out={out}")
    assert not out.exists()
    with pytest.raises(SystemExit, match="1"):
        call(report, workdir, f"--out={tmp_path / 'report'}")
    assert re.search(f"left out: run: .*{told}", capsys.readouterr().err)
    assert all(whole for _, whole, _ in verify_run(workdir))

    # The names of the classes are stored with the run, so packing needs no data source.
    module("from tests.own_networks import branches\n")
    call(export.main, workdir, f"--out={out}")
    assert siman_jax.load(out).notes.class_names == ("horizontal", "vertical")
    (workdir / "data.json").unlink()  # as in a run of an older version
    capsys.readouterr()
    call(export.main, workdir, f"--out={out}", "--overwrite")
    assert "class names are left out: theirs has no function 'stripes'" in capsys.readouterr().out
