"""Training in steps by one command: linked, checked, stopped or killed, and gone on with."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli import call, run, started
from small_runs import leaves_of
from two_steps import get_config

from siman_jax.devices.mesh import make_mesh
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.main import main
from siman_jax.runs import steps as module
from siman_jax.runs.log import read_rows
from siman_jax.runs.steps import link_steps, train_steps
from siman_jax.runs.train import train
from siman_jax.runs.workdir import read_config
from siman_jax.stop import Preempted

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
STEPS = ("real_weights", "binary")
COMMAND = ["--config=tests/two_steps.py", "--steps=real_weights,binary", "--devices=1"]


def configs():
    return {name: get_config(name) for name in STEPS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of two steps that were never stopped, trained one by one as ordinary runs."""
    folder = tmp_path_factory.mktemp("steps")
    for name, config in configs().items():
        if config.init_from:
            config.init_from = str(folder / config.init_from)
        train(config, folder / name, make_mesh(1))
    return folder


def assert_same(folder, expected):
    for name in STEPS:
        found, leaves = (leaves_of(each / name, 8) for each in (folder, expected))
        assert found.keys() == leaves.keys()
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
        assert [row["step"] for row in read_rows(folder / name)] == [4, 8]


@pytest.mark.slow
def test_steps_stopped_within_and_between_go_on_bit_for_bit(whole, tmp_path, monkeypatch, capsys):
    folder, asked = tmp_path / "steps", []

    def stop_at(*steps):
        def should_stop(self, step):
            asked.append(step)
            return step in steps

        monkeypatch.setattr(StopSignals, "should_stop", should_stop)

    command = [*COMMAND, f"--workdir={folder}"]
    for at, message in (
        (3, "step 3 is saved in .*real_weights"),
        (0, "stopped by SIGTERM after .*real_weights"),
        (7, "step 7 is saved in .*binary"),
    ):
        stop_at(at)
        with pytest.raises(Preempted, match=message):
            call(main, *command)
    stop_at()
    asked.clear()
    call(main, *command)
    assert max(asked) == 8
    assert min(step for step in asked if step) == 8  # the first step was not trained again
    assert_same(folder, whole)
    capsys.readouterr()
    monkeypatch.setattr(module, "train_together", None)  # nothing is left to train
    call(main, *command)
    call(main, *command, "--mode=eval")
    shown = capsys.readouterr().out
    assert re.findall(r"(\w+): tests", shown) == [*STEPS, *STEPS]
    last = f"{read_rows(folder / 'binary')[-1]['test_loss']:.4f}"
    assert shown.count(last) >= 2


@pytest.mark.slow
def test_steps_that_are_killed_go_on_bit_for_bit(whole, tmp_path):
    """SIGKILL as soon as there is a checkpoint of each step; SIGTERM while the next one starts."""
    line = [sys.executable, "-m", "siman_jax.main", *COMMAND, f"--workdir={tmp_path}"]
    for name, number in (("real_weights", 4), ("real_weights", 8), ("binary", 0), ("binary", 4)):
        with started(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            saved = tmp_path / name / "checkpoints" / str(number)
            while not saved.exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL if number else signal.SIGTERM)
            process.wait(60)
    result = run("main", *COMMAND, f"--workdir={tmp_path}", env=os.environ)
    assert result.returncode == 0, result.stderr
    assert_same(tmp_path, whole)


def test_the_links_are_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linked = link_steps(configs(), module.Path("runs/two"))
    first, second = linked
    assert (str(first), str(second)) == ("runs/two/real_weights", "runs/two/binary")
    assert linked[second].init_from == str(tmp_path / "runs" / "two" / "real_weights")
    assert linked[first].init_from == ""


def test_a_teacher_may_be_a_step(tmp_path):
    student = get_config("real_weights")
    student.distillation.teacher = "teacher"
    linked = link_steps({"teacher": get_config("real_weights"), "student": student}, tmp_path)
    assert linked[tmp_path / "student"].distillation.teacher == str(tmp_path / "teacher")


def test_steps_that_cannot_be_linked_are_refused(tmp_path):
    binary, real = get_config("binary"), get_config("real_weights")
    for steps, message in (
        ({"binary": binary, "real_weights": real}, "needs the step real_weights, which does not"),
        ({"a": real, "b": real}, "no step needs the step a: its name is in no later step's"),
        ({"../a": real}, r"the step '\.\./a' cannot be the name of a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            link_steps(steps, tmp_path)


def test_all_steps_are_checked_before_the_first_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_together", None)
    other, slow = configs(), configs()
    other["binary"].model.name = "tests.own_networks:branches"
    slow["binary"].optimizer.learning_rate = -1.0
    for steps, message in (
        (other, r"real_weights cannot be taken: these leaves do not fit:\n"),
        (slow, "learning_rate is -1.0; it must be at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            train_steps(steps, tmp_path / "new", make_mesh(1))
    assert not (tmp_path / "new").exists()


def test_a_folder_with_a_run_is_refused(whole):
    with pytest.raises(UsageError, match="holds a run, and steps live in folders inside theirs"):
        train_steps(configs(), whole / "binary", make_mesh(1))


def call_as_typed(monkeypatch, *arguments):
    """Call the command where ml_collections reads the flags of fields."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    call(main, *arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=summary"], "--steps does not go with --mode=summary"),
        (["--mode=verify", "--workdir=x"], "--steps does not go with --mode=verify"),
        (["--config.init_from=x"], "--config.init_from would hold for all of --steps"),
        (["--steps=binary,binary"], "--steps=binary,binary names a step twice"),
        (["--steps=real_weight"], "unknown step 'real_weight'; did you mean 'real_weights'"),
        (["--config=tests/two_steps.py:binary"], "leave out the variant in --config=.*:binary"),
        (["--config=configs/digits.py"], "cannot use --config=.*digits.py:real_weights: "),
    ],
)
def test_flags_that_do_not_go_together(flags, message, monkeypatch):
    with pytest.raises(UsageError, match=message):
        call_as_typed(monkeypatch, *COMMAND, *flags)


def test_flags_of_fields_hold_for_all_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(StopSignals, "should_stop", lambda self, step: step == 3)
    command = [*COMMAND, f"--workdir={tmp_path}", "--config.optimizer.undecayed=alpha,bias"]
    with pytest.raises(Preempted):
        call_as_typed(monkeypatch, *command, "--config.seed=5")
    config = read_config(tmp_path / "real_weights")
    assert (config.seed, list(config.optimizer.undecayed)) == (5, ["alpha", "bias"])
    with pytest.raises(UsageError, match="seed: 5 there, 6 here"):
        call_as_typed(monkeypatch, *command, "--config.seed=6")
