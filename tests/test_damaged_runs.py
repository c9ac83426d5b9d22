"""Runs with a config or log damaged in any way that JSON allows, and runs that still train."""

import copy
import json
import logging
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import TINY, started
from hypothesis import given, settings
from hypothesis import strategies as st

from siman_jax.configs import digits
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.export import pack_run
from siman_jax.report import runs as report_runs
from siman_jax.report.runs import read_run
from siman_jax.runs.checkpoint import ocp
from siman_jax.runs.curves import draw_curves
from siman_jax.runs.log import RunLog, last_and_best, read_rows
from siman_jax.runs.stored_run import create_run, load_run, load_step
from siman_jax.runs.trained_on import read_trained_on
from siman_jax.runs.verify import verify_run
from siman_jax.runs.workdir import check_workdir, read_config
from siman_jax.training.field_types import flat
from siman_jax.training.metrics import METRICS
from siman_jax.training.task import model_from_config


def small_config():
    config = digits.get_config()
    config.model.width = 4
    return config.lock()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run at step 0."""
    config, folder = small_config(), tmp_path_factory.mktemp("run") / "run"
    init = partial(model_from_config(config).init, train=False)
    options = {"xla_backend_optimization_level": 0}
    variables = jax.jit(init, compiler_options=options)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    create_run(config, folder, make_mesh(1), variables)
    return folder


ROW = {
    **{f"{split}_{name}": 1.5 for split in ("train", "test") for name in METRICS},
    **{"step": 3, "epoch": 1, "learning_rate": 0.1, "images_per_second": 9.0},
    "flips": {"conv1": 0.25},
}
ODD = [None, [], {}, "x", 10**30, 2**60, 1e308, True, np.nan, [1e999], [None], "\ud800\x1b[2J"]
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@contextmanager
def refusal(messages=None, about=""):
    """Allow a `UsageError` in the block, and append its message to `messages`."""
    try:
        yield
    except UsageError as error:
        if messages is not None:
            messages.append((about, str(error)))


def with_value(table, path, value):
    table = copy.deepcopy(table)
    *way, last = path.split(".")
    inner = table
    for name in way:
        inner = inner[name]
    inner[last] = value
    return table


def stored():
    return json.loads(small_config().to_json())


def test_every_field_of_a_config_with_every_odd_value(tmp_path):
    """An odd value is refused by name, or accepted if it makes sense."""
    messages = []
    for path in [*stored(), *flat(stored())]:
        for value in ODD:
            text = json.dumps(with_value(stored(), path, value))
            (tmp_path / "config.json").write_text(text)
            with refusal(messages, path):
                read_config(tmp_path)
            with refusal():
                check_workdir(small_config(), tmp_path)
    assert len(messages) > 300
    assert all(path in message for path, message in messages)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[1]", "{", "\x00", DEEP, "[" * 100_000, '{"seed": ' + "9" * 5000 + "}"]
    + [json.dumps({**stored(), name: 1}) for name in ("", "a.b", "_fields", "__class__", "items")],
)
def test_configs_that_are_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    messages = []
    with refusal(messages, "config.json is damaged"):
        read_config(tmp_path)
    assert all(text in message for text, message in messages)
    with pytest.raises(UsageError, match=r"is damaged|of another config"):
        check_workdir(small_config(), tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name in ("config.json", "data.json"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=r"config\.json cannot be read: Is a directory"):
        check_workdir(small_config(), tmp_path)
    with pytest.raises(UsageError, match=r"data\.json cannot be read: Is a directory"):
        read_trained_on(tmp_path)


def test_what_remains_odd_is_said_when_the_run_is_read(run, tmp_path):
    """Values of the right type that no network can have."""
    for path, value in {
        "data.channels": 0,
        "data.image_size": -8,
        "model.width": 2**40,
        "model.name": "cifar",
        "model.weight_rule": "\x1b[2J",
        "model.dtype": "float8",
        "optimizer.undecayed": [1, "x"],
        "data.resident": False,
        "data.mean": ["x"],
    }.items():
        folder = tmp_path / path
        shutil.copytree(run, folder)
        text = json.dumps(with_value(json.loads((run / "config.json").read_text()), path, value))
        (folder / "config.json").write_text(text)
        for read in (
            lambda folder: read_run(folder, "run", make_mesh(1)),
            lambda folder: pack_run(read_config(folder), folder, best=False),
        ):
            with refusal():
                read(folder)


def lines_of_logs():
    return [
        *(json.dumps(with_value(ROW, name, value)) for name in ROW for value in ODD),
        *(json.dumps(with_value(ROW, "flips.conv1", value)) for value in ODD),
        *(json.dumps(value) for value in ODD),
        *("", "{", DEEP, "[" * 100_000, "9" * 5000, '{"step": ' + "9" * 400 + "}", "\x00\xff"),
        json.dumps({**ROW, "": 1, "a.b": {"": None}, "__class__": "x"}),
        json.dumps({name: 0 for name in ROW}),
        json.dumps({**ROW, "step": -1}),
    ]


def test_every_odd_line_of_a_log(tmp_path):
    """Complete rows are read, other lines are skipped, and all readers of logs work."""
    odd = lines_of_logs()
    (tmp_path / "log.jsonl").write_text("\n".join([json.dumps(ROW), *odd, json.dumps(ROW)]) + "\n")
    rows = read_rows(tmp_path)
    assert rows[0] == rows[-1] == ROW
    for row in rows:
        assert 0 < row["epoch"] < 1e40
        assert all(abs(row[f"test_{name}"]) < 1e40 for name in METRICS)
    assert last_and_best(rows)["last"]["epoch"] == 1
    draw_curves(tmp_path)
    report_runs.logged_rows(tmp_path)
    log = RunLog(tmp_path, 3)
    log.write(ROW)
    log.close()
    assert read_rows(tmp_path)[-1] == ROW


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(list(stored())) | st.text(max_size=4), values))
def test_any_config_is_read_or_refused(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("any")
    (folder / "config.json").write_text(json.dumps({**stored(), **changes}))
    for read in (read_config, lambda folder: check_workdir(small_config(), folder)):
        with refusal():
            read(folder)


def test_a_report_on_a_run_that_trains(run, tmp_path, monkeypatch):
    """A checkpoint that the run replaces meanwhile is not reported as a problem."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copytree(folder / "checkpoints" / "0", folder / "checkpoints" / "7")
    (folder / "log.jsonl").write_text(json.dumps(ROW) + "\n")

    def load_and_remove(config, workdir, mesh, step):
        shutil.rmtree(workdir / "checkpoints" / "0", ignore_errors=True)
        return load_step(config, workdir, mesh, step)

    monkeypatch.setattr(report_runs, "load_step", load_and_remove)
    found = read_run(folder, "run", make_mesh(1))
    assert found.problems == []
    assert [checkpoint.step for checkpoint in found.checkpoints] == [7]


