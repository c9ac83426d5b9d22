"""The small files of a run, damaged: its config, its log, what it was trained on; a sweep's too."""

import importlib
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from absl import flags
from absl.testing import flagsaver

from siman_jax.command import parse_flags
from siman_jax.configs import digits
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.export import pack_run
from siman_jax.runs.curves import draw_curves
from siman_jax.runs.log import RunLog, last_and_best, read_rows
from siman_jax.runs.stored_run import check_resumable, is_finished, load_run
from siman_jax.runs.trained_on import check_classes, read_trained_on
from siman_jax.runs.verify import verify_run
from siman_jax.runs.workdir import check_workdir, read_config
from siman_jax.training.metrics import METRICS

from .case import Finding, choose
from .damage import damaged_bytes, damaged_json

_DRAW = 100  # one in so many runs is drawn and reported on, which takes a second
_LOAD = 10  # so many configs are built, which takes half of one
_ROWS = 3


class Records:
    seconds = 300
    lifetime = 3000

    def __init__(self, scratch: Path) -> None:
        self._run, self._scratch = scratch / "run", scratch
        self._tried = 0

    def make(self, rng: np.random.Generator) -> bytes:
        name = choose(rng, list(samples()))
        text = samples()[name]
        if rng.random() < 0.3:
            data = damaged_bytes(rng, text.encode())
        elif name == "log.jsonl":
            lines = text.splitlines()
            place = int(rng.integers(len(lines)))
            lines[place] = damaged_json(rng, json.loads(lines[place]))
            data = "\n".join([*lines, ""]).encode(errors="surrogatepass")
        else:
            data = damaged_json(rng, json.loads(text)).encode(errors="surrogatepass")
        return name.encode() + b"\n" + data

    def check(self, case: bytes) -> Mapping[str, int]:
        name, _, data = case.partition(b"\n")
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir()
        for sample, text in samples().items():
            (self._run / sample).write_text(text)
        (self._run / name.decode()).write_bytes(data)
        self._tried += 1
        self._words = {"refused": 0, "read": 0}
        self._use_all(data)
        return {name: number for name, number in self._words.items() if number}

    def _use_all(self, data: bytes) -> None:
        run, tried = self._run, self._tried
        config = digits.get_config()
        mesh = make_mesh(1)
        self._use(lambda: check_workdir(config, run))
        self._use(lambda: last_and_best(read_rows(run)))
        self._use(lambda: check_resumable(run))
        self._use(lambda: is_finished(run, 3))
        self._use(lambda: check_classes(("a", "b"), run))
        self._use(lambda: read_trained_on(run))
        self._use(lambda: verify_run(run))
        own = self._use(lambda: read_config(run))
        if own is not None and tried % _LOAD == 1:
            self._use(lambda: load_run(own, run, mesh))
            self._use(lambda: pack_run(own, run, best=True))
        if tried % _DRAW == 1 or data == b"":
            self._use(lambda: draw_curves(run))
            self._use(lambda: self._report())
        before = _values(run / "log.jsonl")
        self._use(lambda: RunLog(run, 10).close())
        if before is not None and _values(run / "log.jsonl") != before:
            raise Finding("opening the log for a later step changes whole rows of it")

    def _use(self, function):
        try:
            value = function()
        except UsageError as error:
            if not str(error) or len(str(error)) > 20_000:
                raise Finding(f"a message of {len(str(error))} characters") from error
            self._words["refused"] += 1
            return None
        self._words["read"] += 1
        return value

    def _report(self) -> None:
        report = importlib.import_module("siman_jax.report.__main__")
        out = self._scratch / "report"
        shutil.rmtree(out, ignore_errors=True)
        with flagsaver.flagsaver():
            flags.FLAGS.set_gnu_getopt(True)
            try:
                report.main(parse_flags(["report", str(self._run), f"--out={out}"]))
            except SystemExit as end:
                if end.code != 1:  # some of it is left out
                    raise


def _values(path: Path) -> list | None:
    """Lines of a log that is whole, None where it is not."""
    try:
        values = [json.loads(line) for line in path.read_text().splitlines()]
    except (ValueError, RecursionError):
        return None
    steps = [row.get("step") if isinstance(row, dict) else None for row in values]
    if not all(type(step) is int and step <= 10 for step in steps):
        return None
    return values


@cache
def samples() -> dict[str, str]:
    """The files by name."""
    config = digits.get_config()
    config.model.width = 4
    rows = [
        {
            **{f"{split}_{name}": 1.5 for split in ("train", "test") for name in METRICS},
            **{"step": 3 * epoch, "epoch": epoch, "learning_rate": 0.1, "images_per_second": 9.0},
            "flips": {"conv1": 0.25, "conv2": 0.5},
        }
        for epoch in range(1, _ROWS + 1)
    ]
    return {
        "config.json": json.dumps(json.loads(config.to_json())),
        "log.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "data.json": json.dumps({"classes": ["a", "b", "c"], "train_examples": 100}),
    }
