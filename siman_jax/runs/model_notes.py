"""Make the notes of a model file from a run's config."""

from typing import Any

from ml_collections import ConfigDict

from siman_jax.data.defaults import are_files
from siman_jax.packed.notes import Notes


def notes_from_config(data: ConfigDict, **others: Any) -> Notes:
    """Make notes that say how evaluation prepares images.

    Args:
      data: `config.data`.
      **others: further attributes of `Notes`.
    """
    decoding: dict[str, Any] = {}
    if are_files(data):
        decoding = {
            "shorter_side": None if data.resident else data.shorter_side,
            "resize": data.resize,
            "background": data.background,
            "exif_orientation": data.exif_orientation,
        }
    return Notes(mean=tuple(data.mean), std=tuple(data.std), **decoding, **others)
