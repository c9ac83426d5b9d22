"""Runs that differ in nothing but their seed, and what they have in common."""

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
      label: theirs; several are joined.
      runs: one or more, in the order they were named.
      number: of the group, from 0; colour and marker go by it in all figures.
    """

    label: str
    runs: list[Run]
    number: int


class Curve(NamedTuple):
    """A number over epochs.

    Attributes:
      epochs: those that any of the runs reached.
      mean: over the runs that reached the epoch.
      spread: their standard deviation, of n - 1 degrees of freedom; None where there is one.
      runs: how many they are.
    """

    epochs: list[int]
    mean: list[float]
    spread: list[float | None]
    runs: list[int]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put together the runs whose configs are equal but for the seed, in order of appearance.

    What repeats a seed, on another machine for instance, is no further sample: it is of another
    group, with whatever else repeats.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    seen: Counter[str] = Counter()
    for run in runs:
        # A run may go on in a folder that moved, but two folders may hold different images.
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
    """One label for several: the folder they share, or those of a few.

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
    """Mean and spread of a number, epoch by epoch.

    Args:
      runs: of one group; they may have reached different epochs.
      value: gives the number of a row of a log.
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
    """Those of a group's runs that reached its latest epoch, so that their ends compare."""
    epoch = max((run.rows[-1]["epoch"] for run in runs if run.rows), default=None)
    return [run for run in runs if run.rows and run.rows[-1]["epoch"] == epoch]


def has_bits(run: Run) -> bool:
    """Whether a run's log tells of bits that may flip; a real-valued network has none."""
    return bool(run.rows) and all(row["flips"] for row in run.rows)


def mean_flips(row: dict[str, Any]) -> float:
    """Share of bits that flipped in an epoch, in percent: the mean of the layers'."""
    return 100 * float(np.mean(list(row["flips"].values())))


def mean_of_layers(row: dict[str, Any], value: Callable[[Measures], float]) -> float:
    """A number of the kernels at the end of an epoch, the mean of the layers'."""
    return float(np.mean([value(layer) for layer in layers_of_row(row)]))


def training_seconds(run: Run) -> float:
    """Time that a run's logged epochs took to train; evaluation is left out."""
    steps = np.diff([0, *(row["step"] for row in run.rows)])
    speeds = np.array([row["images_per_second"] for row in run.rows])
    return float(np.sum(steps * run.config.batch_size / speeds)) if run.rows else 0.0
