"""The sections of the report: their text, figures and tables."""

import re
from collections.abc import Callable, Iterator, Sequence

from siman_jax.analysis.gradients import MOST_EXAMPLES, STEP, Mismatch
from siman_jax.data.defaults import evaluated_images
from siman_jax.report import figures, tables
from siman_jax.report.groups import Group, has_bits
from siman_jax.report.page import Picture, Section
from siman_jax.report.runs import Checkpoint, Run, has_measures
from siman_jax.report.series import Series, kernel_series

Mismatches = dict[str, list[Mismatch]]


def make_sections(groups: Sequence[Group], mismatches: Mismatches) -> list[Section]:
    """Build all sections of the page.

    Args:
      groups: the runs.
      mismatches: gradient mismatches by the label of the run; empty if not requested.
    """
    runs = [run for group in groups for run in group.runs]
    sections = [_training(groups)] if any(run.rows for run in runs) else []
    measured = _only(groups, lambda run: has_measures(run.rows))
    if measured:
        sections.append(_kernels(measured))
    sections.append(_theory(_only(groups, _has_layers)))
    shown = [run for run in runs if _has_layers(run)]
    for index, run in enumerate(shown):
        name = f"run{index + 1}-{_slug(run.label)}"
        sections.append(_layers(run, name, mismatches.get(run.label, []), collapsed=index > 0))
    return sections


def _has_layers(run: Run) -> bool:
    return bool(run.checkpoints and run.checkpoints[-1].layers)


def _only(groups: Sequence[Group], condition: Callable[[Run], bool]) -> list[Group]:
    """Keep only runs that meet the condition, and groups that still have runs."""
    kept = [group._replace(runs=[run for run in group.runs if condition(run)]) for group in groups]
    return [group for group in kept if group.runs]


def _training(groups: Sequence[Group]) -> Section:
    logged = _only(groups, lambda run: bool(run.rows))
    band = "The band is the mean over seeds plus and minus one standard deviation."
    sets = {evaluated_images(run.config.data) for group in groups for run in group.runs}
    images = sets.pop() if len(sets) == 1 else "the images on which each run was evaluated"
    augmented = "" if figures.are_many(logged) else ", dashed on the augmented training data"
    pictures = [
        Picture(
            "accuracy",
            figures.draw_curves(logged, "top1", "top-1 accuracy (%)"),
            "Accuracy",
            f"On {images}{augmented}. {band}",
        ),
        Picture(
            "loss",
            figures.draw_curves(logged, "loss", "loss"),
            "Loss",
            f"Mean cross-entropy on {images}{augmented}. {band} The axis ends at three times"
            " the largest training loss.",
        ),
    ]
    binary = _only(groups, has_bits)
    if binary:
        pictures.append(
            Picture(
                "flips",
                figures.draw_flips(binary),
                "Flipped bits",
                "Share of bits that changed in the last epoch, as a mean over layers; the axis is"
                " linear below 0.1 %. It falls with the learning rate, as bits settle.",
            )
        )
    return Section(
        "Training",
        "Runs that differ only in their seed are drawn as one.",
        tables=[tables.results_table(groups)],
        pictures=pictures,
    )


def _theory(groups: Sequence[Group]) -> Section:
    dots = " Dots are the layers of the first run of each config, at its last checkpoint."
    pictures = [
        Picture(
            "theory-cosine",
            figures.draw_theory(groups, figures.RULES),
            "Cosine to the weights",
            "Lines are ideal generalized Gaussians. Half-half is close to the optimum from the"
            " Laplacian to beyond the Gaussian; signs stay below both." + (dots if groups else ""),
        ),
        Picture(
            "theory-share",
            figures.draw_theory(
                groups,
                (
                    ("share", "best share of ones", figures.VIOLET),
                    ("entropy", "its entropy (bits)", figures.ROSE),
                ),
            ),
            "Share of ones, and entropy",
            "Both for the angle-optimal bits. A peaked distribution has few ones at the optimum,"
            " and so less entropy; half-half always has one bit." + (dots if groups else ""),
        ),
    ]
    return Section(
        "Theory",
        "SiMaN gives 1 to weights of large magnitude, so that the direction of the bits b is"
        " close to that of |w|. The best number of ones depends only on the distribution of the"
        " weights. The paper finds that weights trained with weight decay are roughly Laplacian;"
        " without decay they are not, and giving 1 to the larger half is nearly optimal. Dots away"
        " from their line are weights that no generalized Gaussian describes. Clipping magnitudes"
        " before every step produces such weights: none are left around zero, and two humps"
        " remain. The more equal the magnitudes are, the more ones the optimum has, up to all of"
        " them.",
        tables=[tables.theory_table()],
        pictures=pictures,
    )


