"""The report's figures. Each function returns one matplotlib figure, 5 inches wide.

Colours have medium lightness, so that they are legible on white and on near-black. Text and axes
have the colour `INK`, which a page can replace by its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from siman_jax.analysis.distributions import SHAPES, density
from siman_jax.analysis.gradients import Mismatch
from siman_jax.analysis.measures import EDGES, KernelMeasures, Measures, binary_kernels
from siman_jax.analysis.theory import GAUSSIAN, LAPLACIAN, optimum
from siman_jax.report.groups import (
    Curve,
    Group,
    curve_over_seeds,
    furthest,
    mean_flips,
    mean_of_layers,
)
from siman_jax.report.runs import Run, layers_of_row
from siman_jax.report.series import Series
from siman_jax.runs.snapshot import read_bits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#1b1c1e"
BLUE, ORANGE, GREEN, ROSE, VIOLET, GREY = (
    *("#3d85c6", "#d97f26", "#3d9e68", "#c9547f", "#8d70c9", "#7d8792"),
)
CYCLE = (BLUE, ORANGE, GREEN, ROSE, VIOLET, GREY)

# The three rules for bits, with the label and colour that all figures use.
RULES = (
    ("cosine", "angle-optimal", GREEN),
    ("half_half_cosine", "half-half", BLUE),
    ("sign_cosine", "sign", ORANGE),
)
FAMILIES = (
    ("laplacian", "Laplacian", ORANGE),
    ("gaussian", "Gaussian", BLUE),
    ("generalised", "generalized Gaussian", GREEN),
)

_WIDTH, _HEIGHT = 5.0, 3.2
_COLUMNS = 3
_SHAPES = np.geomspace(0.5, SHAPES[1], 80)
_FILTERS = _CHANNELS = 16
_MANY_EPOCHS = 30
_FEW_LABELS = 4
_FAR_ABOVE = 3
_MANY_GROUPS = 8
_MARKERS = "os^Dv"


def draw_curves(groups: Sequence[Group], key: str, unit: str) -> "Figure":
    """Draw a metric on training and test data over epochs, mean and spread over seeds.

    With many groups only the test split is drawn. Values far above all those on the training data,
    such as an exploding loss, are cut off.

    Args:
      groups: the runs.
      key: "top1" or "loss".
      unit: label of the axis.
    """
    with _axes() as (figure, axes):
        highest = 0.0
        for group in groups:
            train = curve_over_seeds(group.runs, lambda row: row[f"train_{key}"])
            test = curve_over_seeds(group.runs, lambda row: row[f"test_{key}"])
            highest = max(highest, *train.mean)
            if not are_many(groups):
                _draw_curve(axes, train, group, None)
            _draw_curve(axes, test, group, group.label)
        if axes.get_ylim()[1] > _FAR_ABOVE * highest:
            axes.set_ylim(0, _FAR_ABOVE * highest)
        axes.set_ylabel(unit)
        if not are_many(groups):
            axes.plot([], [], "--", color=GREY, label="training data")
        _finish_epochs(axes)
    return figure


def are_many(groups: Sequence[Group]) -> bool:
    """Tell whether there are too many groups to draw two curves of each in one figure."""
    return len(groups) > _MANY_GROUPS


def draw_flips(groups: Sequence[Group]) -> "Figure":
    """Draw the share of bits that flipped in each epoch, as a mean over layers, over seeds.

    Args:
      groups: of runs that have bits.
    """
    with _axes() as (figure, axes):
        for group in groups:
            _draw_curve(axes, curve_over_seeds(group.runs, mean_flips), group, group.label)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("bits flipped (%)")
        _finish_epochs(axes)
    return figure


def draw_flips_by_layer(run: Run) -> "Figure":
    """Draw the share of bits that flipped, as a map of layers and epochs."""
    names = list(run.rows[-1]["flips"])
    flips = {row["epoch"]: row["flips"] for row in run.rows}
    first, last = run.rows[0]["epoch"], run.rows[-1]["epoch"]
    shares = np.array(
        [[100 * flips.get(e, {}).get(n, np.nan) for e in range(first, last + 1)] for n in names]
    )
    with _axes() as (figure, axes):
        image = axes.imshow(
            np.log10(np.maximum(shares, 0.01)),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
        )
        bar = figure.colorbar(image, ax=axes)
        low, high = image.get_clim()
        ticks = {-2: "≤ 0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}
        ticks = {level: label for level, label in ticks.items() if low <= level <= high}
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
        bar.set_label("bits flipped (%)")
        bar.outline.set_visible(False)
        axes.set_yticks(range(len(names)), names, fontsize=6.5)
        axes.set_xlabel("epoch")
        axes.grid(False)
    return figure


def draw_theory(groups: Sequence[Group], values: Sequence[tuple[str, str, str]]) -> "Figure":
    """Draw numbers of ideal generalized Gaussians as lines, and those of layers as dots.

    Args:
      groups: dots are drawn for the last checkpoint of the first run of each.
      values: attributes that `Optimum` and `KernelMeasures` share, each with label and colour.
    """
    ideals = [optimum(shape) for shape in _SHAPES]
    with _axes() as (figure, axes):
        for name, label, colour in values:
            line = [getattr(ideal, name) for ideal in ideals]
            axes.plot(_SHAPES, line, color=colour, label=label)
        for group in groups:
            layers, marker = _last_layers(group.runs[0]), _MARKERS[group.number % len(_MARKERS)]
            for name, _, colour in values:
                axes.plot(
                    [np.clip(layer.generalised.shape, *_SHAPES[[0, -1]]) for layer in layers],
                    [getattr(layer, name) for layer in layers],
                    marker,
                    color=colour,
                    markersize=4,
                    alpha=0.65,
                    markeredgewidth=0,
                )
            if layers and len(groups) > 1:
                axes.plot([], [], marker, color=GREY, markersize=4, label=_plain(group.label))
        _label_shapes(axes)
        _legend(axes)
    return figure


def draw_histograms(layers: Sequence[KernelMeasures]) -> "Figure":
    """Draw histograms of each layer's standardized weights with the three fitted densities."""
    rows = -(-len(layers) // _COLUMNS)
    x = np.linspace(EDGES[0], EDGES[-1], 121)
    with _figure(_WIDTH, 1.15 * rows + 0.55) as figure:
        panels = np.ravel(figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False))
        for axes, layer in zip(panels, layers, strict=False):
            heights = np.array(layer.counts) / (layer.weights * np.diff(EDGES))
            axes.stairs(heights, EDGES, fill=True, color=GREY, alpha=0.45)
            for name, label, colour in FAMILIES:
                fit = getattr(layer, name)
                axes.plot(x, density(fit, x), color=colour, linewidth=1, label=label)
            axes.set_title(layer.name, fontsize=7, pad=2)
            axes.tick_params(labelsize=6.5)
        highest = max(max(layer.counts) / layer.weights for layer in layers)
        panels[0].set_ylim(0, 1.25 * highest / (EDGES[1] - EDGES[0]))
        for axes in panels[len(layers) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(FAMILIES))
    return figure


