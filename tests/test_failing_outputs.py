"""Failing output: a run continues without optional output, and else ends with a short message."""

import errno
import json
import logging
import multiprocessing
import os
import struct
import subprocess
import sys

import pytest
from cli import REPOSITORY, TINY
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from siman_jax.configs import digits
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.runs.checkpoint import CheckpointWriter
from siman_jax.runs.dispensable import Dispensable
from siman_jax.runs.log import RunLog, read_rows
from siman_jax.runs.train import train

PRINTS = """
import sys
from rich.console import Console
from siman_jax.streams import outlive_streams
outlive_streams()
for number in range(3):
    print("line", number, flush=True)
    Console().print("table", number)
    print("error", number, file=sys.stderr, flush=True)
print("buffered until the end")
"""
EXPECTED = [f"error {number}" for number in range(3)]


def warning(reason):
    return f"warning: cannot write to standard output ({reason}); continuing without it."


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "it is closed"),
        ("| true", "Broken pipe"),
    ],
)
def test_standard_output_that_fails_is_warned_of_once(redirection, reason):
    command = f"{sys.executable} -c '{PRINTS.replace(chr(39), chr(34))}' {redirection}"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "")
    lines = result.stderr.splitlines()
    assert lines.count(warning(reason)) == 1
    assert [line for line in lines if line != warning(reason)] == EXPECTED


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1"])
def test_standard_error_that_fails_is_no_end(redirection):
    command = f"{sys.executable} -c '{PRINTS}' {redirection}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = [*(f"{what} {n}" for n in range(3) for what in ("line", "table"))]
    assert result.stdout.splitlines() in ([], [*lines, "buffered until the end"])


def test_streams_that_work_are_as_before():
    result = subprocess.run(
        [sys.executable, "-c", PRINTS], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines() == EXPECTED
    assert result.stdout.splitlines()[-1] == "buffered until the end"


ROW = {"step": 5, "epoch": 1, "test_loss": 0.5, "flips": {"conv1": 0.25}}


def events(workdir):
    """Read the events in a run's file; each is framed by its length and two checksums."""
    (file,) = (workdir / "events").iterdir()
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_what_tensorboard_reads(tmp_path, monkeypatch):
    """Also without shared memory, which containers may lack."""

    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "no /dev/shm")

    monkeypatch.setattr(multiprocessing, "Queue", refuse)
    log = RunLog(tmp_path, 3)
    log.write(ROW)
    log.close()
    version, start, *scalars = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, SessionLog.START)
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in scalars] == [
        (5, "step", 5.0),
        (5, "epoch", 1.0),
        (5, "test_loss", 0.5),
        (5, "flips/conv1", 0.25),
    ]
    assert all(event.wall_time > 1e9 for event in scalars)


def test_events_that_fail_are_warned_of_once(tmp_path, monkeypatch, caplog):
    log = RunLog(tmp_path, 0)

    def refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", refuse)
    for _ in range(2):
        log.write(ROW)
    log.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"TensorBoard's events in {tmp_path}/events cannot be written; the run continues:"
        " [Errno 28] No space left on device"
    ]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_warning_comes_once_and_what_ends_the_process_is_not_caught(caplog):
    output = Dispensable("a picture")
    with output:
        pass
    assert not output.failed
    for _ in range(2):
        with output:
            raise UsageError("the disk is full.")
    assert [record.getMessage() for record in caplog.records] == [
        "a picture cannot be written; the run continues: the disk is full."
    ]
    with pytest.raises(KeyboardInterrupt), output:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_goes_on_without_output_events_and_curves(tmp_path):
    (tmp_path / "events").touch()
    (tmp_path / "curves.png").mkdir()
    line = [sys.executable, "-m", "siman_jax.main", *TINY, "--config.epochs=2"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*line, f"--workdir={tmp_path}"],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1, 2]
    for words in ("standard output", "TensorBoard's events", "the curves"):
        assert result.stderr.count(f"{words} ") == 1, result.stderr


def test_checkpoints_that_are_no_folder_are_refused_before_training(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UsageError, match=r"checkpoints is not a folder"):
        train(digits.get_config(), tmp_path, make_mesh(1))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write in any folder")
def test_a_folder_of_checkpoints_without_permission_is_refused_before_training(tmp_path):
    (tmp_path / "checkpoints").mkdir(mode=0o500)
    with pytest.raises(UsageError, match=r"no permission to write in .*checkpoints"):
        train(digits.get_config(), tmp_path, make_mesh(1))


# Refuses to create orbax's folders, like a disk without free inodes.
REFUSE = """
import errno, os, sys
from pathlib import Path
import jax.numpy as jnp
from siman_jax.command import run
from siman_jax.runs.checkpoint import CheckpointWriter
mkdir, _, folder, refused = os.mkdir, *sys.argv

def refuse(path, *arguments, **options):
    if refused in str(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    return mkdir(path, *arguments, **options)

def main(argv):
    writer = CheckpointWriter(Path(folder), keep=1, step=0)
    writer.save(1, {"w": jnp.arange(1e5)}, top1=1.0)
    os.mkdir = refuse
    try:
        writer.save(2, {"w": jnp.arange(1e5)}, top1=1.0)
    finally:
        writer.close()

sys.argv = ["main"]
run(main)
"""


@pytest.mark.parametrize("folder", ["2.orbax", "metrics.orbax", "state.orbax", "array_metadatas"])
def test_out_of_inodes_ends_a_command_at_once_with_the_message(tmp_path, folder):
    result = subprocess.run(
        [sys.executable, "-c", REFUSE, tmp_path, folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,  # it once took more than 300 s
    )
    assert result.returncode == 2, result.stderr
    error, advice = result.stderr.splitlines()  # no other lines
    assert error.startswith(f"error: the checkpoint of step 2 could not be written to {tmp_path}")
    assert "No space left on device" in error
    assert advice.startswith("Earlier checkpoints are unchanged. Free some space")


def train_with_small_files(workdir):
    """Train with a limit of 8 kB on file sizes, which stands in for a full disk."""
    line = [sys.executable, "-m", "siman_jax.main", *TINY, f"--workdir={workdir}"]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        ["bash", "-c", 'ulimit -f 8 && exec "$@"', "bash", *line],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_the_message(tmp_path):
    result = train_with_small_files(tmp_path)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert lines[-2].startswith("error: the checkpoint of step 5 could not be written")
    assert len(lines) < 20, result.stderr  # it once was a thousand
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 256


@pytest.mark.slow
def test_a_log_that_cannot_be_written_ends_a_run_with_the_message(tmp_path):
    """The log has the maximum size when the first epoch's row is written."""
    (tmp_path / "log.jsonl").write_text("null\n" * (8192 // 5))
    result = train_with_small_files(tmp_path)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(f"error: the log in {tmp_path} cannot be written: [Errno 27]")
    assert lines[-1].endswith("run the same command to continue from the latest.")
    assert "Traceback" not in result.stderr
    assert read_rows(tmp_path) == []  # a row that is cut short does not count
    assert not list((tmp_path / "checkpoints").iterdir())


def test_orbax_errors_are_not_logged_twice(tmp_path, caplog):
    CheckpointWriter(tmp_path / "checkpoints", keep=1, step=0).close()
    caplog.clear()
    logger = logging.getLogger("absl")
    for level, file in ((logging.ERROR, "x/orbax/a.py"), (logging.ERROR, "x/grain/a.py")):
        logger.handle(logger.makeRecord("absl", level, file, 1, file, (), None))
    assert [record.getMessage() for record in caplog.records] == ["x/grain/a.py"]
