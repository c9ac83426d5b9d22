"""Several processes as one run: equal to one process, stopped, resumed, and with one killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from sharded_case import STEPS, fresh_state, make_case, make_step, rows

from siman_jax.devices.mesh import make_mesh, put_local_rows
from siman_jax.runs.lock import RunLock

REPOSITORY = Path(__file__).parent.parent
SMALL = [
    "--config=configs/digits.py",
    "--config.model.width=4",
    "--config.batch_size=256",
    "--config.eval_batch_size=100",
]
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(commands, devices):
    """Start processes with a number of virtual devices each."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]


def finish(processes, timeout=240):
    """Wait for all processes; return their exit codes and outputs."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def run_case(action, folder, processes, devices):
    port = free_port()
    arguments = [
        ["tests/host_process.py", action, str(folder), *map(str, (port, processes, i, devices))]
        for i in range(processes)
    ]
    codes, outputs = finish(start(arguments, devices))
    assert codes == [0] * processes, "\n".join(outputs)
    assert all(f"well {i}" in output for i, output in enumerate(outputs))


def test_two_processes_equal_one_and_any_number_reads_their_checkpoint(tmp_path, x64):
    """Five float64 steps, to 1e-10; one process and four read the checkpoint of two.

    They use the previous checkpoint if the newest is damaged.
    """
    mesh, case = make_mesh(4), make_case()
    state = fresh_state(case, mesh)
    step = make_step(case, state, mesh)
    for number in range(STEPS):
        state, _ = step(state, *put_local_rows(mesh, rows(number, 0, 1)))
    np.savez(tmp_path / "expected.npz", *map(np.asarray, jax.tree.leaves(state)))

    run_case("train", tmp_path, processes=2, devices=2)
    newest = tmp_path / "checkpoints" / str(STEPS + 1)
    copy = shutil.copytree(newest, tmp_path / "copy")
    for file in newest.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    run_case("read", tmp_path, processes=1, devices=1)
    # Flip one bit in the middle of the numbers, which only checksums detect.
    shutil.rmtree(newest)
    copy.rename(newest)
    numbers = max((newest / "state").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(numbers.read_bytes())
    data[len(data) // 2] ^= 1
    numbers.write_bytes(bytes(data))
    run_case("read", tmp_path, processes=4, devices=1)


def commands(workdir, *extra, processes=2):
    port = free_port()
    return [
        [
            *("-m", "siman_jax.main", *SMALL, f"--workdir={workdir}", *extra),
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={i}",
        ]
        for i in range(processes)
    ]


def wait_for(processes, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert all(process.poll() is None for process in processes), finish(processes, 5)
        assert time.monotonic() < deadline, finish(processes, 5)
        time.sleep(0.05)


def test_processes_stop_together_resume_and_do_not_outwait_a_dead_one(tmp_path):
    """SIGTERM to one of two; start again; kill -9 of one; then continue with one process."""
    workdir, epochs = tmp_path / "run", "--config.epochs=2000"
    log = workdir / "log.jsonl"

    processes = start(commands(workdir, epochs), devices=2)
    wait_for(processes, lambda: log.exists() and log.read_text().count("\n") >= 2)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [75, 75], outputs
    assert all("stopped by SIGTERM; step" in output for output in outputs)
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert f"step {saved} is saved" in outputs[0]

    processes = start(commands(workdir, epochs, "--host_timeout=10"), devices=2)
    rows_before = log.read_text().count("\n")
    wait_for(processes, lambda: log.read_text().count("\n") > rows_before)
    processes[1].kill()
    killed = time.monotonic()
    codes, outputs = finish(processes, timeout=60)
    assert time.monotonic() - killed < 10 + 20
    assert codes[0] in (69, -signal.SIGABRT), outputs[0]
    assert f"continuing from step {saved}" in outputs[0]
    assert "another process of this run did" in outputs[0] or "another task died" in outputs[0]

    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [5 * (i + 1) for i in range(len(steps))]
    (alone,) = start(
        [["-m", "siman_jax.main", *SMALL, epochs, f"--workdir={workdir}", "--mode=eval"]], devices=1
    )
    codes, outputs = finish([alone])
    assert codes == [0], outputs
    # The kill may have come between a row of the log and its checkpoint.
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    (last,) = [line for line in outputs[0].splitlines() if "last" in line]
    assert last.split("│")[2].strip() == f"{saved / 5:g}"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.batch_size=255"], "does not divide evenly among 2 devices in 2 processes"),
        (["--config.batch_size=1"], "set it to 2"),
        (["--devices=1"], "devices in this run is 2, over all processes (2)"),
    ],
)
def test_what_does_not_fit_the_processes_is_refused_by_each(tmp_path, extra, message):
    codes, outputs = finish(start(commands(tmp_path / "run", *extra), devices=1))
    assert codes == [2, 2], outputs
    assert all(message in output for output in outputs), outputs
    assert not (tmp_path / "run").exists()


def test_one_lock_holds_for_all_processes_of_a_run(tmp_path):
    """All processes are refused; the tests above show that they can share a lock."""
    with RunLock(tmp_path):
        codes, outputs = finish(start(commands(tmp_path), devices=1))
    assert codes == [2, 2], outputs
    assert f"another training, process {os.getpid()} on " in outputs[0]
    assert f"the first process could not lock {tmp_path}" in outputs[1]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
