"""Sweeps: seeds trained together; skipping, resuming, summaries and errors."""

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
from cli import REPOSITORY, call, started
from small_networks import two_convolutions
from small_runs import leaves_of

from siman_jax import sweep as command
from siman_jax.configs import digits
from siman_jax.data import load_dataset
from siman_jax.data.dataset import Dataset, Split, evenly_divided
from siman_jax.data.resident import ResidentFeed
from siman_jax.devices.mesh import make_mesh, replicated
from siman_jax.errors import UsageError
from siman_jax.export import pack_run
from siman_jax.rules import WEIGHT_RULES
from siman_jax.runs import train as training
from siman_jax.runs.log import read_rows
from siman_jax.runs.sweep_plan import Sweep, load_sweep, with_fields
from siman_jax.runs.train import evaluate_run, train_together
from siman_jax.runs.workdir import read_config
from siman_jax.stop import Preempted
from siman_jax.sweep import run_sweep
from siman_jax.training import task as task_module
from siman_jax.training.epoch import Diverged, Progress, make_epoch_runner
from siman_jax.training.metrics import Sums
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.schedules import (
    CLIP_PERCENT,
    clip_schedule,
    estimator_schedules,
    learning_rate_schedule,
)
from siman_jax.training.seeds_together import (
    join_keys,
    make_splitter,
    no_sums_yet,
    over_seeds,
    stack_seeds,
)
from siman_jax.training.step import create_state, train_step
from siman_jax.training.task import build_task, image_shape

SWEEPS = sorted((REPOSITORY / "configs" / "sweeps").glob("[!_]*.py"))
STEPS = 5  # in an epoch