def draw_cosines(layers: Sequence[KernelMeasures]) -> "Figure":
    """Draw the cosine of each rule for bits in each layer."""
    with _axes(height=_height_of_rows(len(layers))) as (figure, axes):
        positions = range(len(layers))
        for name, label, colour in RULES:
            values = [getattr(layer, name) for layer in layers]
            # A ring, since the optimum may coincide with the dot of signs.
            size, face = (7, "none") if name == "cosine" else (4, colour)
            axes.plot(values, positions, "o", c=colour, mfc=face, markersize=size, label=label)
            for shape, style in ((LAPLACIAN, ":"), (GAUSSIAN, "--")):
                ideal = getattr(optimum(shape), name)
                axes.axvline(ideal, color=colour, linestyle=style, linewidth=0.8, zorder=0)
        axes.plot([], [], ":", color=GREY, linewidth=0.8, label="ideal Laplacian")
        axes.plot([], [], "--", color=GREY, linewidth=0.8, label="ideal Gaussian")
        _name_rows(axes, [layer.name for layer in layers])
        axes.set_xlabel("cosine to the weights")
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_over_epochs(run: Run, series: Series) -> "Figure":
    """Draw a measure of a run's kernels over time: the mean over layers, and each layer thin."""
    with _axes() as (figure, axes):
        moments = run.moments()
        times = [moment.time for moment in moments]
        values = np.array([[series.value(layer) for layer in moment.layers] for moment in moments])
        marker = "o" if len(times) < _MANY_EPOCHS else ""
        axes.plot(times, values, color=GREY, linewidth=0.7, alpha=0.5)
        axes.plot(times, values.mean(1), marker=marker, markersize=3.5, color=GREEN)
        _finish_series(axes, series)
        _finish_epochs(axes)
        if not run.rows:
            axes.set_xlabel("step")
    return figure


