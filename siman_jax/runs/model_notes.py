"""Make the notes of a model file from a run's config."""

from typing import Any

from ml_collections import ConfigDict

from siman_jax.packed.notes import Notes


def notes_from_config(data: ConfigDict, **others: Any) -> Notes:
    """Make notes that say how evaluation prepares images.

    Args:
      data: `config.data`.
      **others: further attributes of `Notes`.
    """
    return Notes(
        mean=tuple(data.mean),
        std=tuple(data.std),
        shorter_side=None if data.resident else data.shorter_side,
        resize=bool(data.get("resize", False)),
        background=data.get("background", Notes.background),
        exif_orientation=data.get("exif_orientation", Notes.exif_orientation),
        **others,
    )
