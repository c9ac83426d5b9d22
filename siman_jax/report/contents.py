"""What the report says: its sections, with the figures and what theory expects of them."""

import re
from collections.abc import Callable, Iterator, Sequence

from siman_jax.analysis.gradients import MOST_EXAMPLES, STEP, Mismatch
from siman_jax.report import figures, tables
from siman_jax.report.page import Picture, Section
from siman_jax.report.runs import Checkpoint, Run, has_measures
from siman_jax.report.seeds import Group, has_bits
from siman_jax.report.series import Series, kernel_series

Mismatches = dict[str, list[Mismatch]]


def make_sections(groups: Sequence[Group], mismatches: Mismatches) -> list[Section]:
    """All sections of the page.

    Args:
      groups: the runs.
      mismatches: of gradients, by the label of the run; empty where none were asked for.
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
        sections.append(_layers(run, name, mismatches.get(run.label, []), folded=index > 0))
    return sections


def _has_layers(run: Run) -> bool:
    return bool(run.checkpoints and run.checkpoints[-1].layers)


def _only(groups: Sequence[Group], condition: Callable[[Run], bool]) -> list[Group]:
    """The groups without the runs that do not meet the condition; none are empty."""
    kept = [group._replace(runs=[run for run in group.runs if condition(run)]) for group in groups]
    return [group for group in kept if group.runs]


def _training(groups: Sequence[Group]) -> Section:
    logged = _only(groups, lambda run: bool(run.rows))
    band = "The band is one standard deviation over seeds to either side of their mean."
    augmented = "" if figures.are_many(logged) else ", and dashed on the augmented training data"
    pictures = [
        Picture(
            "accuracy",
            figures.draw_curves(logged, "top1", "top-1 accuracy (%)"),
            "Accuracy",
            f"On the test split{augmented}. {band}",
        ),
        Picture(
            "loss",
            figures.draw_curves(logged, "loss", "loss"),
            "Loss",
            f"Mean cross-entropy on the test split{augmented}. {band} What exceeds three times all"
            " of the training data's is beyond the frame.",
        ),
    ]
    binary = _only(groups, has_bits)
    if binary:
        pictures.append(
            Picture(
                "flips",
                figures.draw_flips(binary),
                "Flipped bits",
                "Share of bits that differ from an epoch before, the mean of the layers'; linear"
                " below 0.1 %. It falls with the learning rate: what no longer flips is decided.",
            )
        )
    return Section(
        "Training",
        "Runs that differ in nothing but their seed are drawn as one.",
        tables=[tables.results_table(groups)],
        pictures=pictures,
    )


def _theory(groups: Sequence[Group]) -> Section:
    dots = " Dots are the layers of each config's first run, at its last checkpoint."
    pictures = [
        Picture(
            "theory-cosine",
            figures.draw_theory(groups, figures.RULES),
            "Cosine to the weights",
            "Lines are ideal generalised Gaussians. Half-half comes close to the optimum from the"
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
            "Of the angle-optimal bits. Peaky weights are best served by few ones, which wastes"
            " entropy; half-half always has one bit." + (dots if groups else ""),
        ),
    ]
    return Section(
        "Theory",
        "SiMaN gives 1 to the weights of large magnitude, with bits b in the direction nearest to"
        " |w|. How many ones are best depends on the distribution of the weights alone. The paper"
        " finds weights that decay roughly Laplacian; without decay they move away from it, and"
        " giving 1 to the larger half becomes nearly optimal. Dots off their line mean weights that"
        " no generalised Gaussian describes. Clipping magnitudes before every step makes such"
        " weights: none are left around zero, two humps remain, and the more alike the magnitudes"
        " are, the more ones the optimum has, up to all of them.",
        tables=[tables.theory_table()],
        pictures=pictures,
    )


def _layers(run: Run, name: str, mismatches: Sequence[Mismatch], *, folded: bool) -> Section:
    last = run.checkpoints[-1]
    pictures = [
        Picture(
            f"{name}-histograms",
            figures.draw_histograms(last.layers),
            "Weights",
            "Density of each layer's weights, standardised filter by filter, with the"
            " distributions that fit best by maximum likelihood. Spikes are weights that were"
            " clipped to a percentile of the layer.",
        ),
        Picture(
            f"{name}-cosines",
            figures.draw_cosines(last.layers),
            "Cosine to the weights",
            "What each rule for the bits reaches, mean over filters. Half-half loses what lies"
            " between it and the optimum; an ideal Laplacian has 0.858 against 0.847, an ideal"
            " Gaussian 0.900 against 0.899. A dot in a ring: all ones are best there, as signs"
            " have them.",
        ),
        Picture(
            f"{name}-bits",
            figures.draw_bits(run),
            "Bits of the first filters",
            "Of the first binary layer by the run's own rule, ones in colour. Half-half makes half"
            " of each column ones.",
        ),
        *_over_epochs(run, name),
    ]
    if len(run.rows) > 1 and has_bits(run):
        pictures.append(
            Picture(
                f"{name}-flips",
                figures.draw_flips_by_layer(run),
                "Flipped bits by layer",
                "Share of each layer's bits that differ from an epoch before.",
            )
        )
    if mismatches:
        pictures.append(
            Picture(
                f"{name}-gradients",
                figures.draw_mismatch(mismatches),
                "Gradient mismatch",
                "Cosine between the slopes that the straight-through gradient predicts and those"
                " that the loss has over a distance, along random directions in one layer at a"
                f" time: {STEP:g} standard deviations of a filter's weights to either side, on"
                f" {MOST_EXAMPLES} test images at most. 1 is agreement; bars are one standard"
                " error, by the number of directions.",
            )
        )
    return Section(
        f"Layers of {run.label}",
        f"{run.config.model.name}, seed {run.config.seed}, {_moment(last)}.",
        pictures=pictures,
        details=[tables.layers_table(last.layers)],
        folded=folded,
    )


def _kernels(groups: Sequence[Group]) -> Section:
    return Section(
        "Kernels",
        "From the logs: at the end of each epoch the mean of the binary layers, and its spread over"
        " seeds; and at the end of the last each layer's mean over seeds.",
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
    """Measures over time, where there are several."""
    moments = run.moments()
    if len(moments) < 2:
        return
    source = "the end of each epoch" if has_measures(run.rows) else "the checkpoints that it kept"
    for series in kernel_series():
        yield Picture(
            f"{name}-{series.name}-over-epochs",
            figures.draw_over_epochs(run, series),
            f"{series.title} over time",
            f"At {source}: mean of the layers, each layer in grey. {series.note}",
        )


def _moment(checkpoint: Checkpoint) -> str:
    if checkpoint.epoch is None:
        return f"after step {checkpoint.step}"
    return f"after epoch {checkpoint.epoch:g} (step {checkpoint.step})"


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()