def draw_kernels(groups: Sequence[Group], series: Series) -> "Figure":
    """Draw a measure of kernels over epochs, as a mean over layers, over seeds.

    Args:
      groups: runs whose logs have measures.
      series: the measure to draw.
    """
    with _axes() as (figure, axes):
        for group in groups:
            curve = curve_over_seeds(group.runs, lambda row: mean_of_layers(row, series.value))
            _draw_curve(axes, curve, group, group.label)
        _finish_series(axes, series)
        _finish_epochs(axes)
    return figure


def draw_kernels_by_layer(groups: Sequence[Group], series: Series) -> "Figure":
    """Draw a measure of kernels per layer at the end, the mean over the seeds that got furthest.

    Args:
      groups: runs whose logs have measures.
      series: the measure to draw.
    """
    ends = [[run.rows[-1] for run in furthest(group.runs)] for group in groups]
    # Networks may differ; layers are listed in order of first appearance.
    names = list(dict.fromkeys(name for rows in ends for name in rows[0][Measures._fields[0]]))
    with _axes(height=_height_of_rows(len(names))) as (figure, axes):
        for group, rows in zip(groups, ends, strict=True):
            values = np.mean([[series.value(layer) for layer in layers_of_row(r)] for r in rows], 0)
            colour, marker = _look(group)
            axes.plot(
                values,
                [names.index(name) for name in rows[0][Measures._fields[0]]],
                marker,
                color=colour,
                markersize=4,
                alpha=0.75,
                markeredgewidth=0,
                label=_plain(group.label),
            )
        _draw_references(axes.axvline, series)
        axes.set_xscale(series.scale)
        _name_numbers(axes.xaxis, series.scale)
        axes.set_xlabel(series.unit)
        _name_rows(axes, names)
        _legend_below(axes)
    return figure


def draw_bits(run: Run) -> "Figure":
    """Draw bits of the first binary layer, with a column per filter and a row per channel."""
    assert run.state is not None
    name, _ = next(binary_kernels(run.state.params))
    bits = np.asarray(read_bits(run.state, run.config.model.weight_rule)[name])
    # Treat a dense layer's kernel as one pixel high and wide.
    tiles = bits.reshape(*((1, 1) if bits.ndim == 2 else ()), *bits.shape)
    tiles = tiles[:, :, :_CHANNELS, :_FILTERS]
    with _figure(_WIDTH, _WIDTH * tiles.shape[2] / tiles.shape[3] + 0.4) as figure:
        axes = figure.subplots()
        axes.imshow(_mosaic(tiles), interpolation="nearest")
        height, width = tiles.shape[0] + 1, tiles.shape[1] + 1
        axes.set_xticks([width * f + (width - 2) / 2 for f in range(tiles.shape[3])])
        axes.set_yticks([height * c + (height - 2) / 2 for c in range(tiles.shape[2])])
        axes.set_xticklabels(map(str, range(tiles.shape[3])), fontsize=7)
        axes.set_yticklabels(map(str, range(tiles.shape[2])), fontsize=7)
        axes.tick_params(length=0)
        axes.set_xlabel(f"filter of {name}")
        axes.set_ylabel("input channel")
        axes.spines[:].set_visible(False)
        axes.grid(False)
    return figure


def draw_mismatch(mismatches: Sequence[Mismatch]) -> "Figure":
    """Draw the cosine of the straight-through and the smoothed gradient with its standard error."""
    with _axes(height=_height_of_rows(len(mismatches))) as (figure, axes):
        axes.errorbar(
            [mismatch.cosine for mismatch in mismatches],
            range(len(mismatches)),
            xerr=[mismatch.standard_error for mismatch in mismatches],
            fmt="o",
            color=VIOLET,
            markersize=4,
            elinewidth=1,
        )
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlim(-1.02, 1.02)
        _name_rows(axes, [mismatch.name for mismatch in mismatches])
        axes.set_xlabel("cosine of predicted and measured slopes")
    return figure


