"""SIGTERM and Ctrl-C at any time, to one process or a whole group."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli import REPOSITORY, TINY

from siman_jax.devices.preemption import StopSignals
from siman_jax.runs.log import read_rows
from siman_jax.runs.stored_run import kept_steps

PATIENCE = 300  # seconds, for a busy machine


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [["main", *TINY], ["sweep", "configs/sweeps/digits.py"]])
def test_a_signal_counts_before_jax_is_imported(tmp_path, command, number):
    module, *arguments = command
    words = ["-m", f"siman_jax.{module}", *arguments, f"--workdir={tmp_path / 'run'}"]
    process = start("-X", "importtime", *words)
    seen = []
    for line in process.stderr:  # prints the name of each imported module
        seen.append(line.split("|")[-1].strip())
        if seen[-2:-1] == ["siman_jax.stop"]:
            process.send_signal(number)
            break
    _, rest = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, rest
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert rest.splitlines()[-1].startswith(f"stopped by {name}; nothing is lost")
    assert "jax" not in seen + [line.split("|")[-1].strip() for line in rest.splitlines()]
    assert not (tmp_path / "run").exists()


def when_logged(process, workdir, number):
    """Wait until an epoch is logged, and send a signal."""
    deadline = time.monotonic() + PATIENCE
    while not read_rows(workdir):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)


@pytest.mark.slow
def test_ctrl_c_saves_like_sigterm(tmp_path):
    process = start("-m", "siman_jax.main", *TINY, "--config.epochs=9999", f"--workdir={tmp_path}")
    when_logged(process, tmp_path, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, errors
    *before, last = errors.splitlines()
    saved = kept_steps(tmp_path)[-1]
    assert last == (
        f"stopped by Ctrl-C; step {saved} is saved in {tmp_path}; run the same command to continue"
        " from there."
    )
    assert not any("Ctrl-C" in line or "Traceback" in line for line in before)


def test_a_second_ctrl_c_stops_at_once():
    """Even in the middle of a step, which may spend minutes in C++."""
    code = (
        "import os, signal, time\n"
        "from siman_jax.devices.preemption import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop.should_stop(1), stop.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still there')\n"
    )
    process = start("-c", code)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert output == "True Ctrl-C\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_heard_is_kept_and_the_handlers_put_back(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals() as stop:
        assert not stop.should_stop(1)
        os.kill(os.getpid(), number)
        assert stop.should_stop(2)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with stop:  # of the next run
        assert stop.should_stop(1)


def test_an_ignored_ctrl_c_stays_ignored():
    """A shell starts background commands this way."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.should_stop(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_handlers_alone():
    """Python sets them in the main thread only; `siman_jax.train` may run in any."""
    before = signal.getsignal(signal.SIGTERM)

    def enter():
        with StopSignals() as stop:
            return signal.getsignal(signal.SIGTERM), stop.should_stop(1)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(enter).result() == (before, False)


WORKERS = """
import multiprocessing, os, signal
import grain
from siman_jax.data.pipeline import read_ahead, start_reading

if __name__ == "__main__":
    heard = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: heard.append(number))
    stream = read_ahead(grain.MapDataset.range(6), workers=2)
    batches = iter(grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=1))
    start_reading(batches)
    while len(multiprocessing.active_children()) < 2:
        pass
    os.killpg(0, signal.SIGTERM)  # while the workers import modules
    os.killpg(0, signal.SIGINT)
    print(next(batches))
    os.killpg(0, signal.SIGTERM)
    os.killpg(0, signal.SIGINT)
    print(*batches, *sorted(map(int, heard)))
    batches.close()
"""


def test_workers_leave_the_signals_of_a_group_to_the_process_that_trains(tmp_path):
    script = tmp_path / "read.py"
    script.write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = start(script, start_new_session=True, env=environment)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert output.splitlines() == ["0", "1 2 3 4 5 2 2 15 15"]


def test_other_commands_say_one_line_at_ctrl_c():
    code = (
        "from siman_jax.command import run\n"
        "def main(argv):\n"
        "    import os, signal\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "run(main)\n"
    )
    process = start("-c", code)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (130, "", "stopped by Ctrl-C.\n")
