"""A run's log: one line of JSON per epoch in log.jsonl, and the same numbers for TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siman_jax.errors import UsageError
from siman_jax.output import write_whole
from siman_jax.runs.events import Events
from siman_jax.training.metrics import METRICS

FILE_NAME = "log.jsonl"
# The numbers in every epoch's row, beside the fractions of flipped bits.
_METRICS = tuple(f"{split}_{name}" for split in ("train", "test") for name in METRICS)
_NUMBERS = ("step", "epoch", *_METRICS)

_LARGEST = 1e40  # larger numbers do not fit float32

# For the "last" and the "best" epoch: "epoch", "loss", "top1" and "top5" (percent).
Results = dict[str, dict[str, float]]


class RunLog:
    """Writes rows to the log in `workdir`.

    Rows after `step`, which a killed run may have logged, are removed at the start.

    Args:
      workdir: the run's folder.
      step: step from which training continues.
      write: whether to write at all; only one process of a run should.
    """

    def __init__(self, workdir: Path, step: int, write: bool = True) -> None:
        self._events: Events | None = None
        if not write:
            return
        self._path = workdir / FILE_NAME
        kept = [value for value in _read_values(workdir) if not _is_beyond(value, step)]
        write_whole(self._path, "".join(json.dumps(value) + "\n" for value in kept).encode())
        self._events = Events(workdir / "events", step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Args:
          row: numbers, and mappings from names to numbers, of one epoch; `read_rows` needs "step",
            "epoch", the metrics of both splits, and "flips".

        Raises:
          UsageError: it cannot be written, for example because the disk is full.
        """
        if self._events is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UsageError(
                f"the log in {self._path.parent} cannot be written: {error}. Checkpoints are"
                " unchanged. Free some space or fix its permissions; then run the same command to"
                " continue from the latest."
            ) from error
        self._events.write(row)

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.close()


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's log, earliest first; incomplete rows and other lines are skipped."""
    return [value for value in _read_values(workdir) if _is_row(value)]


def _read_values(workdir: Path) -> list[Any]:
    """Read the lines of the log as JSON; lines that are not JSON are skipped."""
    path = workdir / FILE_NAME
    values = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):  # cut short by a kill, or damaged
            continue
    return values


def _is_row(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in _NUMBERS)
        and all(type(value[name]) is int and value[name] > 0 for name in ("step", "epoch"))
        and isinstance(value.get("flips"), dict)
        and all(map(_is_number, value["flips"].values()))
    )


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number of reasonable size."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _is_beyond(value: Any, step: int) -> bool:
    own = value.get("step") if isinstance(value, dict) else None
    return isinstance(own, int | float) and own > step


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row with the best test accuracy, the latest of equals."""
    return max(rows, key=lambda row: (row["test_top1"], row["epoch"]))


def last_and_best(rows: Sequence[dict[str, Any]]) -> Results:
    """Return the test metrics of the last and the best epoch; {} for an empty log."""
    if not rows:
        return {}
    return {
        name: {"epoch": row["epoch"], **{key: row[f"test_{key}"] for key in METRICS}}
        for name, row in (("last", rows[-1]), ("best", best_row(rows)))
    }
