"""Reads runs from disk, as far as possible, and notes what could not be read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.analysis.measures import (
    KernelMeasures,
    Measures,
    binary_kernels,
    can_be_measured,
    measure_layer,
)
from siman_jax.errors import UsageError
from siman_jax.runs.log import FILE_NAME, read_rows
from siman_jax.runs.stored_run import FAILURE_FILE, is_removed, kept_steps, load_step
from siman_jax.runs.workdir import read_config
from siman_jax.training.step import TrainState

# Fields of the log that curves and tables need.
LOGGED = ("train_loss", "train_top1", "test_loss", "test_top1", "images_per_second")
_ABOVE_ZERO = ("step", "epoch", "images_per_second")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes:
      step: of the optimizer.
      epoch: the same in epochs; None if the run's log does not tell.
      layers: measures of its binary kernels.
    """

    step: int
    epoch: float | None
    layers: list[KernelMeasures]


class Moment(NamedTuple):
    """Measures of the binary kernels at one time.

    Attributes:
      time: in epochs; in steps of the optimizer if there is no log.
      layers: measures of each layer.
    """

    time: float
    layers: list[Measures]


@dataclass
class Run:
    """The content of a run's folder.

    Attributes:
      label: its name in the report.
      workdir: its folder.
      config: its config.
      rows: rows of its log that have all of `LOGGED` and `flips`, one per epoch.
      checkpoints: those that could be read, earliest first.
      state: that of the last checkpoint.
      problems: what could not be read, and why.
    """

    label: str
    workdir: Path
    config: ConfigDict
    rows: list[dict[str, Any]]
    checkpoints: list[Checkpoint] = field(default_factory=list)
    state: TrainState | None = None
    problems: list[str] = field(default_factory=list)

    def moments(self) -> list[Moment]:
        """Return each logged epoch if the log has measures of kernels, else each checkpoint."""
        if has_measures(self.rows):
            return [Moment(row["epoch"], layers_of_row(row)) for row in self.rows]
        return [
            Moment(
                checkpoint.step if checkpoint.epoch is None else checkpoint.epoch,
                [layer.measures() for layer in checkpoint.layers],
            )
            for checkpoint in self.checkpoints
        ]


def has_measures(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a log has rows, and all of them have measures of the same kernels."""
    return bool(rows) and all(
        isinstance(row.get(name), Mapping)
        and row[name]
        and row[name].keys() == rows[0][Measures._fields[0]].keys()
        and all(map(_is_number, row[name].values()))
        for row in rows
        for name in Measures._fields
    )


def layers_of_row(row: Mapping[str, Any]) -> list[Measures]:
    """Return the logged measures of each layer."""
    by_layer = zip(*(row[name].values() for name in Measures._fields), strict=True)
    return [Measures(*numbers) for numbers in by_layer]


def read_run(workdir: Path, label: str, mesh: Mesh) -> Run:
    """Read a run's log, and measure its checkpoints.

    Raises:
      UsageError: there is no config, or neither a log nor a checkpoint can be read.
    """
    config = read_config(workdir)
    rows, problems = logged_rows(workdir)
    failure = workdir / FAILURE_FILE
    if failure.is_file():  # its log is still shown
        problems.insert(0, failure.read_text(errors="replace").strip())
    run = Run(label, workdir, config, rows, problems=problems)
    steps = kept_steps(workdir)
    if not steps and not any(name in row for row in rows for name in Measures._fields):
        run.problems.append("it holds no checkpoint, so its layers are not shown")
    for step in steps:
        try:
            state = load_step(config, workdir, mesh, step).progress.state
        except UsageError as error:
            if not is_removed(workdir, step):
                run.problems.append(str(error))
            continue
        kernels = list(binary_kernels(state.params))
        dead = [name for name, kernel in kernels if not can_be_measured(kernel)]
        if dead:
            run.problems.append(
                f"the checkpoint of step {step} has weights that are not finite, or all equal, in"
                f" {', '.join(dead)}"
            )
            continue
        layers = [measure_layer(*kernel) for kernel in kernels]
        run.checkpoints.append(Checkpoint(step, _epoch(step, rows), layers))
        run.state = state
    if run.checkpoints and not run.checkpoints[-1].layers:
        run.problems.append("its network has no binary layer")
    if not rows and not run.checkpoints:
        raise UsageError("; ".join(run.problems))
    return run


def logged_rows(workdir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows that are complete, one per epoch, and describe problems with others."""
    path = workdir / FILE_NAME
    try:
        written = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
        rows = [row for row in read_rows(workdir) if _is_whole(row)]
    except OSError as error:
        return [], [f"its log cannot be read: {error}"]
    problems = []
    if len(rows) < written:
        problems.append(
            f"{written - len(rows)} of the {written} lines of its log are incomplete, or of another"
            " version, and were left out"
        )
    elif not rows:
        problems.append("nothing is logged")
    latest = {row["epoch"]: row for row in rows}
    return [latest[epoch] for epoch in sorted(latest)], problems


def _is_whole(row: Mapping[str, Any]) -> bool:
    return (
        all(_is_number(row.get(name)) for name in LOGGED)
        and all(_is_number(row.get(name)) and row[name] > 0 for name in _ABOVE_ZERO)
        and _is_finite(row)
        and all(map(_is_number, row["flips"].values()))
    )


def _is_finite(value: Any) -> bool:
    """Tell whether all numbers inside are finite, as JSON requires."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _epoch(step: int, rows: list[dict[str, Any]]) -> float | None:
    return step * rows[-1]["epoch"] / rows[-1]["step"] if rows else None