def _layers(run: Run, name: str, mismatches: Sequence[Mismatch], *, collapsed: bool) -> Section:
    last = run.checkpoints[-1]
    pictures = [
        Picture(
            f"{name}-histograms",
            figures.draw_histograms(last.layers),
            "Weights",
            "Density of each layer's weights, standardized per filter, with the distributions of"
            " maximum likelihood. Spikes are weights that were clipped to a percentile of the"
            " layer.",
        ),
        Picture(
            f"{name}-cosines",
            figures.draw_cosines(last.layers),
            "Cosine to the weights",
            "Cosine of each rule for bits, as a mean over filters. Half-half loses the distance to"
            " the optimum: the cosines are 0.858 and 0.847 for an ideal Laplacian, 0.900 and 0.899"
            " for an ideal Gaussian. A dot in a ring means that signs, which correspond to all ones"
            " for |w|, are the optimum.",
        ),
        Picture(
            f"{name}-bits",
            figures.draw_bits(run),
            "Bits of the first filters",
            "Bits of the first binary layer by the run's own rule, ones in colour. With half-half,"
            " half of each column are ones.",
        ),
        *_over_epochs(run, name),
    ]
    if len(run.rows) > 1 and has_bits(run):
        pictures.append(
            Picture(
                f"{name}-flips",
                figures.draw_flips_by_layer(run),
                "Flipped bits by layer",
                "Share of each layer's bits that changed in the last epoch.",
            )
        )
    if mismatches:
        pictures.append(
            Picture(
                f"{name}-gradients",
                figures.draw_mismatch(mismatches),
                "Gradient mismatch",
                "Cosine between slopes predicted by the straight-through gradient and slopes of"
                " the loss measured along random directions in one layer at a time, over"
                f" {STEP:g} standard deviations of a filter's weights to either side, on at most"
                f" {MOST_EXAMPLES} test images. 1 is agreement; bars are one standard error, from"
                " the number of directions.",
            )
        )
    return Section(
        f"Layers of {run.label}",
        f"{run.config.model.name}, seed {run.config.seed}, {_moment(last)}.",
        pictures=pictures,
        details=[tables.layers_table(last.layers)],
        collapsed=collapsed,
    )


def _kernels(groups: Sequence[Group]) -> Section:
    return Section(
        "Kernels",
        "From the logs: the mean over binary layers at the end of each epoch, with its spread over"
        " seeds; and each layer's mean over seeds at the end of training.",
        tables=[tables.kernels_table(groups)],
        pictures=[picture for series in kernel_series() for picture in _of_series(groups, series)],
    )


def _of_series(groups: Sequence[Group], series: Series) -> Iterator[Picture]:
    name = f"kernels-{series.name}"
    yield Picture(name, figures.draw_kernels(groups, series), series.title, series.note)
    yield Picture(
        f"{name}-by-layer",
        figures.draw_kernels_by_layer(groups, series),
        f"{series.title} by layer",
        "At the end of training.",
    )


def _over_epochs(run: Run, name: str) -> Iterator[Picture]:
    """Draw measures over time, if there is more than one moment."""
    moments = run.moments()
    if len(moments) < 2:
        return
    source = "the end of each epoch" if has_measures(run.rows) else "each checkpoint"
    for series in kernel_series():
        yield Picture(
            f"{name}-{series.name}-over-epochs",
            figures.draw_over_epochs(run, series),
            f"{series.title} over time",
            f"At {source}: the mean over layers, and each layer in grey. {series.note}",
        )


def _moment(checkpoint: Checkpoint) -> str:
    if checkpoint.epoch is None:
        return f"after step {checkpoint.step}"
    return f"after epoch {checkpoint.epoch:g} (step {checkpoint.step})"


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()
