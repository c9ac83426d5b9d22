"""Collects all numbers of the report, for report.json."""

import json
from collections.abc import Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

from siman_jax.analysis.measures import EDGES, KernelMeasures, Measures
from siman_jax.analysis.theory import optimum
from siman_jax.report.contents import Mismatches
from siman_jax.report.groups import (
    Group,
    curve_over_seeds,
    has_bits,
    mean_flips,
    mean_of_layers,
    training_seconds,
)
from siman_jax.report.runs import LOGGED, Run, has_measures
from siman_jax.report.tables import DISTRIBUTIONS, KERNELS, RESULTS, at_the_end
from siman_jax.runs.log import best_row


def collect_numbers(
    groups: Sequence[Group], problems: Sequence[tuple[str, str]], mismatches: Mismatches
) -> dict[str, Any]:
    """Collect the numbers that figures and tables show, as JSON values.

    Args:
      groups: the runs.
      problems: labels of runs, each with what was left out and why.
      mismatches: gradient mismatches by the label of the run.
    """
    return {
        "theory": {name: optimum(shape)._asdict() for name, shape in DISTRIBUTIONS.items()},
        "histogram_edges": EDGES.tolist(),
        "groups": [_group(group) for group in groups],
        "runs": [
            _run(run, mismatches.get(run.label, [])) for group in groups for run in group.runs
        ],
        "left_out": [{"run": run, "problem": problem} for run, problem in problems],
    }


def _group(group: Group) -> dict[str, Any]:
    curves = {name: curve_over_seeds(group.runs, itemgetter(name)) for name in LOGGED}
    with_bits = [run for run in group.runs if has_bits(run)]
    measured = [run for run in group.runs if has_measures(run.rows)]
    curves["mean_flips_percent"] = curve_over_seeds(with_bits, mean_flips)
    for name in Measures._fields:
        value = partial(mean_of_layers, value=attrgetter(name))
        curves[f"mean_{name}"] = curve_over_seeds(measured, value)
    return {
        "label": group.label,
        "runs": [run.label for run in group.runs],
        "at_the_end": {
            column.name: at_the_end(runs, column)
            for columns, runs in ((RESULTS, group.runs), (KERNELS, measured))
            for column in columns
        },
        "curves": {name: curve._asdict() for name, curve in curves.items()},
    }


def _run(run: Run, mismatches: Sequence[Any]) -> dict[str, Any]:
    return {
        "label": run.label,
        "folder": str(run.workdir),
        "config": json.loads(run.config.to_json()),
        "last": run.rows[-1] if run.rows else None,
        "best": best_row(run.rows) if run.rows else None,
        "training_seconds": training_seconds(run),
        "log": run.rows,
        "checkpoints": [
            {
                "step": checkpoint.step,
                "epoch": checkpoint.epoch,
                "layers": [_layer(layer) for layer in checkpoint.layers],
            }
            for checkpoint in run.checkpoints
        ],
        "gradients": [mismatch._asdict() for mismatch in mismatches],
    }


def _layer(layer: KernelMeasures) -> dict[str, Any]:
    fits = {
        name: getattr(layer, name)._asdict() for name in ("laplacian", "gaussian", "generalised")
    }
    return layer._asdict() | fits
