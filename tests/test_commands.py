"""The output of commands: help, pipes, encodings, names with odd characters."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from cli import REPOSITORY, call, run
from packed_example import packed_network
from PIL import Image

from siman_jax.command import parse_flags
from siman_jax.data.image_files import list_images
from siman_jax.errors import UsageError
from siman_jax.main import main as siman_main
from siman_jax.output import check_output
from siman_jax.packed.program_file import read_model, write_program
from siman_jax.paths import local_path
from siman_jax.predict import main as predict
from siman_jax.runs.workdir import check_writable
from siman_jax.terminal import shown

ODD = "a\x1b[2J\r\u202eb"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model file with odd characters in the first class name, and accents in the others."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    network = packed_network()
    network.notes["class_names"] = [ODD, "é", "\udc80"]
    write_program(path, network)
    return path


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / f"{ODD}.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("module", ["main", "sweep", "export", "predict", "convert", "report"])
def test_help_is_no_error(module):
    result = run(module, "--help")
    assert result.returncode == 0, result.stderr
    assert "flags" in result.stdout


def test_odd_characters_are_shown():
    assert shown(ODD) == r"a\x1b[2J\r\u202eb"
    assert shown("\udcff\u2028\x07") == r"\udcff\u2028\x07"
    assert shown("a\nb\t", keep="\n\t") == "a\nb\t"
    for text in ("é ü 漢字 😀", "नी\u200cल", "a\u00a0b"):
        assert shown(text) == text


def test_names_are_shown_and_not_sent(model_file, image, tmp_path, capsys):
    (tmp_path / "\x1b[31mbad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        call(predict, model_file, tmp_path)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\u202e" not in printed.out
    assert r"a\x1b[2J\r\u202eb" in printed.out
    assert r"\x1b[31mbad.png: " in printed.err
    assert r"\udc80" in printed.out


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_narrow_encodings_lose_no_table(model_file, image, encoding):
    """Runs the command; the name of a file may also be invalid UTF-8."""
    with tempfile.TemporaryDirectory() as folder:  # too short for the table to wrap
        raw = os.fsencode(folder) + b"/\xff.png"
        shutil.copy(image, raw)
        result = run(
            *("predict", model_file, image),
            os.fsdecode(raw),
            env={**os.environ, "PYTHONIOENCODING": encoding},
            text=False,
        )
    assert result.returncode == 0, result.stderr
    printed = result.stdout.decode(encoding)
    assert "probability" in printed
    assert ("é" if encoding != "ascii" else r"\xe9") in printed
    assert r"\udcff.png" in printed


def piped(script, *arguments):
    """Run a pipe in a shell, with $PYTHON for this Python; return the first command's status."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipe", "name"), [("| true", "image.png"), ("2>&1 >/dev/null | true", "damaged.png")]
)
def test_a_closed_pipe_is_quiet(model_file, image, pipe, name):
    """Standard output, with tables, or standard error, with messages."""
    image.rename(image.with_name("image.png"))
    image.with_name("damaged.png").touch()
    script = f'"$PYTHON" -m siman_jax.predict "$@" {pipe}; exit ${{PIPESTATUS[0]}}'
    result = piped(script, model_file, image.with_name(name))
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.slow
def test_a_closed_standard_input_is_named(model_file):
    result = piped('"$PYTHON" -m siman_jax.predict "$1" - <&-', model_file)
    assert result.returncode == 1
    assert "-: cannot be read: standard input is closed" in result.stderr


@pytest.mark.slow
def test_files_from_other_commands_are_read(model_file, image):
    """The model and the image are pipes made by a shell."""
    script = '"$PYTHON" -m siman_jax.predict <(cat "$1") <(cat "$2") --json --top=1'
    result = piped(script, model_file, image)
    assert result.returncode == 0, result.stderr
    assert '"image": "/dev/fd/' in result.stdout


def test_a_model_file_may_be_a_pipe(model_file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    data = model_file.read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    assert read_model(tmp_path / "pipe").image_shape == (8, 8, 3)
    writer.join()
    assert list_images([str(tmp_path / "pipe")]) == [str(tmp_path / "pipe")]
    with pytest.raises(UsageError, match="reads the model several times"):
        call(predict, tmp_path / "pipe", "--benchmark")


def test_paths_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run", "--workdir") == tmp_path / "run"
    (tmp_path / "x.py").touch()
    flags_seen = {}
    monkeypatch.setattr(type(flags.FLAGS), "__call__", lambda _, argv: flags_seen.update(argv=argv))
    parse_flags(["command", "--config=~/x.py:a", "--config.data.root=~/y", "--set=a=~", "-x", "~z"])
    assert flags_seen["argv"] == [
        *("command", f"--config={tmp_path}/x.py:a", f"--config.data.root={tmp_path}/y"),
        *("--set=a=~", "-x", "~z"),
    ]
    with pytest.raises(UsageError, match="--out=~nobody-at-all/x"):
        local_path("~nobody-at-all/x", "--out")


def test_an_address_is_refused_as_a_path_and_as_a_config():
    """A `Path` of an address has one slash less, and would name a folder `gs:`."""
    with pytest.raises(UsageError, match="workdir=gs:/bucket/run is an address"):
        local_path(Path("gs://bucket/run"), "workdir")
    with pytest.raises(UsageError, match=r"--config=gs://bucket/digits\.py is an"):
        parse_flags(["command", "--config=gs://bucket/digits.py"])


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs://bucket/run", "is an address; only files on this machine can be read"),
        ("s3://bucket/run", "is an address; only files on this machine can be read"),
        ("run\udcff", "is not valid UTF-8, which checkpoints need; name another folder"),
    ],
)
def test_folders_that_cannot_hold_a_run_are_refused(workdir, message):
    with pytest.raises(UsageError, match=message):
        call(siman_main, "--config=configs/digits.py", f"--workdir={workdir}")
    assert not (REPOSITORY / workdir).exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mode=eval", "--config.eval_batch_size=0"), "batch_size is 0; it must be at least 1"),
        (("--mode=summary", "--config.model.width=-5"), "width is -5; it must be at least 1"),
        (("--mode=summary", "--config.data.image_size=0"), "image_size is 0; it must be at least"),
    ],
)
def test_all_modes_refuse_numbers_that_make_no_sense(flags, message, tmp_path, monkeypatch):
    arguments = ["--config=configs/digits.py", f"--workdir={tmp_path}", *flags]
    monkeypatch.setattr(sys, "argv", ["command", *arguments])  # ml_collections reads it
    with pytest.raises(UsageError, match=message):
        call(siman_main, *arguments)


def test_links_to_what_is_not_there_are_named(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone" / "model")
    with pytest.raises(UsageError, match=r"--out=.*link is a broken link"):
        check_output(link, "out", overwrite=True)
    for folder in (link, link / "run"):
        with pytest.raises(UsageError, match=r"link is a broken link"):
            check_writable(folder)
    with pytest.raises(UsageError, match=r"there is no file .*link"):
        read_model(link)
