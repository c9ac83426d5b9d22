"""Summarize a sweep: mean and standard deviation of accuracy over the seeds of each variant."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from siman_jax.runs.log import Results


def summarize_variant(
    fields: Mapping[str, Any], results: Mapping[int, Results], failures: Mapping[int, str]
) -> dict[str, Any]:
    """Summarize the seeds of a variant, for JSON.

    Args:
      fields: fields that the variant changes, with their values.
      results: results of the finished seeds.
      failures: reasons why other seeds failed.

    Returns:
      "fields", "seeds" and "failures" as given; and "last" and "best", the top-1 test accuracy in
      percent at the last and the best epoch, each with "mean", "std" (sample standard deviation)
      and "n". Without seeds the mean is None, with fewer than two the deviation.
    """
    return {
        "fields": dict(fields),
        **{
            epoch: mean_and_deviation([result[epoch]["top1"] for result in results.values()])
            for epoch in ("last", "best")
        },
        "seeds": {str(seed): result for seed, result in results.items()},
        "failures": {str(seed): text for seed, text in failures.items()},
    }


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Compute the mean, the sample standard deviation (n - 1) and the number of values.

    >>> mean_and_deviation([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951, 'n': 2}
    >>> mean_and_deviation([1.0])
    {'mean': 1.0, 'std': None, 'n': 1}
    """
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def summary_table(name: str, images: str, variants: Mapping[str, Mapping[str, Any]]) -> Table:
    """Make a table with a row for each variant, from results of `summarize_variant`."""
    table = Table(title=f"{name}: top-1 on {images} (%), mean ± standard deviation of seeds")
    table.add_column("variant")
    for heading in ("seeds", "last epoch", "best epoch"):
        table.add_column(heading, justify="right")
    for variant, row in variants.items():
        table.add_row(variant, str(row["last"]["n"]), _text(row["last"]), _text(row["best"]))
    return table


def _text(row: Mapping[str, float | None]) -> str:
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:.2f}" + ("" if row["std"] is None else f" ± {row['std']:.2f}")
