"""What a model file says beside its weights: how images become inputs, and what classes mean."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from siman_jax.errors import UsageError

_MOST_PIXELS = 16384


@dataclass(frozen=True)
class Notes:
    """Notes of a model file.

    Attributes:
      mean, std: of each channel, on the scale where pixels are 0 to 1.
      shorter_side: what evaluation scales an image's shorter side to before it crops the centre;
        None where images are taken whole.
      resize: of images taken whole, whether those of another size are scaled and cropped to fit,
        or refused.
      background: grey level behind transparent parts of images, 0 to 255.
      exif_orientation: whether images are turned as their EXIF data say.
      class_names: in the order of the logits; None where they are not known.
      accuracy: `epoch`, and the test split's `loss`, `top1` and `top5` (percent), of these weights;
        None where they were not evaluated.
      config_sha256: digest of the run's config; None where the weights are of no run.
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
        """Values for `PackedNetwork.notes`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def parse_notes(
    notes: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int
) -> Notes:
    """Check the notes of a model file; what is not known here is passed over.

    Args:
      notes: any values that JSON can hold.
      image_shape: height, width and channels of the network's images.
      num_classes: number of its logits.

    Raises:
      UsageError: mean or std is missing, or a note is not what it should be.
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
        raise UsageError(f"its std is {list(known.std)}; each must be above 0.")
    side, least = known.shorter_side, max(image_shape[:2])
    if side is not None and not (type(side) is int and least <= side <= _MOST_PIXELS):
        raise UsageError(
            f"its shorter_side is {side!r}, no whole number from {least} to {_MOST_PIXELS}."
        )
    for name in ("resize", "exif_orientation"):
        value = getattr(known, name)
        if not isinstance(value, bool):
            raise UsageError(f"its {name} is {value!r}, neither true nor false.")
    if not (type(known.background) is int and 0 <= known.background <= 255):
        raise UsageError(f"its background is {known.background!r}, no whole number from 0 to 255.")
    if known.accuracy is not None and not _are_numbers_by_name(known.accuracy):
        raise UsageError(f"its accuracy is {known.accuracy!r}, no table of numbers.")
    if not isinstance(known.config_sha256, str | None):
        raise UsageError(f"its config_sha256 is {known.config_sha256!r}, no string.")
    return known


def _numbers(notes: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    values = notes.get(name)
    if not (isinstance(values, list) and len(values) == count and all(map(_is_number, values))):
        raise UsageError(
            f"its {name} is {values!r}, but it must hold a number for each channel, {count} in all."
        )
    return tuple(float(value) for value in values)


def _class_names(names: Any, count: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError("its class_names are no list of strings.")
    if len(names) != count:
        raise UsageError(f"it has {len(names)} class_names for {count} classes.")
    return tuple(names)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def _are_numbers_by_name(table: Any) -> bool:
    return isinstance(table, dict) and all(map(_is_number, table.values()))
