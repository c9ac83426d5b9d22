"""Draw the learning curves of a run from its log."""

import io
import math
from pathlib import Path

from siman_jax.output import write_whole
from siman_jax.runs.log import best_row, read_rows


def draw_curves(workdir: Path) -> None:
    """Draw `workdir`/curves.png from the run's log, unless the log is empty.

    Raises:
      UsageError: the file cannot be written.
    """
    rows = read_rows(workdir)
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    accuracy, loss, flips = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 30 else ""
    for axes, key, unit in ((accuracy, "top1", "top-1 accuracy (%)"), (loss, "loss", "loss")):
        for split, style in (("train", "--"), ("test", "-")):
            values = [row[f"{split}_{key}"] for row in rows]
            axes.plot(epochs, values, style, marker=marker, markersize=3, label=split)
        axes.set_ylabel(unit)
    accuracy.legend(loc="lower right")
    best = best_row(rows)
    accuracy.set_title(
        f"test: last {rows[-1]['test_top1']:.2f} %, best {best['test_top1']:.2f} % "
        f"(epoch {best['epoch']})",
        fontsize=10,
    )
    if any(row["flips"] for row in rows):
        layers = [list(row["flips"].values()) or [math.nan] for row in rows]
        flips.plot(epochs, [100 * max(shares) for shares in layers], label="largest layer")
        flips.plot(epochs, [100 * sum(s) / len(s) for s in layers], label="mean of layers")
        flips.plot(epochs, [100 * min(shares) for shares in layers], label="smallest layer")
        flips.set_yscale("symlog", linthresh=0.1)
        flips.legend()
    flips.set_ylabel("bits flipped in an epoch (%)")
    for axes in (accuracy, loss, flips):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(workdir / "curves.png", picture.getvalue())
