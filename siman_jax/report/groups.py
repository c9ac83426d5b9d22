"""Groups of runs that differ only in their seed, with means and deviations over them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from siman_jax.analysis.measures import Measures
from siman_jax.report.runs import Run, layers_of_row
from siman_jax.runs.sweep_summary import mean_and_deviation
from siman_jax.runs.workdir import fields_that_matter

_SEED, _ROOT = "config.seed", "config.data.root"
_MOST_JOINED = 3


class Group(NamedTuple):
    """Runs of one config, each with another seed.

    Attributes:
      label: the runs' labels, joined.
      runs: one or more, in the given order.
      number: number of the group, from 0, which decides its colour and marker in all figures.
    """

    label: str
    runs: list[Run]
    number: int


class Curve(NamedTuple):
    """A number over epochs.

    Attributes:
      epochs: all epochs that any of the runs reached.
      mean: over the runs that reached the epoch.
      spread: their standard deviation (divided by n - 1); None for a single run.
      runs: how many runs reached the epoch.
    """

    epochs: list[int]
    mean: list[float]
    spread: list[float | None]
    runs: list[int]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group the runs whose configs are equal except for the seed, in order of appearance.

    A run that repeats a seed, for example on another machine, is not an independent sample. It
    goes into a second group, with other repeated runs.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    seen: Counter[str] = Counter()
    for run in runs:
        # A run may resume after its data moved, but here two folders may hold different images.
        fields = {**fields_that_matter(run.config), _ROOT: run.config.data.get("root")}
        whole = repr(sorted(fields.items()))
        fields.pop(_SEED)
        groups.setdefault((repr(sorted(fields.items())), seen[whole]), []).append(run)
        seen[whole] += 1
    return [
        Group(_joined([run.label for run in members]), members, number)
        for number, members in enumerate(groups.values())
    ]


def _joined(labels: Sequence[str]) -> str:
    """Join several labels: to the folder they share, or to a list.

    >>> _joined(["a", "b"]), _joined(["a", "b", "c", "d"]), _joined(["a/seed0", "a/seed1"])
    ('a, b', 'a and 3 more', 'a')
    """
    parents = {label.rpartition("/")[0] for label in labels}
    if len(labels) > 1 and len(parents) == 1 and "" not in parents:
        return parents.pop()
    if len(labels) <= _MOST_JOINED:
        return ", ".join(labels)
    return f"{labels[0]} and {len(labels) - 1} more"


def curve_over_seeds(runs: Sequence[Run], value: Callable[[dict[str, Any]], float]) -> Curve:
    """Compute mean and spread of a number for each epoch.

    Args:
      runs: of one group; they may have reached different epochs.
      value: function from a row of a log to the number.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        for row in run.rows:
            values.setdefault(row["epoch"], []).append(value(row))
    epochs = sorted(values)
    sums = [mean_and_deviation(values[epoch]) for epoch in epochs]
    return Curve(
        epochs,
        [one["mean"] for one in sums],
        [one["std"] for one in sums],
        [one["n"] for one in sums],
    )


def furthest(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that reached the group's latest epoch, so that their ends are comparable."""
    epoch = max((run.rows[-1]["epoch"] for run in runs if run.rows), default=None)
    return [run for run in runs if run.rows and run.rows[-1]["epoch"] == epoch]


def has_bits(run: Run) -> bool:
    """Tell whether a run's log has flipped bits; a real-valued network has none."""
    return bool(run.rows) and all(row["flips"] for row in run.rows)


def mean_flips(row: dict[str, Any]) -> float:
    """Compute the share of bits that flipped in an epoch, in percent, as a mean over layers."""
    return 100 * float(np.mean(list(row["flips"].values())))


def mean_of_layers(row: dict[str, Any], value: Callable[[Measures], float]) -> float:
    """Compute a number of the kernels at the end of an epoch, as a mean over layers."""
    return float(np.mean([value(layer) for layer in layers_of_row(row)]))


def training_seconds(run: Run) -> float:
    """Compute the training time of a run's logged epochs in seconds, without evaluation."""
    steps = np.diff([0, *(row["step"] for row in run.rows)])
    speeds = np.array([row["images_per_second"] for row in run.rows])
    return float(np.sum(steps * run.config.batch_size / speeds)) if run.rows else 0.0
