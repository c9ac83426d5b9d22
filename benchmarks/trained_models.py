r"""Adds a run's network to the trained models of the package, and measures their accuracy again.

    python -m benchmarks.trained_models add runs/digits digits/resnet20 --commit=1ccc0bb \
        --test_set="scikit-learn's digits" --licence="CC BY 4.0" --hours="0.01 on 2 CPU cores" \
        --command="python -m siman_jax.main --config=configs/digits.py --workdir=runs/digits"
    python -m benchmarks.trained_models check digits/resnet20
    python -m benchmarks.trained_models check cifar10/resnet20 --root=FOLDER

`add` exports the last checkpoint, classifies all test images with the file, times one image, and
writes:

- siman_jax/trained/NAME.safetensors, the model file, and its row in the manifest beside it;
- results/trained/NAME/, the run's config and log, and card.json, the confusion matrix;
- tests/trained_logits/NAME.json, logits of generated images.

Nothing else should run meanwhile. `check` classifies all test images again, exactly as evaluation
does, and ends with status 1 if the accuracy is not the manifest's. `--root` is the folder of the
images, where the run's own is not at hand.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import siman_jax
from benchmarks.origin import describe
from benchmarks.twin_latency import measure_twin_apart
from siman_jax.data import load_dataset
from siman_jax.packed.latency import measure_apart
from siman_jax.packed.model import PackedModel
from siman_jax.runs.workdir import read_config
from siman_jax.trained import FOLDER, MANIFEST, TrainedModel

REPOSITORY = Path(__file__).parent.parent
KEPT = REPOSITORY / "results" / "trained"
THREADS = (1, 2)
GENERATED = 64
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_BATCH = 500


def main() -> None:
    """Run one of the two commands."""
    jax.config.update("jax_platforms", "cpu")
    args = parse_arguments()
    if args.what == "add":
        add(args)
    else:
        sys.exit(check(args))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("add")
    one.add_argument("workdir", type=Path)
    one.add_argument("name", help="such as cifar10/resnet20")
    for flag in ("test_set", "licence", "commit", "command", "hours"):
        one.add_argument(f"--{flag}", required=True)
    other = commands.add_parser("check")
    other.add_argument("names", nargs="*", help="all, if none is given")
    other.add_argument("--root", help="folder of the images, instead of config.data.root")
    return parser.parse_args()


def add(args: argparse.Namespace) -> None:
    """Export a run's network, measure it, and write what belongs to a trained model."""
    config = read_config(args.workdir)
    path = FOLDER / f"{args.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    export = [sys.executable, "-m", "siman_jax.export", str(args.workdir), f"--out={path}"]
    subprocess.run([*export, "--overwrite"], check=True)
    model = siman_jax.load(path, exact=True)
    confusion = confusion_matrix(model, config)
    milliseconds = {}
    for threads in THREADS:
        milliseconds[str(threads)] = measure_apart(str(path), threads)["median_ms"]
        milliseconds[f"twin, {threads}"] = measure_twin_apart(args.workdir, threads)["median_ms"]
    data = path.read_bytes()
    row = TrainedModel(
        name=args.name,
        network=config.model.name,
        epoch=int(model.notes.accuracy["epoch"]) if model.notes.accuracy else 0,
        top1=accuracy(confusion),
        test_set=args.test_set,
        images=int(confusion.sum()),
        licence=args.licence,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        milliseconds=milliseconds,
        machine=describe()["cpu"],
        config=config.to_dict(),
        command=args.command,
        commit=args.commit,
        versions={"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}},
        hours=args.hours,
    )
    rows = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
    rows = [other for other in rows if other["name"] != args.name] + [vars(row)]
    write_json(MANIFEST, sorted(rows, key=lambda other: other["name"]))
    kept = KEPT / args.name
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "log.jsonl"):
        shutil.copy(args.workdir / file, kept)
    write_json(kept / "card.json", {"confusion": confusion.tolist()})
    logits = np.asarray(model(generated_images(model)))
    recorded = REPOSITORY / "tests" / "trained_logits" / f"{args.name}.json"
    recorded.parent.mkdir(parents=True, exist_ok=True)
    write_json(recorded, np.round(logits.astype(float), 4).tolist())
    print(f"{row.name}: {row.top1:.2f} % of {row.images:,} images, {row.bytes:,} bytes")


def check(args: argparse.Namespace) -> int:
    """Measure accuracies again; return 0 if they are those of the manifest, else 1."""
    models = {model.name: model for model in siman_jax.trained_models()}
    differ = 0
    for name in args.names or models:
        row = models[name]
        config = read_config(KEPT / name).copy_and_resolve_references()
        if args.root:
            config.data.root = args.root
        found = accuracy(confusion_matrix(siman_jax.load(name, exact=True), config))
        differ += found != row.top1
        print(f"{name}: {found:.2f} %, in the manifest {row.top1:.2f} %")
    return int(differ > 0)


def confusion_matrix(model: PackedModel, config: ConfigDict) -> np.ndarray:
    """Count a run's test images: int64 `[true class, predicted class]`."""
    test = load_dataset(config.data).test
    counts = np.zeros((config.data.num_classes,) * 2, np.int64)
    for start in range(0, len(test), _BATCH):
        predicted = model.predict(test.images[start : start + _BATCH]).classes
        np.add.at(counts, (test.labels[start : start + _BATCH], predicted), 1)
    return counts


def accuracy(confusion: np.ndarray) -> float:
    """Return the top-1 accuracy in percent."""
    return 100 * float(np.trace(confusion)) / float(confusion.sum())


def generated_images(model: PackedModel) -> np.ndarray:
    """Return images of noise, uint8 `[64, height, width, channels]`, the same everywhere."""
    shape = (GENERATED, *model.network.image_shape)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, a row of a list a line."""
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
