"""Draws a card for each trained model of the package, from the manifest and results/trained/.

    python -m benchmarks.trained_cards FOLDER

FOLDER gets cards.md and a figure for each model: accuracy by epoch, the confusion matrix, the
accuracy of each class, and bits of the first binary kernel. The site is built with it.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import siman_jax
from siman_jax.packed.model import PackedModel
from siman_jax.program.kernels import unpack_kernel
from siman_jax.program.operations import BinaryConv
from siman_jax.trained import TrainedModel

RESULTS = Path(__file__).parent.parent / "results" / "trained"
FILTERS = 16  # of a card: rows of its picture of bits, and input channels, its columns
BLUE, ORANGE = "#3949ab", "#f2a33c"


def main() -> None:
    """Write the cards."""
    (folder,) = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    cards = [write_card(model, folder) for model in siman_jax.trained_models()]
    (folder / "cards.md").write_text("\n\n".join(cards) + "\n")


def write_card(model: TrainedModel, folder: Path) -> str:
    """Draw a model's figure, and return its card as Markdown."""
    figure = f"{model.name.replace('/', '_')}.png"
    draw(model).savefig(folder / figure, dpi=110)
    times = model.milliseconds
    against = [
        f"{times[n]:.2f} ms, its real-valued twin in JAX {times[f'twin, {n}']:.2f} ms"
        for n in ("1", "2")
    ]
    versions = ", ".join(f"{name} {version}" for name, version in model.versions.items())
    rows = {
        "network": model.network,
        "accuracy": f"{model.top1:.2f} % of {model.images:,} images of {model.test_set},"
        f" after epoch {model.epoch}, the last",
        "size of the file": f"{model.bytes:,} bytes",
        "one image, 1 thread": against[0],
        "one image, 2 threads": against[1],
        "measured on": model.machine,
        "licence of the data": model.licence,
        "trained by": f"`{model.command}`, seed {model.config['seed']}, commit {model.commit}",
        "versions": versions,
        "hours": model.hours,
        "SHA-256": f"`{model.sha256}`",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    alt = (
        f"Accuracy of {model.name} by epoch, its confusion matrix, accuracy by class, and bits of"
        " its first filters"
    )
    return f"## {model.name}\n\n| | |\n|---|---|\n{table}\n\n![{alt}]({figure})"


def draw(model: TrainedModel) -> Figure:
    """Draw the figure of a card."""
    folder = RESULTS / model.name
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    confusion = np.array(json.loads((folder / "card.json").read_text())["confusion"])
    packed = siman_jax.load(model.name)
    names = [packed.class_name(index) for index in range(len(confusion))]
    figure = Figure(figsize=(11, 8), layout="constrained")
    (curve, matrix), (bars, bits) = figure.subplots(2, 2)

    epochs = [row["epoch"] for row in log]
    curve.plot(epochs, [row["train_top1"] for row in log], color=ORANGE, label="training")
    curve.plot(epochs, [row["test_top1"] for row in log], color=BLUE, label="test")
    curve.set(xlabel="epoch", ylabel="top-1 accuracy (%)", title="Accuracy by epoch")
    curve.grid(alpha=0.3)
    curve.legend()

    draw_confusion(matrix, confusion, names)

    accuracies = 100 * confusion.diagonal() / confusion.sum(axis=1)
    bars.bar(names, accuracies, color=BLUE)
    bars.set(ylim=(min(90.0, accuracies.min() - 5), 100), ylabel="accuracy (%)")
    bars.set_title("Accuracy by class")
    bars.tick_params(axis="x", rotation=45 if max(map(len, names)) > 2 else 0)

    draw_bits(bits, packed)
    return figure


def draw_confusion(axes: Axes, confusion: np.ndarray, names: list[str]) -> None:
    """Draw the counts of true and predicted classes; right ones are left white."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=int))
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, wrong.max() * 1.5))
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")


def draw_bits(axes: Axes, packed: PackedModel) -> None:
    """Draw the first binary kernel: a row for each filter, in it the bits of each channel."""
    operations = packed.network.program.operations
    place = next(i for i, one in enumerate(operations) if isinstance(one, BinaryConv))
    channels = packed.network.program.shapes()[operations[place].inputs[0]][2]
    bits = np.asarray(unpack_kernel(operations[place].words, channels))
    height, width, channels, filters = bits.shape
    rows, columns = min(filters, FILTERS), min(channels, FILTERS)
    tiles = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + 1), column * (width + 1)
            tiles[top : top + height, left : left + width] = bits[:, :, column, row]
    axes.imshow(tiles, cmap=mpl.colors.ListedColormap([ORANGE, BLUE]))
    axes.set(xticks=[], yticks=[], xlabel="input channel", ylabel="filter")
    axes.set_title("Bits of the first filters: blue 1, orange 0")


if __name__ == "__main__":
    main()