@contextmanager
def _figure(width: float, height: float) -> Iterator["Figure"]:
    """Create a figure; the report's style applies inside of the context."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        **{"axes.edgecolor": INK, "axes.labelcolor": INK},
        **{"font.size": 8.5, "axes.linewidth": 0.6, "lines.linewidth": 1.5},
        **{f"axes.spines.{side}": False for side in ("top", "right")},
        **{"axes.grid": True, "grid.color": GREY, "grid.alpha": 0.25, "grid.linewidth": 0.6},
        **{"legend.frameon": False, "legend.fontsize": 7.5, "axes.axisbelow": True},
        **{f"{axis}tick.major.width": 0.6 for axis in "xy"},
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # lay it out once instead of for every file


@contextmanager
def _axes(height: float = _HEIGHT) -> Iterator[tuple["Figure", "Axes"]]:
    with _figure(_WIDTH, height) as figure:
        yield figure, figure.subplots()


def _draw_curve(axes: "Axes", curve: Curve, group: Group, label: str | None) -> None:
    """Draw the curve of a group, solid with a label and dashed without."""
    mean, spread = np.array(curve.mean), np.array(curve.spread, float)  # None becomes NaN
    colour, marker = _look(group)
    axes.plot(
        curve.epochs,
        mean,
        "-" if label else "--",
        color=colour,
        marker=marker if label and len(mean) < _MANY_EPOCHS else "",
        markersize=3.5,
        label=_plain(label) if label else None,
    )
    axes.fill_between(
        curve.epochs, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0
    )


def _look(group: Group) -> tuple[str, str]:
    """Return colour and marker of a group; repeated colours get other markers."""
    rounds, colour = divmod(group.number, len(CYCLE))
    return CYCLE[colour], _MARKERS[rounds % len(_MARKERS)]


def _plain(label: str) -> str:
    """Escape a label so that matplotlib shows it literally: no formula, and not hidden."""
    return label.replace("$", r"\$").replace("_", " _", int(label.startswith("_")))


def _finish_epochs(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)


def _finish_series(axes: "Axes", series: Series) -> None:
    _draw_references(axes.axhline, series)
    axes.set_yscale(series.scale)
    _name_numbers(axes.yaxis, series.scale)
    axes.set_ylabel(series.unit)


def _draw_references(draw_line: Callable[..., Any], series: Series) -> None:
    for (label, level), colour in zip(series.references.items(), (ORANGE, BLUE), strict=False):
        draw_line(level, color=colour, linestyle=":", linewidth=1, label=label)


def _name_numbers(axis: "Axis", scale: str) -> None:
    if scale == "log":  # 2 rather than 2 x 10^0
        from matplotlib.ticker import LogFormatter

        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())


def _legend(axes: "Axes") -> None:
    """Draw the legend: in the plot if there are few labels, otherwise below it."""
    _, labels = axes.get_legend_handles_labels()
    if len(labels) <= _FEW_LABELS:
        axes.legend()
    else:
        _legend_below(axes)


def _legend_below(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure: Any = axes.figure
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(labels) / _COLUMNS))
    figure.legend(handles, labels, loc="outside lower center", ncols=_COLUMNS)


def _mosaic(tiles: np.ndarray) -> np.ndarray:
    """Arrange bits `[height, width, in, out]` in one RGBA picture with gaps, ones in colour."""
    from matplotlib.colors import to_rgba

    height, width, channels, filters = tiles.shape
    picture = np.zeros((channels, height + 1, filters, width + 1, 4))
    one, zero = to_rgba(BLUE), to_rgba(GREY, 0.25)
    picture[:, :height, :, :width] = np.where(tiles.transpose(2, 0, 3, 1)[..., None], one, zero)
    return picture.reshape(channels * (height + 1), filters * (width + 1), 4)[:-1, :-1]


def _last_layers(run: Run) -> list[KernelMeasures]:
    return run.checkpoints[-1].layers if run.checkpoints else []


def _height_of_rows(count: int) -> float:
    return 0.95 + 0.17 * max(count, 5)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _label_shapes(axes: "Axes") -> None:
    axes.set_xscale("log")
    ticks = {0.5: "0.5", LAPLACIAN: "1\nLaplacian", GAUSSIAN: "2\nGaussian", 5.0: "5", 15.0: "15"}
    ticks |= {SHAPES[1]: f"{SHAPES[1]:g}\nas uniform"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlabel("shape of the generalized Gaussian")
