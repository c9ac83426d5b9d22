"""Notes in a model file: how to prepare images, class names, and the accuracy of the run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from siman_jax.errors import UsageError

_MOST_PIXELS = 16384


@dataclass(frozen=True)
class Notes:
    """Notes of a model file.

    Attributes:
      mean, std: of each channel, for pixels from 0 to 1.
      shorter_side: length to which evaluation scales an image's shorter side before it crops the
        centre; None if images are used whole.
      resize: if images are used whole: whether other sizes are scaled and cropped to fit, instead
        of refused.
      background: grey level behind transparent parts of images, 0 to 255.
      exif_orientation: whether to rotate images by their EXIF orientation.
      class_names: in the order of the logits; None if unknown.
      accuracy: `epoch`, and `loss`, `top1` and `top5` (percent) of these weights on the test
        split; None if they were not evaluated.
      config_sha256: digest of the run's config; None if the weights do not come from a run.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int | None = None
    resize: bool = False
    background: int = 0
    exif_orientation: bool = False
    class_names: tuple[str, ...] | None = None
    accuracy: dict[str, float] | None = None
    config_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the notes as JSON values, for `PackedProgram.notes`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def parse_notes(
    notes: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int
) -> Notes:
    """Check the notes of a model file; unknown notes are ignored.

    Args:
      notes: any JSON values.
      image_shape: height, width and channels of the network's images.
      num_classes: number of the network's logits.

    Raises:
      UsageError: mean or std is missing, or a note has a wrong type or value.
    """
    known = Notes(
        mean=_numbers(notes, "mean", image_shape[2]),
        std=_numbers(notes, "std", image_shape[2]),
        shorter_side=notes.get("shorter_side"),
        resize=notes.get("resize", False),
        background=notes.get("background", 0),
        exif_orientation=notes.get("exif_orientation", False),
        class_names=_class_names(notes.get("class_names"), num_classes),
        accuracy=notes.get("accuracy"),
        config_sha256=notes.get("config_sha256"),
    )
    if min(known.std) <= 0:
        raise UsageError(f"its std is {list(known.std)}; expected numbers above 0.")
    if not _can_normalize(known):
        raise UsageError(
            f"its mean is {list(known.mean)} and its std {list(known.std)}, which float32 cannot"
            " normalize by; expected numbers such as 0.5 and 0.25."
        )
    side, least = known.shorter_side, max(image_shape[:2])
    if side is not None and not (type(side) is int and least <= side <= _MOST_PIXELS):
        raise UsageError(
            f"its shorter_side is {side!r}; expected a whole number from {least} to {_MOST_PIXELS}."
        )
    for name in ("resize", "exif_orientation"):
        value = getattr(known, name)
        if not isinstance(value, bool):
            raise UsageError(f"its {name} is {value!r}; expected true or false.")
    if not (type(known.background) is int and 0 <= known.background <= 255):
        raise UsageError(
            f"its background is {known.background!r}; expected a whole number from 0 to 255."
        )
    if known.accuracy is not None and not _are_numbers_by_name(known.accuracy):
        raise UsageError(f"its accuracy is {known.accuracy!r}; expected a table of numbers.")
    if not isinstance(known.config_sha256, str | None):
        raise UsageError(f"its config_sha256 is {known.config_sha256!r}; expected a string.")
    return known


def _can_normalize(notes: Notes) -> bool:
    """Whether 1 / std and mean / std are finite in float32."""
    mean, std = (np.asarray(numbers, np.float32) for numbers in (notes.mean, notes.std))
    with np.errstate(all="ignore"):
        return bool(np.isfinite([1 / (255 * std), mean / std]).all())


def _numbers(notes: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    values = notes.get(name)
    if not (isinstance(values, list) and len(values) == count and all(map(_is_number, values))):
        raise UsageError(
            f"its {name} is {values!r}; expected a list of {count} numbers, one for each channel."
        )
    return tuple(float(value) for value in values)


def _class_names(names: Any, count: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError("its class_names are not a list of strings.")
    if len(names) != count:
        raise UsageError(f"it has {len(names)} class_names for {count} classes.")
    return tuple(names)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def _are_numbers_by_name(table: Any) -> bool:
    return isinstance(table, dict) and all(map(_is_number, table.values()))
