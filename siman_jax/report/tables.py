"""The report's tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from siman_jax.analysis.distributions import SHAPES
from siman_jax.analysis.measures import KernelMeasures, Measures
from siman_jax.analysis.theory import GAUSSIAN, LAPLACIAN, UNIFORM, optimum
from siman_jax.report.groups import (
    Group,
    furthest,
    has_bits,
    mean_flips,
    mean_of_layers,
    training_seconds,
)
from siman_jax.report.page import Table
from siman_jax.report.runs import Run
from siman_jax.runs.log import best_row
from siman_jax.runs.sweep_summary import mean_and_deviation

DISTRIBUTIONS = {"Laplacian": LAPLACIAN, "Gaussian": GAUSSIAN, "uniform": UNIFORM}


class Column(NamedTuple):
    """A number of a run at its end.

    Attributes:
      name: its name in JSON.
      heading: its heading on the page.
      form: format to print it, or "time" for seconds.
      number: function from a run to the number, or None if it has none.
    """

    name: str
    heading: str
    form: str
    number: Callable[[Run], float | None]


def _of_kernels(name: str, heading: str, form: str, number: Callable[[Measures], float]) -> Column:
    """Build a column for the mean over layers, for runs whose log has measures."""
    return Column(name, heading, form, lambda run: mean_of_layers(run.rows[-1], number))


RESULTS = (
    Column("last_test_top1", "last test\ntop-1 (%)", ".2f", lambda run: run.rows[-1]["test_top1"]),
    Column(
        "best_test_top1",
        "best test\ntop-1 (%)",
        ".2f",
        lambda run: best_row(run.rows)["test_top1"],
    ),
    Column(
        "last_train_top1", "last train\ntop-1 (%)", ".2f", lambda run: run.rows[-1]["train_top1"]
    ),
    Column("last_test_loss", "last test\nloss", ".3f", lambda run: run.rows[-1]["test_loss"]),
    Column(
        "last_mean_flips_percent",
        "flips in the\nlast epoch (%)",
        ".2f",
        lambda run: mean_flips(run.rows[-1]) if has_bits(run) else None,
    ),
    Column("training_seconds", "training\ntime", "time", training_seconds),
)
KERNELS = (
    _of_kernels("fitted_shape", "fitted\nshape", ".2f", lambda layer: layer.fitted_shape),
    _of_kernels(
        "gaussian_over_laplacian",
        "Gaussian over\nLaplacian (nats)",
        "+.4f",
        lambda layer: layer.gaussian_fit - layer.laplacian_fit,
    ),
    _of_kernels("best_share", "best share\nof ones", ".3f", lambda layer: layer.best_share),
    _of_kernels("best_entropy", "its entropy\n(bits)", ".4f", lambda layer: layer.best_entropy),
    _of_kernels("best_cosine", "cosine\nthere", ".4f", lambda layer: layer.best_cosine),
    _of_kernels(
        "half_half_cosine", "cosine at\nhalf-half", ".4f", lambda layer: layer.half_half_cosine
    ),
    _of_kernels("sign_cosine", "cosine of\nsign bits", ".4f", lambda layer: layer.sign_cosine),
)


def at_the_end(runs: Sequence[Run], column: Column) -> dict[str, Any]:
    """Compute "mean", "std" and "n" of a number over the runs that got furthest and have it."""
    numbers = (column.number(run) for run in furthest(runs))
    return mean_and_deviation([number for number in numbers if number is not None])


def results_table(groups: Sequence[Group]) -> Table:
    """Build the table of accuracy, flips and time of every run with a log, and of each group."""
    rows: list[list[str]] = []
    means = []
    for group in groups:
        runs = [run for run in group.runs if run.rows]
        for run in runs:
            best = best_row(run.rows)["epoch"]
            cells = [_format(column.number(run), column.form) for column in RESULTS]
            epochs = f"{run.rows[-1]['epoch']} of {run.config.epochs}"
            rows.append([run.label, str(run.config.seed), epochs, str(best), *cells])
        count = len(furthest(runs))
        if count > 1:
            means.append(len(rows))
            cells = [_mean(at_the_end(runs, column), column.form) for column in RESULTS]
            rows.append([f"mean of {count} ± deviation", "", "", "", *cells])
    return Table(
        "Results",
        "The best epoch is that of the best test accuracy, the latest one if several are equal."
        " Means and standard deviations (divided by n - 1) are over the seeds that got furthest."
        " Flips are means over the layers. Time is that of training in the logged epochs, without"
        " evaluation.",
        ["run", "seed", "epochs", "best\nepoch", *(column.heading for column in RESULTS)],
        rows,
        means,
    )


def kernels_table(groups: Sequence[Group]) -> Table:
    """Build the table of measures after the last epoch of each group; all logs must have them."""
    rows = [
        [
            group.label,
            str(len(furthest(group.runs))),
            *(_mean(at_the_end(group.runs, column), column.form) for column in KERNELS),
        ]
        for group in groups
    ]
    return Table(
        "Kernels at the end",
        "Means over the binary layers, then mean and standard deviation over the seeds that got"
        " furthest. If the difference of log-likelihoods is above 0, a Gaussian fits better than a"
        " Laplacian.",
        ["runs", "seeds", *(column.heading for column in KERNELS)],
        rows,
    )


# Headings for the bits of ideal weights and of a layer's weights.
_OF_BITS = (
    "best share\nof ones",
    "entropy\n(bits)",
    "cosine\nthere",
    "cosine at\nhalf-half",
    "cosine of\nsign bits",
)


def theory_table() -> Table:
    """Build the table of the optimum for three distributions."""
    rows = []
    for name, shape in DISTRIBUTIONS.items():
        ideal = optimum(shape)
        rows.append([name, *(f"{number:.4f}" for number in ideal)])
    return Table(
        "Ideal weights",
        "For infinitely many weights of one distribution. For the Laplacian the best share is 1/e.",
        [
            "distribution",
            *_OF_BITS,
        ],
        rows,
    )


def layers_table(layers: Sequence[KernelMeasures]) -> Table:
    """Build the table of fits and bits of every layer of a checkpoint."""
    rows = [
        [
            layer.name,
            f"{layer.weights:,}",
            _shape(layer.generalised.shape),
            f"{layer.laplacian.log_likelihood:.4f}",
            f"{layer.gaussian.log_likelihood:.4f}",
            f"{layer.generalised.log_likelihood:.4f}",
            f"{layer.share:.3f}",
            f"{layer.entropy:.3f}",
            f"{layer.cosine:.4f}",
            f"{layer.half_half_cosine:.4f}",
            f"{layer.sign_cosine:.4f}",
        ]
        for layer in layers
    ]
    return Table(
        "Layers",
        "Log-likelihoods are means over the weights, in nats; larger is better. Share and entropy"
        " are those of the bits that the angle-optimal rule would choose. Cosines are means over"
        " filters.",
        [
            "layer",
            "weights",
            "fitted\nshape",
            "log-likelihood\nLaplacian",
            "\nGaussian",
            "generalized\nGaussian",
            *_OF_BITS,
        ],
        rows,
    )


def _format(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return _duration(value) if form == "time" else format(value, form)


def _mean(numbers: Mapping[str, Any], form: str) -> str:
    """Format mean and deviation, as far as they exist."""
    mean, deviation = _format(numbers["mean"], form), numbers["std"]
    return mean if deviation is None else f"{mean} ± {_format(deviation, form.lstrip('+'))}"


def _duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours.

    >>> _duration(59.2), _duration(90), _duration(7300)
    ('59 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _shape(shape: float) -> str:
    # The search ends a little inside its bounds.
    return f"≥ {SHAPES[1]:g}" if shape > 0.99 * SHAPES[1] else f"{shape:.2f}"
