"""Two trainings in one folder: the second is refused. Files are written completely."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from cli import REPOSITORY, TINY, started

from siman_jax.configs import digits
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.output import remove_drafts, write_whole
from siman_jax.runs.lock import RunLock
from siman_jax.runs.log import read_rows
from siman_jax.runs.train import train

HOLDER = """
import sys, time
from pathlib import Path
from siman_jax.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(1000)
"""


def test_a_lock_names_its_holder_and_goes_with_kill_9(tmp_path):
    line = [sys.executable, "-c", HOLDER, tmp_path]
    with started(line, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        for _ in range(2):
            with (
                pytest.raises(UsageError, match=rf"process {holder.pid} on .* since 2.*uses"),
                RunLock(tmp_path),
            ):
                pass
        holder.send_signal(signal.SIGKILL)
    with RunLock(tmp_path):
        pass


def test_a_locked_run_is_not_trained(tmp_path):
    with RunLock(tmp_path):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(UsageError, match=f"process {os.getpid()} .*name another --workdir"):
            train(digits.get_config(), tmp_path, make_mesh(1))
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_folder_is_made_late_and_by_one_only(tmp_path):
    """Two trainings start at once in a new folder; it is created only after all checks."""
    workdir = tmp_path / "runs" / "new"
    with RunLock(workdir) as first, RunLock(workdir) as second:
        assert not workdir.parent.exists()
        first.make_folder()
        with pytest.raises(UsageError, match=f"process {os.getpid()}"):
            second.make_folder()
        first.make_folder()  # again does nothing
        (workdir / "config.json").touch()
    with RunLock(tmp_path / "other") as late:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").touch()  # of one that has ended already
        with pytest.raises(UsageError, match=r"another training started in .* meanwhile"):
            late.make_folder()


def test_a_warning_where_locks_do_not_work(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path):
        pass
    assert f"locks do not work in {tmp_path} ([Errno 37] No locks available)" in caplog.text


@pytest.mark.slow
def test_of_two_trainings_in_one_folder_one_goes_on(tmp_path):
    line = [sys.executable, "-m", "siman_jax.main", *TINY, f"--workdir={tmp_path}"]
    line.append("--config.epochs=9999")
    with started(line) as first:
        deadline = time.monotonic() + 300
        while len(read_rows(tmp_path)) < 2:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
    assert first.returncode == 75
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith(
        f"error: another training, process {first.pid}"
    )
    rows = read_rows(tmp_path)
    assert [row["epoch"] for row in rows] == [*range(1, len(rows) + 1)]


def test_drafts_of_killed_processes_go(tmp_path):
    for name in ("log.jsonl.0123abcd.draft", "log.jsonl", "draft"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "log.jsonl"]


def test_a_file_that_many_write_is_whole(tmp_path):
    path, texts = tmp_path / "file", [letter * 500_000 for letter in (b"a", b"b", b"c")]
    write_whole(path, texts[0])
    wrong, over = [], threading.Event()

    def write(text):
        try:
            for _ in range(50):
                write_whole(path, text)
        except UsageError as error:
            wrong.append(error)

    def read():
        while not over.is_set():
            if path.read_bytes() not in texts:
                wrong.append("mixed")

    writers = [threading.Thread(target=write, args=[text]) for text in texts]
    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert not wrong
    assert list(tmp_path.iterdir()) == [path]
