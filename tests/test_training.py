"""Runs of a few steps: files, resuming, evaluation, and errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import REPOSITORY, started
from jax.experimental import multihost_utils
from small_runs import EPOCHS, leaves_of, small_config

from siman_jax.command import lock_config
from siman_jax.configs import digits
from siman_jax.data.dataset import Split
from siman_jax.data.resident import ResidentFeed
from siman_jax.devices.mesh import make_mesh, replicated
from siman_jax.devices.preemption import StopSignals
from siman_jax.errors import UsageError
from siman_jax.runs import train as training
from siman_jax.runs.checkpoint import CheckpointWriter, restore_best, restore_latest
from siman_jax.runs.log import RunLog, best_row, read_rows
from siman_jax.runs.snapshot import abstract_snapshot, creation, first_snapshot
from siman_jax.runs.train import evaluate_run, train
from siman_jax.runs.workdir import check_workdir
from siman_jax.stop import Preempted
from siman_jax.training import schedules
from siman_jax.training.epoch import Progress, make_epoch_runner
from siman_jax.training.metrics import METRICS, Sums, score, smoothed_cross_entropy
from siman_jax.training.step import TrainState
from siman_jax.training.task import build_task


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and the results of `train`."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(small_config(), workdir, make_mesh(1))


def test_a_run_writes_what_it_promises(finished):
    workdir, results = finished
    names = {path.name for path in workdir.iterdir()}
    files = {"config.json", "data.json", "log.jsonl", "curves.png", ".lock"}
    assert names == {*files, "checkpoints", "events"}
    assert not (workdir / ".lock").read_text()  # it is not held
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 4
    rows = read_rows(workdir)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [5, 10, 15]
    layers = rows[0]["flips"]
    assert len(layers) == 18
    assert all(0 <= share <= 1 for row in rows for share in row["flips"].values())
    assert max(layers.values()) > 0
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    assert rows[0]["clip_percent"] == pytest.approx(15 * (1 - 4 / 15))
    assert all(row["train_top1"] <= row["train_top5"] <= 100 for row in rows)
    assert results["last"]["top1"] == rows[-1]["test_top1"]
    assert results["best"]["top1"] == max(row["test_top1"] for row in rows)
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (workdir / "events").iterdir()
    assert b"test_top1" in events.read_bytes()


def test_evaluation_gives_what_was_logged(finished):
    workdir, results = finished
    again = evaluate_run(small_config(), workdir, make_mesh(1))
    for name in ("last", "best"):
        assert again[name] == pytest.approx(results[name])


def test_the_last_few_checkpoints_and_the_best_are_kept(tmp_path):
    """Of equal accuracies the later is best, on disk and in the log."""
    folder, state = tmp_path / "checkpoints", {"w": jnp.arange(3.0)}
    writer = CheckpointWriter(folder, keep=2, step=0)
    for step, top1 in ((1, 90.0), (2, 10.0), (3, 90.0), (4, 20.0), (5, 30.0)):
        writer.save(step, {"w": state["w"] + step}, top1)
    writer.close()
    assert {int(path.name) for path in folder.iterdir()} == {3, 4, 5}
    np.testing.assert_array_equal(restore_latest(folder, state)["w"], state["w"] + 5)
    np.testing.assert_array_equal(restore_best(folder, state)["w"], state["w"] + 3)
    rows = [{"test_top1": 90.0, "epoch": 1}, {"test_top1": 90.0, "epoch": 3}]
    assert best_row(rows)["epoch"] == 3


def test_nothing_saved_restores_as_none(tmp_path):
    assert restore_latest(tmp_path / "checkpoints", {"w": jnp.zeros(1)}) is None


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_every_example_is_evaluated_once(devices):
    """Batches with a smaller last one give the result of one large batch."""
    config, mesh = small_config(), make_mesh(devices)
    task = build_task(config, mesh)
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, (23, 8, 8, 1), np.uint8), rng.integers(0, 10, 23).astype(np.int32)
    )
    create = creation(config, task.model, task.optimizer)
    layout = abstract_snapshot(config, create, mesh)
    start = first_snapshot(config, create, jax.random.key(0), layout)
    variables = start.progress.state.variables()
    results = []
    for batch_size in (23, 10):
        config.eval_batch_size = batch_size
        results.append(training.evaluator_of(config, task.model, split, mesh)(variables))
    assert results[1] == pytest.approx(results[0])


def test_scores_count_hits_and_skip_negative_labels():
    logits = jnp.log(jnp.array([[1.0, 2, 3, 4, 5, 6, 7]] * 4))
    sums = score(logits, jnp.array([6, 2, 0, -1]))
    assert (int(sums.top1), int(sums.top5), int(sums.count)) == (1, 2, 3)
    expected = -sum(np.log(p / 28) for p in (7, 3, 1))
    assert (sums + Sums.zero()).means()["loss"] == pytest.approx(expected / 3)
    constant = score(jnp.zeros((7, 7)), jnp.arange(7))
    assert int(constant.top1) == 1  # in a tie only the first class is a hit


def test_smoothed_labels():
    """Loss and gradient as by NumPy; labels that do not count change neither."""
    logits = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    labels, share = np.array([3, 0, -1, 4]), 0.2
    loss = partial(smoothed_cross_entropy, share=share)
    value, gradient = jax.value_and_grad(lambda x: score(x, jnp.asarray(labels), loss).loss)(
        jnp.asarray(logits)
    )
    targets = (1 - share) * np.eye(5)[labels] + share / 5
    targets[2] = 0
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert float(value) == pytest.approx(-np.sum(targets * np.log(p)), rel=1e-5)
    np.testing.assert_allclose(gradient, targets.sum(1, keepdims=True) * p - targets, atol=1e-6)


def test_many_steps_per_dispatch_see_the_batches_of_single_steps():
    """The step only records its inputs, so equality is exact."""
    config = small_config()
    config.data.update(mean=(0.0,), std=(1 / 255,))
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 9, (23, 2, 2, 1), np.uint8), np.arange(23, dtype=np.int32))

    def note(state, images, labels):
        shown = jnp.sum(labels * jnp.arange(1, 5)) + jnp.sum(images).round().astype(jnp.int32)
        seen = state.params.at[state.step].set(shown)
        return state.replace(step=state.step + 1, params=seen), score(jnp.zeros((4, 23)), labels)

    mesh = make_mesh(2)
    results = []
    for steps_per_dispatch in (1, 3, 5):
        state = TrainState(jnp.int32(2), jnp.zeros(10, jnp.int32), {}, ())
        taken = Sums.zero().replace(count=jnp.int32(8))  # two steps of four examples
        progress = jax.device_put(Progress(state, taken), replicated(mesh))
        feed = ResidentFeed(
            split,
            mesh,
            *jax.random.split(jax.random.key(0)),
            batch_size=4,
            crop_padding=config.data.crop_padding,
            steps_per_dispatch=steps_per_dispatch,
        )
        run_epoch = make_epoch_runner(
            note,
            feed,
            progress,
            mesh,
            config.data,
            batch_size=4,
            damaged_limit=0,
            use_native=False,
        )
        told = []
        # continues from the third step of the epoch
        progress = run_epoch(progress, told.append, lambda _: False)
        assert sum(told) == 3
        assert int(progress.sums.count) == 20
        progress = Progress(progress.state, jax.device_put(Sums.zero(), replicated(mesh)))
        progress = run_epoch(progress, told.append, lambda _: False)
        assert (int(progress.state.step), int(progress.sums.count)) == (10, 20)
        results.append(np.asarray(progress.state.params))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert len(set(results[0][2:].tolist())) == 8


def test_log_lines_of_a_killed_epoch_are_written_again(tmp_path):
    metrics = [f"{split}_{name}" for split in ("train", "test") for name in METRICS]
    first, second = (
        {"step": 5 * epoch, "epoch": epoch, **dict.fromkeys(metrics, 1.0), "flips": {"conv1": 0.5}}
        for epoch in (1, 2)
    )
    log = RunLog(tmp_path, 0)
    log.write(first)
    log.write(second)
    log.close()
    path = tmp_path / "log.jsonl"
    with path.open("a") as file:
        file.write('17\n{"step": 15}\n{"step": null, "epoch": 1}\n{"step": 15, "lo')
    assert read_rows(tmp_path) == [first, second]  # the others are not rows, or cut short by a kill
    RunLog(tmp_path, 5).close()
    assert read_rows(tmp_path) == [first]
    # Values that are not of a later step were not written by the killed run.
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == [first, 17, {"step": None, "epoch": 1}]


def command(workdir, *arguments):
    return [
        sys.executable,
        "-m",
        "siman_jax.main",
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        "--devices=1",
        *arguments,
    ]


# The same number of virtual devices as in the tests' process: XLA divides its threads among them,
# and rounding depends on it.
ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "siman_jax.main", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(finished, tmp_path):
    """kill -9 after the first epoch, then the same command again."""
    workdir, _ = finished
    killed = tmp_path / "killed"
    small = [
        f"--config.epochs={EPOCHS}",
        "--config.model.width=4",
        "--config.batch_size=256",
        "--config.eval_batch_size=100",
        "--config.data.crop_padding=1",
        "--config.data.flip=True",
    ]
    with started(command(killed, *small), env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 300
        while not (killed / "checkpoints" / "5").is_dir():
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    draft = killed / "config.json.0123abcd.draft"
    draft.touch()  # as a kill in the middle of writing leaves it

    resumed = subprocess.run(
        command(killed, *small),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "continuing from step" in resumed.stderr
    assert "epoch   3" in resumed.stdout
    assert "\x1b" not in resumed.stdout  # plain lines without a terminal
    assert [row["epoch"] for row in read_rows(killed)] == [1, 2, 3]
    assert not draft.exists()
    expected, found = leaves_of(workdir, 15), leaves_of(killed, 15)
    assert expected.keys() == found.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def truncate(path):
    """Cut a file, or every file in a folder, to half its size."""
    for file in [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file()):
        os.truncate(file, file.stat().st_size // 2)


def largest(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "victim",
    [largest, lambda checkpoint: checkpoint, lambda checkpoint: checkpoint / "metrics" / "metrics"],
    ids=["largest file", "every file", "metrics"],
)
# Orbax leaves coroutines behind when a restore fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, victim):
    folder, state = tmp_path / "checkpoints", {"w": jnp.arange(1000.0), "b": jnp.arange(10)}
    writer = CheckpointWriter(folder, keep=3, step=0)
    for step in (1, 2):
        writer.save(step, {"w": state["w"] + step, "b": state["b"]}, top1=float(step))
    writer.close()
    truncate(victim(folder / "2"))

    restored = restore_latest(folder, state)
    if victim(folder / "2").name == "metrics":  # the state itself is whole
        np.testing.assert_array_equal(restored["w"], state["w"] + 2)
    else:
        np.testing.assert_array_equal(restored["w"], state["w"] + 1)
        assert "checkpoint 2 cannot be read" in caplog.text
    assert restore_best(folder, state)["w"][0] == 1
    assert (folder / "2").is_dir()  # reading changes nothing

    for _ in range(2):  # twice the same step
        writer = CheckpointWriter(folder, keep=3, step=1)
        assert not (folder / "2").exists()
        writer.save(2, state, top1=3.0)
        writer.close()
        np.testing.assert_array_equal(restore_best(folder, state)["w"], state["w"])
    aside = {path.name for path in (tmp_path / "damaged-checkpoints").iterdir()}
    assert aside == {"2-0", "2-1"}  # it is kept


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_only_damaged_checkpoints_are_an_error(tmp_path):
    folder, state = tmp_path / "checkpoints", {"w": jnp.arange(1000.0)}
    writer = CheckpointWriter(folder, keep=3, step=0)
    writer.save(1, state, top1=1.0)
    writer.close()
    truncate(folder / "1")
    with pytest.raises(UsageError, match="none of the checkpoints"):
        restore_latest(folder, state)
    assert (folder / "1").is_dir()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """The last good checkpoint is kept, and the message gives the step."""
    schedule = schedules.learning_rate_schedule

    def explode(*arguments):
        inner = schedule(*arguments)
        return lambda step: jnp.where(step == 6, jnp.inf, inner(step))

    monkeypatch.setattr(schedules, "learning_rate_schedule", explode)
    with pytest.raises(UsageError, match="not finite at step 7"):
        train(small_config(), tmp_path, make_mesh(1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    assert all(np.isfinite(leaf).all() for leaf in leaves_of(tmp_path, 5).values())
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1]


def test_a_parameter_that_is_not_finite_is_seen_behind_a_sign():
    """A binarized NaN is -1, so the loss may stay finite."""
    assert training.all_finite({"a": jnp.ones(3), "b": jnp.zeros((2, 2))})
    assert not training.all_finite({"a": jnp.ones(3), "b": jnp.array([0.0, jnp.nan])})


def test_a_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    config = small_config()
    config.optimizer.learning_rate = 0.2
    for do in (train, evaluate_run):
        with pytest.raises(UsageError, match=r"optimizer\.learning_rate: 0.1 there, 0.2"):
            do(config, workdir, make_mesh(1))
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    config = small_config()
    config.eval_batch_size = 360  # changes no result
    check_workdir(config, workdir)


def test_a_run_of_which_only_the_log_is_kept_is_not_trained_anew(finished, tmp_path):
    workdir, _ = finished
    kept = tmp_path / "kept"
    shutil.copytree(workdir, kept, ignore=shutil.ignore_patterns("checkpoints"))
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds the log of 3 epochs, and no checkpoint"):
        train(small_config(), kept, make_mesh(1))
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before


def test_a_workdir_that_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a broken link"):
        train(small_config(), tmp_path / "link" / "run", make_mesh(1))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; name a folder"):
        train(small_config(), tmp_path / "file", make_mesh(1))


def test_evaluating_an_empty_workdir(tmp_path):
    with pytest.raises(UsageError, match="holds no checkpoints; train first"):
        evaluate_run(small_config(), tmp_path, make_mesh(1))


def test_a_batch_larger_than_the_data_set(tmp_path):
    config = small_config()
    config.batch_size = 1438
    with pytest.raises(UsageError, match="has only 1437 examples"):
        train(config, tmp_path / "new", make_mesh(1))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.name", "cifar.resnet2", "unknown model"),
        ("model.weight_rule", "half", "unknown weight rule"),
        ("model.dtype", "float16", "unknown dtype"),
        ("data.source", "digit", "did you mean 'digits'"),
        ("epochs", 0, "epochs is 0; it must be at least 1"),
        ("model.width", 0, "width is 0; it must be at least 1"),
        ("keep_checkpoints", 0, "keep_checkpoints is 0; it must be at least 1"),
        ("optimizer.clip_percent", 50.0, "below 50"),
        ("data.mean", (0.1, 0.2, 0.3), "one number for each of the 1 channels"),
        ("data.mean", ("0.3",), "it must be a list of numbers, such as"),
        ("data.std", (0.0,), "std must be above 0"),
        ("data.std", (-0.3,), "std must be above 0"),
        ("data.crop_padding", -1, "crop_padding is -1; it must be at least 0"),
        ("optimizer.learning_rate", -0.1, "learning_rate is -0.1; it must be at least 0"),
        ("optimizer.learning_rate", float("nan"), "learning_rate is nan; it must be at least 0"),
        ("optimizer.learning_rate", float("inf"), "learning_rate is inf; it must be finite"),
        ("optimizer.weight_decay", -1e-4, "it must be at least 0"),
        ("optimizer.momentum", 1.0, "it must be at least 0 and below 1"),
        ("optimizer.warmup_epochs", 30, "more than --config.epochs"),
        ("optimizer.warmup_epochs", 0.5, "must be 0 or at least 1.*set 0 for no warm-up"),
        ("loss.label_smoothing", 1.0, "label_smoothing is 1.0; it must be at least 0 and below 1"),
        ("distillation.weight", 0.0, "weight is 0.0; it must be above 0 and at most 1"),
        ("distillation.temperature", 0.0, "temperature is 0.0; it must be from 0.01 to 1000"),
        ("distillation.teacher", "nowhere", "cannot teach this run: there is no run in nowhere"),
        ("init_checkpoint", "first", "unknown checkpoint in --config.init_checkpoint 'first'"),
        ("init_from", "nowhere", "there is no such file or folder. Name a run's folder"),
        ("average_decay", 1.0, "average_decay is 1.0; it must be at least 0 and below 1"),
        ("optimizer.name", "adma", "unknown optimizer 'adma'; did you mean 'adam'"),
        ("optimizer.beta2", 1 - 1e-9, "it must be at least 0 and below 1, in float32 too"),
        ("optimizer.epsilon", 0.0, "epsilon is 0.0; it must be at least 1e-30"),
        ("optimizer.clip_norm", -1.0, "clip_norm is -1.0; it must be at least 0"),
        ("optimizer.schedule", "cosin", "did you mean 'cosine'"),
        ("optimizer.schedule", "step", r"step_epochs is \(\); for the schedule step"),
        ("optimizer.step_epochs", (1,), "is 'cosine', which has no steps"),
        ("optimizer.undecayed", ("binary_kernel,alpha",), "unknown leaf in --config.optimizer"),
        ("optimizer.undecayed", ("binary_kernels",), "did you mean 'binary_kernel'"),
        ("data.channels", 4, "it must be 1 or 3"),
        ("model.width", 2**31 - 1, "width is 2147483647; it must be at most 4096"),
        ("data.image_size", 5000, "image_size is 5000; it must be at most 4096"),
        ("eval_batch_size", 2**31, "it must be at most 2147483647"),
        ("optimizer.weight_decay", 1e39, "it must be at most 1e"),
        ("epochs", 2**31 - 1, r"or 10737418235 steps; it must be less than 2\*\*31"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, field, value, message):
    config = small_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "new", make_mesh(1))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_without_a_workdir_is_named_by_its_config(tmp_path):
    small = ["--config.epochs=1", "--config.model.width=4", "--config.batch_size=256"]
    command = [sys.executable, "-m", "siman_jax.main", f"--config={REPOSITORY}/configs/digits.py"]
    for mode in ("train", "eval"):
        done = subprocess.run(
            [*command, f"--mode={mode}", *small],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("the run's folder is runs/digits;")
    assert (tmp_path / "runs" / "digits" / "log.jsonl").is_file()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("binary_kernel,alpha",), ("binary_kernel", "alpha")),
        (("kernel, bias", "alpha"), ("kernel", "bias", "alpha")),
        ((), ()),
    ],
)
def test_names_in_a_flag_are_split_at_commas(given, expected):
    """As a single name they match no leaf, and binary kernels would be decayed."""
    config = digits.get_config()
    config.optimizer.undecayed = given
    assert lock_config(config).optimizer.undecayed == expected
    assert config.data.mean == (0.3054,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=configs/nope.py"], "there is no file configs/nope.py"),
        (["--config=configs/digits.py", "--config.bach_size=3"], "did you mean 'batch_size'?"),
        (["--config=configs/digits.py", "--config.model.widht=3"], "did you mean 'model.width'?"),
        (["--config=configs/cifar10.py:resnet21"], "did you mean 'resnet20'"),
        (["--config=configs/digits.py:resnet18"], "takes 0 positional arguments"),
        (["--config=configs/digits.py", "--mod=eval"], "Did you mean: mode"),
        (["--config=tests/other_config.py"], "returned int; expected an ml_collections.ConfigDict"),
        (["--config=configs/digits.py", "extra"], "unexpected argument 'extra'"),
        (
            ["--config=configs/image_folder.py", "--config.data.root=nowhere", "--workdir=unused"],
            "no folder nowhere",
        ),
    ],
)
def test_wrong_commands_give_one_clear_message(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_interrupted_epoch_is_finished_as_if_it_never_stopped(finished, tmp_path, monkeypatch):
    """After a stop in the second epoch, state, log and flips are those of an unstopped run."""
    workdir, _ = finished
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 7)
        with pytest.raises(Preempted, match="step 7 is saved"):
            train(small_config(), stopped, make_mesh(1))
    assert [row["epoch"] for row in read_rows(stopped)] == [1]
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {"5", "7"}
    best = evaluate_run(small_config(), stopped, make_mesh(1))["best"]
    assert best["epoch"] == 1  # the interrupted epoch was not evaluated

    train(small_config(), stopped, make_mesh(1))
    for row, expected in zip(read_rows(stopped), read_rows(workdir), strict=True):
        del row["images_per_second"], expected["images_per_second"]
        assert row == expected
    expected, found = leaves_of(workdir, 15), leaves_of(stopped, 15)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.slow
def test_a_stop_after_the_last_step_of_an_epoch_is_not_lost(finished, tmp_path, monkeypatch):
    """The stop waits for the evaluation; here one dispatch takes the whole epoch."""
    workdir, _ = finished
    config = small_config()
    config.steps_per_dispatch = 5
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step >= 5)
        with pytest.raises(Preempted, match="step 5 is saved"):
            train(config, tmp_path, make_mesh(1))
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1]
    assert read_rows(tmp_path)[0]["test_top1"] == pytest.approx(
        read_rows(workdir)[0]["test_top1"], abs=5
    )


def test_the_service_is_asked_after_every_step_and_its_answer_kept(monkeypatch):
    """JAX's service says yes for one step only: the first, if the signal came before it."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for agreed, expected in ((1, 10), (13, 13), (20, 20)):
        service = lambda step, agreed=agreed: step == agreed  # noqa: E731
        monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", service)
        watch = StopSignals()
        stops = [step for step in (10, 11, 12, 13, 20, 20, 30) if watch.should_stop(step)]
        assert stops[0] == expected
        assert stops[-1] == 30


