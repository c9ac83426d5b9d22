"""Whole data sets decoded into memory, once: later runs read the result from a cache file."""

import hashlib
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from siman_jax.data.dataset import Dataset, Record, Records, Split
from siman_jax.data.whole_image import WrongSize, whole_image
from siman_jax.errors import UsageError

_log = logging.getLogger(__name__)


def decode_dataset(dataset: Dataset, config: ConfigDict) -> Dataset:
    """Decode every image of both splits.

    Args:
      dataset: with records in both splits; what they decode to is cached if they have fingerprints.
      config: with `image_size`, pixels; `channels`, 1 or 3; `resize`, whether to scale and crop
        images of other sizes instead of refusing them; `cache_dir`, where to cache.

    Raises:
      UsageError: an image cannot be read or has another size; files are named.
    """
    cache = _cache_path(dataset, config)
    splits = _read_cache(cache) if cache else None
    if splits is None:
        _log.info("decoding %d images", len(dataset.train) + len(dataset.test))
        splits = {
            name: split if isinstance(split, Split) else _decode_all(split, config)
            for name, split in (("train", dataset.train), ("test", dataset.test))
        }
        if cache:
            _write_cache(cache, splits)
    return Dataset(splits["train"], splits["test"], dataset.classes)


def _decode_all(records: Records, config: ConfigDict) -> Split:
    n, size = len(records), config.image_size
    images = np.empty((n, size, size, config.channels), np.uint8)
    labels = np.empty(n, np.int32)

    def decode(index: int) -> str | None:
        record = records[index]
        labels[index] = record.label
        try:
            images[index] = _decode(record, config)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{record.name}: {error}"
        return None

    with ThreadPoolExecutor() as pool:
        failures = [text for text in pool.map(decode, range(n)) if text]
    if failures:
        raise UsageError(
            f"{len(failures)} of {n} images cannot be used; mend or remove them:\n  "
            + "\n  ".join(failures[:5])
            + ("\n  ..." if len(failures) > 5 else "")
        )
    return Split(images, labels)


def _decode(record: Record, config: ConfigDict) -> np.ndarray:
    try:
        return whole_image(
            record.data, size=config.image_size, channels=config.channels, resize=config.resize
        )
    except WrongSize as error:
        raise ValueError(
            f"{error}; set --config.data.image_size, or scale and crop with"
            " --config.data.resize=True"
        ) from error


def _cache_path(dataset: Dataset, config: ConfigDict) -> Path | None:
    """Where to cache decoded images; changes when one, or what is made of it, changes."""
    digest = hashlib.sha256(f"{config.image_size} {config.channels} {config.resize}".encode())
    for split in (dataset.train, dataset.test):
        fingerprint = None if isinstance(split, Split) else split.fingerprint()
        if fingerprint is None:
            return None
        digest.update(fingerprint.encode())
    return Path(config.cache_dir).expanduser() / f"{digest.hexdigest()[:32]}.npz"


def _read_cache(path: Path) -> dict[str, Split] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {
                split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"])
                for split in ("train", "test")
            }
    except Exception as error:  # any damage whatever means decoding again
        _log.warning("decoding again: cache %s is damaged (%s)", path, error)
        return None


def _write_cache(path: Path, splits: dict[str, Split]) -> None:
    """Write beside the final name, then rename, so that no half-written cache is ever read."""
    draft = path.with_suffix(f".{uuid.uuid4().hex}.npz")  # other hosts may write the same cache
    arrays = {
        f"{name}_{field}": getattr(split, field)
        for name, split in splits.items()
        for field in ("images", "labels")
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(draft, **arrays)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        _log.warning("decoded images are not cached: %s", error)
