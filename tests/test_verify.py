"""Verification of a run's files, one by one."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from cli import call

from siman_jax import main
from siman_jax.configs import digits
from siman_jax.errors import UsageError
from siman_jax.runs import verify
from siman_jax.runs.checkpoint import CheckpointWriter, verify_checkpoint
from siman_jax.runs.verify import verify_run
from siman_jax.training.metrics import METRICS


def row(epoch):
    numbers = {f"{split}_{name}": 1.0 for split in ("train", "test") for name in METRICS}
    return json.dumps({"step": 5 * epoch, "epoch": epoch, "flips": {}, **numbers}) + "\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The files of a run of two epochs."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    writer = CheckpointWriter(workdir / "checkpoints", keep=2, step=0)
    for step, top1 in ((5, 61.5), (10, 98.5)):
        writer.save(step, {"params": {"w": jnp.arange(999.0) + step}}, top1)
    writer.close()
    (workdir / "config.json").write_text(digits.get_config().to_json())
    (workdir / "data.json").write_text(json.dumps({"classes": ["a", "b"], "train_examples": 9}))
    (workdir / "log.jsonl").write_text(row(1) + row(2))
    return workdir


@pytest.fixture
def workdir(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def states(workdir):
    return {name: (whole, text) for name, whole, text in verify_run(workdir)}


def test_all_of_a_run_is_whole(run, capsys):
    assert states(run) == {
        "config.json": (True, "network cifar.resnet20_1w1a"),
        "data.json": (True, "9 examples of 2 classes"),
        "log.jsonl": (True, "2 epochs"),
        "checkpoints/5": (True, "all checksums match"),
        "checkpoints/10": (True, "all checksums match"),
    }
    call(main.main, "--mode=verify", f"--workdir={run}")
    assert "checkpoints/10" in capsys.readouterr().out


def flip_in_the_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# Orbax leaves coroutines behind when a restore fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (lambda run: flip_in_the_middle(largest(run / "checkpoints/5")), "checkpoints/5", "w is"),
        (
            lambda run: (run / "checkpoints/10/metrics/metrics").write_text('{"top1": 99.5}'),
            "checkpoints/10",
            "metrics are damaged",
        ),
        (
            lambda run: (run / "checkpoints/10/_CHECKPOINT_METADATA").write_text("{}"),
            "checkpoints/10",
            "custom_metadata",
        ),
        (lambda run: (run / "config.json").write_text("{"), "config.json", "is damaged"),
        (lambda run: (run / "config.json").unlink(), "config.json", "there is no run"),
        (lambda run: (run / "data.json").write_text("[]"), "data.json", "is damaged"),
        (lambda run: (run / "log.jsonl").write_text("{\n" + row(2)), "log.jsonl", "line 1 cannot"),
        (lambda run: (run / "log.jsonl").write_text("[" * 10**5 + "\n"), "log.jsonl", "line 1"),
        (lambda run: (run / "log.jsonl").write_text("{}\n"), "log.jsonl", "not an epoch's row"),
        (lambda run: (run / "log.jsonl").write_text(row(2) * 2), "log.jsonl", "not in order"),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_whole(workdir, damage, name, message):
    damage(workdir)
    found = states(workdir)
    assert [which for which, (whole, _) in found.items() if not whole] == [name]
    assert message in found[name][1]
    with pytest.raises(UsageError, match=f"damaged in .*: {name}"):
        call(main.main, "--mode=verify", f"--workdir={workdir}")


def test_files_that_an_earlier_version_did_not_write(workdir):
    (workdir / "data.json").unlink()
    for step in (5, 10):
        path = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
        path.write_text(json.dumps({**json.loads(path.read_text()), "custom_metadata": {}}))
    found = states(workdir)
    assert all(whole for whole, _ in found.values())
    assert found["checkpoints/5"][1] == "can be read; it has no checksums"


def test_a_line_cut_short_by_a_kill_is_no_damage(workdir):
    with (workdir / "log.jsonl").open("a") as file:
        file.write(row(3)[:20])
    assert states(workdir)["log.jsonl"] == (
        True,
        "2 epochs; the last line is cut short and will be written again",
    )


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UsageError, match="there is no run in"):
        call(main.main, "--mode=verify", f"--workdir={tmp_path}")
    with pytest.raises(UsageError, match="--workdir is missing"):
        call(main.main, "--mode=verify")


def test_a_checkpoint_that_training_removes_meanwhile_is_not_damaged(workdir, monkeypatch):
    def remove_and_verify(directory, step):
        shutil.rmtree(directory / "5", ignore_errors=True)
        return verify_checkpoint(directory, step)

    monkeypatch.setattr(verify, "verify_checkpoint", remove_and_verify)
    found = states(workdir)
    assert "checkpoints/5" not in found
    assert all(whole for whole, _ in found.values())