def small_sweep(**fields):
    """Two methods with two seeds each, for two epochs of a narrow network on the digits."""
    small = {"epochs": 2, "model.width": 4, "batch_size": 256, **fields}
    variants = {
        "dorefa": {"model.weight_rule": "dorefa"},
        "bnn": {"model.weight_rule": "bnn", "optimizer.undecayed": ()},
    }
    return Sweep("small", with_fields(digits.get_config(), small), variants, (3, 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished sweep, and the summary; both seeds were trained together."""
    folder = tmp_path_factory.mktemp("sweeps") / "finished"
    return folder, run_sweep(small_sweep(), folder, make_mesh(1), seeds_at_once=2)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished sweep, to damage."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def no_training(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(command, "train_together", refuse)


def epochs_of(config, seeds, mesh):
    """Progress of each seed in float64 after two epochs, trained together."""
    rule = WEIGHT_RULES[config.model.weight_rule]
    model = two_convolutions(config.model.weight_rule, jnp.float64)
    rate = learning_rate_schedule(config.optimizer, 2, STEPS)
    optimizer = build_optimizer(config.optimizer, rate)
    keys = [jax.random.split(jax.random.key(seed), 3) for seed in seeds]

    def start(key):
        state = create_state(model, optimizer, key, image_shape(config))
        tree = Progress(state, Sums.zero())
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    create = jax.jit(start, out_shardings=replicated(mesh))
    starts = [create(key) for key, _, _ in keys]
    split = load_dataset(config.data).train
    split = Split(
        split.images[: STEPS * config.batch_size], split.labels[: STEPS * config.batch_size]
    )
    _, order, augment = zip(*keys, strict=True)
    feed = ResidentFeed(
        split,
        mesh,
        join_keys(order),
        join_keys(augment),
        batch_size=config.batch_size,
        crop_padding=config.data.crop_padding,
        flip=config.data.flip,
        steps_per_dispatch=config.steps_per_dispatch,
    )
    clip = {CLIP_PERCENT: clip_schedule(config.optimizer, 2, STEPS)} if rule.projected else {}
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedules=clip | estimator_schedules(config.estimator, 2, STEPS, staircase=True),
        steps_per_epoch=STEPS,
    )
    separate = make_splitter(starts[0], len(seeds))
    progress = stack_seeds(starts)
    step = over_seeds(step, progress.state, len(seeds))

    def in_float64(state, images, labels):
        return step(state, images.astype(jnp.float64), labels)

    run_epoch = make_epoch_runner(
        in_float64,
        feed,
        progress,
        mesh,
        config.data,
        batch_size=config.batch_size,
        damaged_limit=0,
        use_native=config.native and mesh.size == 1,
    )
    none = jax.tree.map(jnp.copy, create(keys[0][0]).sums)
    for _ in range(2):
        progress = run_epoch(progress, lambda _: None, lambda _: False)
        sums = progress.sums
        progress = Progress(progress.state, no_sums_yet(jax.tree.map(jnp.copy, none), len(seeds)))
    return separate(Progress(progress.state, sums))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("weight_rule", "steps_per_dispatch", "devices"), [("half_half", 1, 1), ("rbnn", 3, 2)]
)
def test_seeds_trained_together_equal_single_runs(weight_rule, steps_per_dispatch, devices):
    """Each seed keeps its start, order, crops and flips; equal up to rounding in float64.

    In float32 rounding differs between the two programs, and binarization amplifies it.
    """
    config = with_fields(
        digits.get_config(),
        {
            "model.weight_rule": weight_rule,
            "steps_per_dispatch": steps_per_dispatch,
            "data.flip": True,
        },
    )
    mesh, seeds = make_mesh(devices), (3, 1)
    together = epochs_of(config, seeds, mesh)
    for seed, found in zip(seeds, together, strict=True):
        (expected,) = epochs_of(config, (seed,), mesh)
        assert int(found.state.step) == 2 * STEPS
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True
        ):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-10, err_msg=str(path))
    kernels = [jax.tree.leaves(member.state.params)[0] for member in together]
    assert not np.array_equal(kernels[0], kernels[1])


def test_a_sweep_is_a_folder_of_ordinary_runs(finished):
    folder, summary = finished
    assert {path.name for path in folder.iterdir()} == {
        "sweep.json",
        "summary.json",
        "dorefa",
        "bnn",
    }
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for variant, row in summary["variants"].items():
        assert list(row["seeds"]) == ["3", "1"]
        assert row["failures"] == {}
        top1 = []
        for seed in (3, 1):
            workdir = folder / variant / f"seed{seed}"
            assert read_config(workdir).seed == seed
            rows = read_rows(workdir)
            assert [r["epoch"] for r in rows] == [1, 2]
            assert [r["step"] for r in rows] == [5, 10]
            top1.append(rows[-1]["test_top1"])
        assert row["last"] == {
            "mean": pytest.approx(np.mean(top1)),
            "std": pytest.approx(np.std(top1, ddof=1)),
            "n": 2,
        }
    first, second = (leaves_of(folder / "bnn" / f"seed{seed}", 10) for seed in (3, 1))
    assert first.keys() == second.keys()
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    workdir = folder / "dorefa" / "seed1"
    again = evaluate_run(read_config(workdir), workdir, make_mesh(1))
    assert again["last"] == pytest.approx(summary["variants"]["dorefa"]["seeds"]["1"]["last"])
    _, notes = pack_run(read_config(workdir), workdir, best=False)
    assert notes.accuracy["epoch"] == 2


def test_what_is_done_is_skipped(finished, monkeypatch):
    folder, summary = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/**/*")}
    no_training(monkeypatch)
    monkeypatch.setattr(command, "build_task", None)  # no data are needed either
    assert run_sweep(small_sweep(), folder, make_mesh(1)) == summary
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*/**/*")} == before


@pytest.mark.slow
def test_a_run_that_is_missing_is_made_alone(copy, finished, monkeypatch):
    shutil.rmtree(copy / "bnn" / "seed1")
    trained = []

    def note(configs, mesh, stop):
        trained.extend(configs)
        return train_together(configs, mesh, stop)

    monkeypatch.setattr(command, "train_together", note)
    summary = run_sweep(small_sweep(), copy, make_mesh(1))
    assert trained == [copy / "bnn" / "seed1"]
    assert summary["variants"]["dorefa"] == finished[1]["variants"]["dorefa"]
    assert summary["variants"]["bnn"]["last"]["n"] == 2


def test_a_checkpoint_that_is_missing_is_made_again(copy):
    """The run was logged, and killed before its checkpoint was complete."""
    shutil.rmtree(copy / "bnn" / "seed3" / "checkpoints" / "10")
    summary = run_sweep(small_sweep(), copy, make_mesh(1))
    assert (copy / "bnn" / "seed3" / "checkpoints" / "10").is_dir()
    assert [row["epoch"] for row in read_rows(copy / "bnn" / "seed3")] == [1, 2]
    assert summary["variants"]["bnn"]["last"]["n"] == 2


def test_sigterm_after_the_last_step_of_a_run_starts_no_other(copy, monkeypatch):
    for variant in ("dorefa", "bnn"):
        shutil.rmtree(copy / variant / "seed1")
    trained = []

    def interrupt(configs, mesh, stop):
        with stop:  # and is not asked again
            os.kill(os.getpid(), signal.SIGTERM)
        trained.extend(configs)

    monkeypatch.setattr(command, "train_together", interrupt)
    with pytest.raises(Preempted, match="between runs"):
        run_sweep(small_sweep(), copy, make_mesh(1))
    assert trained == [copy / "dorefa" / "seed1"]


@pytest.mark.slow
def test_a_trained_run_that_lost_its_log_does_not_stop_the_others(copy):
    """The last line is lost, or the whole log."""
    log = copy / "dorefa" / "seed3" / "log.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    (copy / "dorefa" / "seed1" / "log.jsonl").unlink()
    shutil.rmtree(copy / "bnn" / "seed1")
    row = run_sweep(small_sweep(), copy, make_mesh(1))["variants"]
    assert list(row["dorefa"]["failures"]) == ["3", "1"]
    assert all("lacks the last epoch" in text for text in row["dorefa"]["failures"].values())
    assert row["dorefa"]["last"]["n"] == 0
    assert row["bnn"]["last"]["n"] == 2


def test_a_log_without_checkpoints_is_not_written_anew(copy, monkeypatch):
    no_training(monkeypatch)
    run_folder = copy / "bnn" / "seed1"
    shutil.rmtree(run_folder / "checkpoints")
    log = run_folder / "log.jsonl"
    log.write_text(log.read_text() * 2 + log.read_text().splitlines()[0] + "\n")  # not finished
    before = log.read_bytes()
    with pytest.raises(UsageError, match="and no checkpoint to continue from"):
        run_sweep(small_sweep(), copy, make_mesh(1))
    assert log.read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_group_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.StopSignals, "should_stop", lambda self, step: step >= 3)
        with pytest.raises(Preempted, match=r"step 3 is saved in .*seed3, .*seed1"):
            run_sweep(small_sweep(), tmp_path, make_mesh(1), 2, only=["bnn"])
    for seed in (3, 1):
        assert (tmp_path / "bnn" / f"seed{seed}" / "checkpoints" / "3").is_dir()
    assert not (tmp_path / "dorefa").exists()
    summary = run_sweep(small_sweep(), tmp_path, make_mesh(1), 2, only=["bnn"])
    assert summary["variants"]["dorefa"]["last"] == {"mean": None, "std": None, "n": 0}
    for seed in (3, 1):
        expected = leaves_of(finished[0] / "bnn" / f"seed{seed}", 10)
        found = leaves_of(tmp_path / "bnn" / f"seed{seed}", 10)
        for name, leaf in expected.items():
            np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_runs_at_different_steps_do_not_train_together(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "bnn").mkdir()
    shutil.copytree(folder / "bnn" / "seed3", tmp_path / "bnn" / "seed3")
    runs = small_sweep().runs("bnn", tmp_path)
    with pytest.raises(UsageError, match=r"10 of .*seed3, 0 of .*seed1"):
        train_together(runs, make_mesh(1))
    assert [list(group) for group in command.training_groups(runs, 2)] == [[x] for x in runs]


def test_a_seed_that_diverges_does_not_stop_the_others(finished, tmp_path, monkeypatch):
    def train(configs, mesh, stop):
        if any(config.seed == 1 for config in configs.values()):
            raise Diverged("the loss is not finite at step 7")
        ((workdir, _),) = configs.items()
        shutil.copytree(finished[0] / "bnn" / workdir.name, workdir)

    monkeypatch.setattr(command, "train_together", train)
    summary = run_sweep(small_sweep(), tmp_path, make_mesh(1), 2, only=["bnn"])
    row = summary["variants"]["bnn"]
    assert row["failures"] == {"1": "the loss is not finite at step 7"}
    assert list(row["seeds"]) == ["3"]
    assert (row["last"]["n"], row["last"]["std"]) == (1, None)

    monkeypatch.setattr(command, "train_together", None)  # a diverged run is not tried again
    again = run_sweep(small_sweep(), tmp_path, make_mesh(1), 2, only=["bnn"])
    assert again["variants"]["bnn"] == row


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_builds(path, monkeypatch):
    """All variants pass the checks before training, and all differ."""
    sweep = load_sweep(path)
    assert f"siman_jax.sweep configs/sweeps/{path.name}" in path.read_text()
    shape = image_shape(sweep.base)
    part = Split(np.zeros((1000, *shape), np.uint8), np.zeros(1000, np.int32))
    data = Dataset(part, part, tuple("0123456789"))
    monkeypatch.setattr(task_module, "load_dataset", lambda config, given: data)
    seen = set()
    for variant in sweep.variants:
        runs = sweep.runs(variant, Path("sweep"))
        assert [config.seed for config in runs.values()] == list(sweep.seeds)
        seen |= {config.to_json(sort_keys=True) for config in runs.values()}
        task = build_task(next(iter(runs.values())), make_mesh(1))
        state = jax.eval_shape(
            partial(create_state, task.model, task.optimizer, image_shape=shape), jax.random.key(0)
        )
        assert state.params["fc"]["bias"].shape == (10,)
    assert len(seen) == len(sweep.variants) * len(sweep.seeds)


def test_a_variant_takes_the_runs_of_an_earlier_one_seed_by_seed(tmp_path, monkeypatch):
    variants = {
        "first": {"model.weight_rule": "real", "model.activation_rule": "siman"},
        "second": {"init_from": "first", "distillation.teacher": "first"},
        "other": {"init_from": "elsewhere"},
    }
    sweep = Sweep("linked", small_sweep(epochs=1).base, variants, (3, 1))
    for seed, config in zip((3, 1), sweep.runs("second", tmp_path).values(), strict=True):
        assert config.init_from == str(tmp_path / "first" / f"seed{seed}")
        assert config.distillation.teacher == config.init_from
    monkeypatch.chdir(tmp_path)
    (relative,) = {config.init_from for config in sweep.runs("second", Path("a")).values()} - {
        str(tmp_path / "a" / "first" / "seed1")
    }
    assert relative == str(tmp_path / "a" / "first" / "seed3")
    assert {config.init_from for config in sweep.runs("other", tmp_path).values()} == {"elsewhere"}

    groups = []
    monkeypatch.setattr(command, "train_together", lambda runs, mesh, stop: groups.append(runs))
    monkeypatch.setattr(command, "_write_failure", lambda workdir, reason: None)
    run_sweep(sweep, tmp_path / "new", make_mesh(1), seeds_at_once=2, only=["first", "second"])
    assert [len(runs) for runs in groups] == [2, 1, 1]  # a program has one teacher
    with pytest.raises(UsageError, match="learn from different teachers"):
        train_together(sweep.runs("second", tmp_path), make_mesh(1))


@pytest.mark.slow
def test_a_linked_sweep_trains(tmp_path):
    variants = {
        "first": {"model.weight_rule": "real", "model.activation_rule": "siman"},
        "second": {"init_from": "first", "distillation.teacher": "first"},
    }
    sweep = Sweep("linked", small_sweep(epochs=1).base, variants, (1,))
    summary = run_sweep(sweep, tmp_path / "new", make_mesh(1))
    assert [row["last"]["n"] for row in summary["variants"].values()] == [1, 1]
    assert (tmp_path / "new" / "second" / "seed1" / "teacher.json").is_file()


def test_the_first_study_has_every_rule():
    sweep = load_sweep(REPOSITORY / "configs" / "sweeps" / "methods.py")
    assert set(sweep.variants) == {*WEIGHT_RULES, "bop", "ir_net_0.1"}
    fixed = {"model.weight_rule", "optimizer.undecayed", "optimizer.bop"}
    own = {"estimator.first_sharpness"}
    assert all(set(fields) <= fixed | own for fields in sweep.variants.values())


def test_a_part_of_the_training_images_keeps_the_classes_balance():
    config = digits.get_config().data
    config.train_examples = 500
    whole, part = load_dataset(digits.get_config().data), load_dataset(config)
    assert len(part.train) == 500
    assert len(part.test) == len(whole.test)
    order = np.argsort(whole.train.labels, kind="stable")
    by_class = Split(whole.train.images[order], whole.train.labels[order])
    kept, _ = evenly_divided(by_class, 500)
    counted = np.bincount(kept.labels)
    assert max(counted) - min(counted) <= 3
    assert all((image == by_class.images).all((1, 2, 3)).any() for image in kept.images[::50])
    for wrong in (-1, 1438):
        config.train_examples = wrong
        with pytest.raises(UsageError, match="at most 1437"):
            load_dataset(config)


def test_held_out_training_images_are_evaluated_and_not_trained_on():
    config = digits.get_config().data
    whole = load_dataset(config)
    config.validation_examples = 300
    config.train_examples = 500
    part = load_dataset(config)
    rows = np.arange(300) * 1437 // 300
    np.testing.assert_array_equal(part.test.images, whole.train.images[rows])
    np.testing.assert_array_equal(part.test.labels, whole.train.labels[rows])
    others = np.delete(np.arange(1437), rows)
    taken = others[np.arange(500) * 1137 // 500]
    np.testing.assert_array_equal(part.train.images, whole.train.images[taken])
    config.train_examples = 1138
    with pytest.raises(UsageError, match="at most 1137"):
        load_dataset(config)
    config.train_examples = 0
    for wrong in (-1, 1437):
        config.validation_examples = wrong
        with pytest.raises(UsageError, match=r"validation_examples is .* at most 1436"):
            load_dataset(config)


def test_the_clip_percentage_may_stay():
    config = digits.get_config().optimizer
    config.clip_decays = False
    schedule = clip_schedule(config, 10, 5)
    assert [float(schedule(jnp.int32(step))) for step in (0, 49)] == [15.0, 15.0]


SWEEP_FILE = """
from siman_jax.configs import digits
from siman_jax.runs.sweep_plan import Sweep

def get_sweep():
    return Sweep("other", digits.get_config(), {variants}, {seeds})
"""


@pytest.mark.parametrize(
    ("variants", "seeds", "message"),
    [
        ({"a": {"model.weight_rul": "bnn"}}, (0,), "did you mean 'model.weight_rule'"),
        ({"a": {"epochs": "two"}}, (0,), "epochs cannot be 'two'"),
        ({"a": {"model.weight_rule": "bn"}}, (0,), "unknown weight rule 'bn'"),
        ({"a": {"seed": 1}}, (0,), "set the sweep's seeds instead"),
        ({"../a": {}}, (0,), "cannot be the name of a folder"),
        ({"a": {}}, (0, 0), "a seed twice"),
        ({"a": {}}, (-1,), "contains the seed -1"),
        ({}, (0,), "at least one variant"),
        ({"a": {}}, (), "at least one variant and one seed"),
        ({"a": {"data.source": "digit"}}, (0,), "did you mean 'digits'"),
        ({"a": {"init_from": "b"}, "b": {}}, (0,), "'a' needs the runs of 'b' in init_from"),
        ({"a": {"distillation.teacher": "a"}}, (0,), "does not come before it; change the order"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_written(tmp_path, variants, seeds, message):
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP_FILE.format(variants=variants, seeds=seeds))
    with pytest.raises(UsageError, match=message):
        call(command.main, path, f"--workdir={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()


DIGITS = "configs/sweeps/digits.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one sweep's file"),
        ([DIGITS, "extra"], "name one sweep's file"),
        ([DIGITS], "--workdir is missing"),
        (
            ["configs/sweeps/digit.py", "--workdir=unused"],
            "there is no file .*configs/sweeps/digits",
        ),
        (["configs/digits.py", "--workdir=unused"], r"defines no get_sweep\(\)"),
        (["README.md", "--workdir=unused"], "there is no sweep"),
        ([DIGITS, "--workdir=README.md"], "is a file; name a folder"),
        ([DIGITS, "--workdir=configs"], "holds no sweep"),
        ([DIGITS, "--workdir=unused", "--set=epoch=2"], "did you mean 'epochs'"),
        ([DIGITS, "--workdir=unused", "--set=epochs"], "has no value"),
        ([DIGITS, "--workdir=unused", "--set=epochs=two"], "is not a Python value"),
        ([DIGITS, "--workdir=unused", "--set=epochs='two'"], "it must be a whole number, such as"),
        ([DIGITS, "--workdir=unused", "--set=epochs=0"], "at least 1"),
        ([DIGITS, "--workdir=unused", "--set=seed=5"], "each has its own seed"),
        ([DIGITS, "--workdir=unused", "--set=model.weight_rule=bnn"], "half_half sets it itself"),
        ([DIGITS, "--workdir=unused", "--only=bnm"], "did you mean 'bnn'"),
        ([DIGITS, "--workdir=unused", "--seeds_at_once=-1"], "seeds_at_once"),
        (
            ["configs/sweeps/methods.py", "--workdir=unused", "--set=data.root=nowhere"],
            "no folder nowhere",
        ),
    ],
)
def test_wrong_commands_give_one_clear_message(arguments, message, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    no_training(monkeypatch)
    with pytest.raises(UsageError, match=message):
        call(command.main, *arguments)
    assert not Path("unused").exists()


def test_the_folder_of_another_sweep_is_refused(copy, finished):
    other = Sweep("other", small_sweep().base, small_sweep().variants, (3,))
    with pytest.raises(UsageError, match="holds the sweep 'small', and this is 'other'"):
        run_sweep(other, copy, make_mesh(1))
    with pytest.raises(UsageError, match="epochs: 2 there, 3 here"):
        run_sweep(small_sweep(epochs=3), copy, make_mesh(1))
    (copy / "sweep.json").write_text("[")
    with pytest.raises(UsageError, match="is damaged"):
        run_sweep(small_sweep(), copy, make_mesh(1))


def test_a_table_names_variants_and_failures(copy, monkeypatch, capsys):
    """The command prints the table, and ends with an error if a run failed."""
    sweep = small_sweep()
    monkeypatch.setattr(command, "load_sweep", lambda path: sweep)
    no_training(monkeypatch)
    call(command.main, DIGITS, f"--workdir={copy}")
    printed = capsys.readouterr().out
    assert "±" in printed
    assert "bnn" in printed
    for checkpoints in copy.glob("*/*/checkpoints"):
        shutil.rmtree(checkpoints)
    call(command.main, DIGITS, f"--workdir={copy}")  # logs are enough
    assert capsys.readouterr().out == printed

    def diverge(configs, mesh, stop):
        raise Diverged("not finite at step 7")

    monkeypatch.setattr(command, "train_together", diverge)
    shutil.rmtree(copy / "bnn" / "seed1")
    with pytest.raises(UsageError, match=r"1 runs failed:\n  bnn/seed1: not finite"):
        call(command.main, DIGITS, f"--workdir={copy}")


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    small = ["--set=model.width=4", "--set=epochs=3", "--set=batch_size=64"]
    words = [DIGITS, f"--workdir={tmp_path}", "--only=bnn", "--seeds_at_once=2", *small]
    line = [sys.executable, "-m", "siman_jax.sweep", *words]
    with started(line, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "bnn" / "seed1" / "log.jsonl").exists():
            assert process.poll() is None, "ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 75, said
    assert "run the same command to continue" in said
    again = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "continuing from step" in again.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["variants"]["bnn"]["last"]["n"] == 2
