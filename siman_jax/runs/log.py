"""A run's log: one JSON object a line in log.jsonl, and the same numbers for TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siman_jax.errors import UsageError
from siman_jax.output import write_whole
from siman_jax.runs.events import Events
from siman_jax.training.metrics import METRICS

FILE_NAME = "log.jsonl"
# What every epoch's row holds, beside the shares of bits that flipped.
_METRICS = tuple(f"{split}_{name}" for split in ("train", "test") for name in METRICS)
_NUMBERS = ("step", "epoch", *_METRICS)

_LARGEST = 1e40  # numbers beyond are no float32

# Of the "last" and the "best" epoch: "epoch", "loss", "top1" and "top5" (percent).
Results = dict[str, dict[str, float]]


class RunLog:
    """Writes rows to `workdir`; what a killed run logged after `step` is taken back.

    Args:
      workdir: the run's folder.
      step: the step that training continues from; rows beyond it will be written again.
      write: whether to write at all; of several processes, one does.
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
        """Append a row of numbers, and of mappings of names to numbers.

        Args:
          row: of one epoch; `read_rows` finds it if it holds "step", "epoch", metrics of both
            splits and "flips".

        Raises:
          UsageError: it cannot be written, for want of space for instance.
        """
        if self._events is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UsageError(
                f"the log in {self._path.parent} cannot be written: {error}. Checkpoints are as"
                " they were. Make room, or mend permissions; then the same command goes on from"
                " the latest."
            ) from error
        self._events.write(row)

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.close()


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Rows of a run's log, earliest first; what is cut short, or no epoch's row, is left out."""
    return [value for value in _read_values(workdir) if _is_row(value)]


def _read_values(workdir: Path) -> list[Any]:
    """What the log's lines hold; one that is no JSON is left out."""
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
    """Whether it is a number that can be computed with; NaN is not."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _is_beyond(value: Any, step: int) -> bool:
    own = value.get("step") if isinstance(value, dict) else None
    return isinstance(own, int | float) and own > step


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the best test accuracy, the latest among equals."""
    return max(rows, key=lambda row: (row["test_top1"], row["epoch"]))


def last_and_best(rows: Sequence[dict[str, Any]]) -> Results:
    """Test metrics of the last and of the best epoch; nothing of a log that is empty."""
    if not rows:
        return {}
    return {
        name: {"epoch": row["epoch"], **{key: row[f"test_{key}"] for key in METRICS}}
        for name, row in (("last", rows[-1]), ("best", best_row(rows)))
    }
