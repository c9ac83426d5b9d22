"""The report's tables: numbers as text."""

from collections.abc import Callable, Sequence

import numpy as np

from siman_jax.analysis.distributions import SHAPES
from siman_jax.analysis.measures import Layer, Measures
from siman_jax.analysis.theory import GAUSSIAN, LAPLACIAN, UNIFORM, optimum
from siman_jax.report.page import Table
from siman_jax.report.runs import Run
from siman_jax.report.seeds import (
    Group,
    mean_flips,
    mean_of_layers,
    spread,
    training_seconds,
)
from siman_jax.runlog import best_row

DISTRIBUTIONS = {"Laplacian": LAPLACIAN, "Gaussian": GAUSSIAN, "uniform": UNIFORM}

Number = Callable[[Run], float]

_RESULTS: tuple[tuple[str, str, Number], ...] = (
    ("last test\ntop-1 (%)", ".2f", lambda run: run.rows[-1]["test_top1"]),
    ("best test\ntop-1 (%)", ".2f", lambda run: best_row(run.rows)["test_top1"]),
    ("last train\ntop-1 (%)", ".2f", lambda run: run.rows[-1]["train_top1"]),
    ("last test\nloss", ".3f", lambda run: run.rows[-1]["test_loss"]),
    ("flips in the\nlast epoch (%)", ".2f", lambda run: mean_flips(run.rows[-1])),
    ("training\ntime", "time", training_seconds),
)


def results_table(groups: Sequence[Group]) -> Table:
    """Accuracy, flips and time of every run that has a log, and each group's mean and spread."""
    rows: list[list[str]] = []
    means = []
    for group in groups:
        runs = [run for run in group.runs if run.rows]
        for run in runs:
            best = best_row(run.rows)["epoch"]
            cells = [_format(number(run), form) for _, form, number in _RESULTS]
            epochs = f"{run.rows[-1]['epoch']} of {run.config.epochs}"
            rows.append([run.label, str(run.config.seed), epochs, str(best), *cells])
        if len(runs) > 1:
            means.append(len(rows))
            cells = [_mean([number(run) for run in runs], form) for _, form, number in _RESULTS]
            rows.append([f"mean of {len(runs)} ± deviation", "", "", "", *cells])
    return Table(
        "Results",
        "Best by test accuracy, the later epoch among equals. Deviations are standard ones over"
        " seeds, divided by n - 1. Flips are the mean of the layers' shares. The time is the"
        " logged epochs' training; evaluation is left out.",
        ["run", "seed", "epochs", "best\nepoch", *(heading for heading, _, _ in _RESULTS)],
        rows,
        means,
    )


_KERNELS: tuple[tuple[str, str, Callable[[Measures], float]], ...] = (
    ("fitted\nshape", ".2f", lambda layer: layer.fitted_shape),
    ("Gaussian over\nLaplacian (nats)", "+.4f", lambda x: x.gaussian_fit - x.laplacian_fit),
    ("best share\nof ones", ".3f", lambda layer: layer.best_share),
    ("its entropy\n(bits)", ".4f", lambda layer: layer.best_entropy),
    ("cosine\nthere", ".4f", lambda layer: layer.best_cosine),
    ("cosine at\nhalf-half", ".4f", lambda layer: layer.half_half_cosine),
    ("cosine of\nsign bits", ".4f", lambda layer: layer.sign_cosine),
)


def kernels_table(groups: Sequence[Group]) -> Table:
    """Measures at the end of the last epoch of each group's runs, whose logs all hold them."""
    rows = []
    for group in groups:
        cells = [
            _mean([mean_of_layers(run.rows[-1], number) for run in group.runs], form)
            for _, form, number in _KERNELS
        ]
        rows.append([group.label, str(len(group.runs)), *cells])
    return Table(
        "Kernels at the end",
        "Means over the binary layers; then mean and standard deviation over seeds. Above 0, the"
        " difference of log-likelihoods says that a Gaussian fits better than a Laplacian.",
        ["runs", "seeds", *(heading for heading, _, _ in _KERNELS)],
        rows,
    )


# Headings of what the bits of ideal weights and of a layer's weights reach.
_OF_BITS = (
    "best share\nof ones",
    "entropy\n(bits)",
    "cosine\nthere",
    "cosine at\nhalf-half",
    "cosine of\nsign bits",
)


def theory_table() -> Table:
    """The optimum for three distributions."""
    rows = []
    for name, shape in DISTRIBUTIONS.items():
        ideal = optimum(shape)
        rows.append([name, *(f"{number:.4f}" for number in ideal)])
    return Table(
        "Ideal weights",
        "Infinitely many weights of one distribution. For the Laplacian the best share is 1/e.",
        [
            "distribution",
            *_OF_BITS,
        ],
        rows,
    )


def layers_table(layers: Sequence[Layer]) -> Table:
    """Fits and bits of every layer of a checkpoint."""
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
        "Log-likelihoods are means over the weights, in nats; the larger fits better. Share and"
        " entropy are those that the angle-optimal rule would choose; cosines are means over"
        " filters.",
        [
            "layer",
            "weights",
            "fitted\nshape",
            "log-likelihood\nLaplacian",
            "\nGaussian",
            "generalised\nGaussian",
            *_OF_BITS,
        ],
        rows,
    )


def _format(value: float, form: str) -> str:
    return _duration(value) if form == "time" else format(value, form)


def _mean(values: Sequence[float], form: str) -> str:
    mean, deviation = float(np.mean(values)), spread(values)
    if form == "time":
        return f"{_duration(mean)} ± {_duration(deviation)}"
    return f"{mean:{form}} ± {deviation:{form.lstrip('+')}}"


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(59.2), _duration(90), _duration(7300)
    ('59 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _shape(shape: float) -> str:
    # The search ends a little inside its bounds.
    return f"≥ {SHAPES[1]:g}" if shape > 0.99 * SHAPES[1] else f"{shape:.2f}"