def test_sigterm_is_noted_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as watch:
        assert not watch.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_checkpoint_of_another_network_is_refused_by_its_first_leaf(tmp_path):
    state = {"params": {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)}}
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=1, step=0)
    writer.save(1, state, top1=1.0)
    writer.close()
    for other, message in (
        ({"params": {"a": jnp.zeros((3, 4)), "b": jnp.zeros(4)}}, r"params/a is float32\[3, 2\]"),
        ({"params": {"a": jnp.zeros((3, 2))}}, r"params/b is float32\[2\] there, missing here"),
        ({"params": {**state["params"], "c": jnp.zeros(1)}}, "params/c is missing there"),
    ):
        with pytest.raises(UsageError, match=message):
            restore_latest(tmp_path / "checkpoints", other)


def test_a_workdir_that_cannot_be_made():
    with pytest.raises(UsageError, match="cannot be written"):
        train(small_config(), Path("/proc/siman"), make_mesh(1))


def test_a_log_that_cannot_be_written(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"the log in .* cannot be written: .*Free some space"):
        log.write({"step": 5})
    log.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
from siman_jax.runs.checkpoint import CheckpointWriter, restore_latest
from siman_jax.errors import UsageError
folder = Path(sys.argv[1])
writer = CheckpointWriter(folder, keep=1, step=0)
writer.save(1, {"w": jnp.arange(1e5)}, top1=1.0)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
try:
    writer.save(2, {"w": jnp.asarray(np.random.default_rng(0).random(100_000))}, top1=2.0)
except UsageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
assert (np.asarray(restore_latest(folder, {"w": jnp.zeros(100_000)})["w"]) == np.arange(1e5)).all()
writer = CheckpointWriter(folder, keep=1, step=1)
writer.save(2, {"w": jnp.ones(100_000)}, top1=2.0)
writer.close()
assert restore_latest(folder, {"w": jnp.zeros(100_000)})["w"][0] == 1
"""


def test_a_disk_that_is_full_while_saving_leaves_earlier_checkpoints_intact(tmp_path):
    """A limit on file sizes stands in for a full disk: writing fails the same way."""
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "the checkpoint of step 2 could not be written" in result.stdout
    assert "Earlier checkpoints are unchanged" in result.stdout
