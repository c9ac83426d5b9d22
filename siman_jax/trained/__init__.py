"""Trained models that are installed with the package, by name, such as "digits/resnet20".

`manifest.json` describes them; each is a model file in this folder. Nothing is ever downloaded.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siman_jax.errors import UsageError, choose

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"


@dataclass(frozen=True)
class TrainedModel:
    """A row of the manifest.

    Attributes:
      name: what `siman_jax.load` takes.
      network: a key of `siman_jax.MODELS`.
      epoch: the epoch whose weights the file holds.
      top1: accuracy in percent on all images of `test_set`, as the run's evaluation computes it.
      test_set: the images, in words.
      images: how many these are.
      licence: licence of the data that the network was trained on.
      bytes: size of the file.
      sha256: digest of the file, in hexadecimal digits.
      milliseconds: median time of one image in the native library on a CPU, by number of threads
        ("1", "2"), and that of the real-valued twin ("twin, 1", "twin, 2").
      machine: where that time was measured.
      config: the run's config.
      command: the command that trained it.
      commit: the commit at which it was trained.
      versions: of Python and libraries, in training.
      hours: how long training took, and on what.
    """

    name: str
    network: str
    epoch: int
    top1: float
    test_set: str
    images: int
    licence: str
    bytes: int
    sha256: str
    milliseconds: dict[str, float]
    machine: str
    config: dict[str, Any]
    command: str
    commit: str
    versions: dict[str, str]
    hours: str

    @property
    def path(self) -> Path:
        """The model file."""
        return FOLDER / f"{self.name}.safetensors"


class TrainedModels(tuple[TrainedModel, ...]):
    """Trained models; printed, they are a table."""

    def __repr__(self) -> str:
        """Draw the table: name, accuracy, size, time of one image, licence of the data."""
        head = ("name", "top-1 (%)", "test set", "kB", "ms, 1 thread", "licence of the data")
        rows = [head, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def trained_models() -> TrainedModels:
    """Return the models that are installed with the package, in the order of their names.

    >>> [model.name for model in trained_models()]
    ['digits/resnet20']

    Raises:
      UsageError: the list of models is missing or damaged.
    """
    try:
        rows = json.loads(MANIFEST.read_text(encoding="utf-8"))
        models = [TrainedModel(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{MANIFEST} is not a readable list of models: {error}. Install siman-jax again."
        ) from error
    return TrainedModels(sorted(models, key=lambda model: model.name))


def find_trained(source: str | Path) -> TrainedModel | None:
    """Return the trained model that `source` names; None if `source` is a file.

    Args:
      source: path of a file, which comes first, or name of a trained model.

    Raises:
      UsageError: there is neither, and the message lists the names; or it is an address.

    >>> find_trained("digits/resnet21")
    Traceback (most recent call last):
    siman_jax.errors.UsageError: there is no file digits/resnet21, ...
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(source)):
        raise UsageError(
            f"{source} is an address, and siman-jax downloads nothing. Fetch the file yourself, for"
            f" example by `curl -LO {source}`, and load it by its path; sha256=... then checks it."
        )
    if os.path.lexists(source):
        return None
    models = {model.name: model for model in trained_models()}
    name = Path(source).as_posix()
    if name in models:
        return models[name]
    try:
        return choose(models, name, "trained model")
    except UsageError as error:
        raise UsageError(f"there is no file {source}, and it is an {error}") from None


def _cells(model: TrainedModel) -> tuple[str, ...]:
    return (
        model.name,
        f"{model.top1:.2f}",
        f"{model.images:,} images of {model.test_set}",
        f"{model.bytes / 1e3:.0f}",
        f"{model.milliseconds['1']:.2f}",
        model.licence,
    )