def test_a_checkpoint_that_training_replaces_while_it_is_read(run, tmp_path, monkeypatch, caplog):
    """The later checkpoint is read instead, without a warning."""
    caplog.set_level(logging.WARNING, "siman_jax")
    folder, load = tmp_path / "run", ocp.load
    shutil.copytree(run, folder)

    def replace_and_load(path, abstract):
        if (folder / "checkpoints" / "0").exists():
            (folder / "checkpoints" / "0").rename(folder / "checkpoints" / "7")
        return load(path, abstract)

    monkeypatch.setattr(ocp, "load", replace_and_load)
    for best in (False, True):
        snapshot = load_run(small_config(), folder, make_mesh(1), best=best)
        assert snapshot.progress.state.step == 0
    assert not caplog.records


def test_a_checkpoint_that_training_removes_file_by_file(run, tmp_path, monkeypatch, caplog):
    """The later one is read, without a word, although the folder is still there for a moment."""
    caplog.set_level(logging.WARNING, "siman_jax")
    for read in (partial(load_run, best=True), report, verify):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        shutil.copytree(run, folder)
        checkpoints = folder / "checkpoints"
        shutil.copytree(checkpoints / "0", checkpoints / "7")
        (checkpoints / "0" / "metrics" / "metrics").unlink()
        (checkpoints / "0" / "_CHECKPOINT_METADATA").unlink()
        removal = threading.Timer(0.5, shutil.rmtree, [checkpoints / "0"])
        removal.start()
        read(small_config(), folder, make_mesh(1))
        removal.join()
    assert not said(caplog)


def said(caplog):
    """Without the words of orbax on a file that is gone."""
    return [record for record in caplog.records if record.name != "absl"]


def verify(config, folder, mesh):
    assert all(whole for _, whole, _ in verify_run(folder))


def report(config, folder, mesh):
    (folder / "log.jsonl").write_text(json.dumps(ROW) + "\n")
    found = read_run(folder, "run", mesh)
    assert found.problems == []
    assert [checkpoint.step for checkpoint in found.checkpoints] == [7]


@pytest.mark.slow
def test_what_reads_a_run_reads_one_that_trains(tmp_path, caplog):
    """The training keeps one checkpoint and writes new ones as fast as it can."""
    caplog.set_level(logging.WARNING, "siman_jax")
    line = [sys.executable, "-m", "siman_jax.main", *TINY, f"--workdir={tmp_path}"]
    more = ["--config.epochs=99999", "--config.keep_checkpoints=1"]
    with started([*line, *more]) as training:
        deadline = time.monotonic() + 300
        while len(read_rows(tmp_path)) < 2:
            assert training.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = read_rows(tmp_path)[-1]["epoch"]
        for _ in range(3):
            found = read_run(tmp_path, "run", make_mesh(1))
            assert found.problems == []
            pack_run(read_config(tmp_path), tmp_path, best=True)
            assert all(whole for _, whole, _ in verify_run(tmp_path))
        after = read_rows(tmp_path)[-1]["epoch"]
        training.send_signal(signal.SIGTERM)
    assert training.returncode == 75
    assert after > before + 3
    assert not said(caplog)
