"""Command line: classify images by a model file.

    python -m siman_jax.predict model.safetensors photo.jpg folder/ --top=3
    python -m siman_jax.predict model.safetensors - --json < photo.jpg
    python -m siman_jax.predict model.safetensors --benchmark

An image is a file; a folder stands for all images in it and below (JPEG, PNG, BMP, GIF, PPM, TIFF
and WebP, by their names); `-` for one encoded image on standard input. Images are prepared as the
network's evaluation prepares them. With --json each line is one object: {"image": ...,
"predictions": [{"class": 3, "name": "cat", "probability": 0.9}, ...]}, most probable first.

Exit status: 0; 1, some images could not be read, which standard error names, and the others were
classified; 2, what was given cannot be used.
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
from siman_jax.data.dataset import DamagedImage
from siman_jax.data.image_files import list_images, read_pixels
from siman_jax.data.pixels import PixelRules
from siman_jax.errors import UsageError
from siman_jax.packed.latency import cores, measure_apart
from siman_jax.packed.model import PackedModel
from siman_jax.paths import local_path
from siman_jax.terminal import say, shown, wide_console

SOME_DAMAGED = 1

_TOP = flags.DEFINE_integer("top", 5, "Classes to print of each image.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object a line instead of a table.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images to classify at once.", lower_bound=1)
_RESIZE = flags.DEFINE_bool(
    "resize",
    False,
    "Scale and crop images of other sizes where evaluation would refuse them.",
)
_EXIF_ORIENTATION = flags.DEFINE_bool(
    "exif_orientation",
    None,
    "Turn images as their EXIF data say; by default, as the model file says.",
)
_EXACT = flags.DEFINE_bool(
    "exact",
    False,
    "Choose every bit as evaluation does, and so predict the same; more slowly, where the native"
    " kernel would run the whole network.",
)
_BENCHMARK = flags.DEFINE_bool(
    "benchmark",
    False,
    "Print the time for one image on the CPU, with one thread and with all, each measured in a"
    " process of its own.",
)


def main(argv: list[str]) -> None:
    """Do what the flags say."""
    if len(argv) < 2:
        raise UsageError("name a model file, then images; --help shows how.")
    path, names = local_path(argv[1], "model"), argv[2:]
    if _BENCHMARK.value:
        if names:
            raise UsageError(f"--benchmark takes no images; leave {names[0]!r} out.")
        if _EXACT.value:
            raise UsageError("--benchmark times the default; leave --exact out.")
        if not path.is_file():
            raise UsageError(f"--benchmark reads the model several times; {path} is not a file.")
        load(path)  # says what is wrong with the file, if anything is
        _print_latencies([measure_apart(str(path), count) for count in sorted({1, len(cores())})])
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
    """How files become pixels: as the model's notes say; the orientation as given, if it is."""
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
      model: what classifies them.
      files: as `list_images` gives them.
      rules: for what the files leave open.
      batch_size: images in a batch.
      top: classes to give of each.
      resize: scale and crop images of other sizes even where the model's notes do not say so.

    Yields:
      Each file, and its `top` classes with `class`, `name` and `probability`, most probable first,
      or what is wrong with it.
    """
    rows = min(batch_size, len(files))
    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        # Every batch has as many rows, so that one program serves all of them.
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
