"""Command line: classify images with a model file.

    python -m siman_jax.predict model.safetensors photo.jpg folder/ --top=3
    python -m siman_jax.predict digits/resnet20 digit.png
    python -m siman_jax.predict model.safetensors - --json < photo.jpg
    python -m siman_jax.predict model.safetensors --benchmark

The model is a file, or a trained model that comes with the package (`siman_jax.trained_models()`).
Arguments after it are image files, folders, or `-` for one encoded image on standard input.
A folder means all images in it and below (JPEG, PNG, BMP, GIF, PPM, TIFF and WebP, by their file
names). Images are prepared as in the network's evaluation. With --json each line is one object:
{"image": ..., "predictions": [{"class": 3, "name": "cat", "probability": 0.9}, ...]}, the most
probable first.

Exit status: 0 if all went well; 1 if some images could not be read, which standard error names; 2
for bad arguments or input.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from rich.table import Table

from siman_jax import load
from siman_jax.command import run
from siman_jax.cores import usable_cores
from siman_jax.data.dataset import DamagedImage
from siman_jax.data.image_files import list_images, read_pixels
from siman_jax.data.pixels import PixelRules
from siman_jax.errors import UsageError
from siman_jax.packed.latency import measure_apart
from siman_jax.packed.model import PackedModel
from siman_jax.paths import local_path
from siman_jax.terminal import say, shown, wide_console
from siman_jax.trained import find_trained

SOME_DAMAGED = 1

_TOP = flags.DEFINE_integer("top", 5, "Number of classes to print per image.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object per line instead of a table.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images to classify at once.", lower_bound=1)
_RESIZE = flags.DEFINE_bool(
    "resize",
    False,
    "Scale and crop images of other sizes, even if evaluation would refuse them.",
)
_EXIF_ORIENTATION = flags.DEFINE_bool(
    "exif_orientation",
    None,
    "Rotate images by their EXIF orientation; by default, as the model file says.",
)
_EXACT = flags.DEFINE_bool(
    "exact",
    False,
    "Choose every bit as evaluation does, so that predictions are the same; slower for networks"
    " that the native library would run as a whole.",
)
_BENCHMARK = flags.DEFINE_bool(
    "benchmark",
    False,
    "Print the time for one image on the CPU with one thread and with all, each measured in its own"
    " process.",
)


def main(argv: list[str]) -> None:
    """Run the command."""
    if len(argv) < 2:
        raise UsageError("name a model file, then images; see --help.")
    path, names = local_path(argv[1], "model"), argv[2:]
    if _BENCHMARK.value:
        if names:
            raise UsageError(f"--benchmark takes no images; leave out {names[0]!r}.")
        if _EXACT.value:
            raise UsageError("--benchmark measures only the default; leave out --exact.")
        if find_trained(path) is None and not path.is_file():
            raise UsageError(f"--benchmark reads the model several times; {path} is not a file.")
        load(path)  # reports errors in the file
        counts = sorted({1, len(usable_cores())})
        _print_latencies([measure_apart(str(path), count) for count in counts])
        return
    if not names:
        raise UsageError("name at least one image, a folder of images, or - for standard input.")
    files = list_images(names)
    model = load(path, exact=_EXACT.value)
    damaged = 0
    rules = rules_of(model, _EXIF_ORIENTATION.value)
    results = classify(model, files, rules, _BATCH_SIZE.value, _TOP.value, _RESIZE.value)
    table = Table("image", "class")
    table.add_column("probability (%)", justify="right")
    for file, outcome in results:
        if isinstance(outcome, DamagedImage):
            say(f"{shown(file)}: {shown(str(outcome))}")
            damaged += 1
        elif _JSON.value:
            print(json.dumps({"image": file, "predictions": outcome}), flush=True)
        else:
            _add_rows(table, file, outcome)
    if table.rows:
        wide_console().print(table)
    if damaged:
        say(f"{damaged} of {len(files)} images could not be classified")
        sys.exit(SOME_DAMAGED)


def rules_of(model: PackedModel, exif_orientation: bool | None) -> PixelRules:
    """Return the rules to decode files by the model's notes; `exif_orientation` overrides them."""
    notes = model.notes
    return PixelRules(
        channels=model.network.image_shape[2],
        background=notes.background,
        exif_orientation=(notes.exif_orientation if exif_orientation is None else exif_orientation),
    )


def classify(
    model: PackedModel,
    files: list[str],
    rules: PixelRules,
    batch_size: int,
    top: int,
    resize: bool,
) -> Iterator[tuple[str, list[dict[str, Any]] | DamagedImage]]:
    """Classify image files, a batch at a time.

    Args:
      model: the model.
      files: from `list_images`.
      rules: how to decode files.
      batch_size: images in a batch.
      top: number of classes per image.
      resize: scale and crop images of other sizes, even if the model's notes do not allow it.

    Yields:
      Each file with its `top` classes (`class`, `name` and `probability`, the most probable
      first), or with the error for a damaged image.
    """
    rows = min(batch_size, len(files))
    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        # All batches have the same size, so that the model is compiled only once.
        images = np.zeros((rows, *model.network.image_shape), np.uint8)
        damage: dict[int, DamagedImage] = {}
        for row, file in enumerate(chunk):
            try:
                images[row] = read_pixels(
                    file,
                    rules,
                    size=model.network.image_shape[0],
                    shorter_side=model.notes.shorter_side,
                    resize=resize or model.notes.resize,
                )
            except DamagedImage as error:
                damage[row] = error
        probabilities = model.predict(images).probabilities
        for row, file in enumerate(chunk):
            yield file, damage.get(row) or _best(model, probabilities[row], top)


def _best(model: PackedModel, probabilities: np.ndarray, top: int) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        {
            "class": int(index),
            "name": model.class_name(index),
            "probability": float(probabilities[index]),
        }
        for index in order
    ]


def _add_rows(table: Table, file: str, outcome: list[dict[str, Any]]) -> None:
    table.add_section()
    for rank, row in enumerate(outcome):
        name, percent = row["name"], f"{100 * row['probability']:.2f}"
        table.add_row("" if rank else shown(file), shown(name), percent)


def _print_latencies(rows: list[dict[str, float]]) -> None:
    if _JSON.value:
        for row in rows:
            print(json.dumps(row))
        return
    table = Table(title="one image on the CPU")
    for heading in ("threads", "median (ms)", "best (ms)", "calls"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (f"{row['median_ms']:.2f}", f"{row['best_ms']:.2f}", str(row["calls"]))
        table.add_row(str(row["threads"]), *numbers)
    wide_console().print(table)


if __name__ == "__main__":
    run(main)
