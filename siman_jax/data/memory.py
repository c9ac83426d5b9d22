"""Decode a whole data set into memory; later runs read the result from a cache file."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from siman_jax.data.cache import cache_of, digest_of, digest_of_example
from siman_jax.data.dataset import DamagedImage, Dataset, Record, Records, Split
from siman_jax.data.frames import has_more_frames, say_first_frame
from siman_jax.errors import UsageError

_log = logging.getLogger(__name__)


def decode_dataset(dataset: Dataset, config: ConfigDict) -> Dataset:
    """Decode every image of both splits.

    Args:
      dataset: data set with `Records` in at least one split; a `Split` is not changed.
      config: `config.data`, with `image_size`, in pixels; `channels`, 1 or 3; `resize`, whether to
        scale and crop images of other sizes instead of refusing them; and `cache_dir`, the folder
        of the cache, "" for none.

    Raises:
      UsageError: an image cannot be read or has another size; the message names the files.
    """
    parts = {"train": dataset.train, "test": dataset.test}
    records = {name: part for name, part in parts.items() if not isinstance(part, Split)}
    cache = cache_of(config)
    splits = None
    if cache:
        shape = (config.image_size, config.image_size, config.channels)
        shapes = {name: (len(part), *shape) for name, part in records.items()}
        stored = [digest for part in records.values() for digest in _digests(part)]
        splits = cache.read(digest_of(stored), shapes)
    if splits is None:
        _log.info("decoding %d images", sum(map(len, records.values())))
        decoded = {name: _decode_all(part, config) for name, part in records.items()}
        splits = {name: split for name, (split, _) in decoded.items()}
        if cache:  # the digest is of the decoded bytes: files may have changed since the first read
            cache.write(digest_of([x for _, digests in decoded.values() for x in digests]), splits)
    return Dataset(
        splits.get("train", dataset.train), splits.get("test", dataset.test), dataset.classes
    )


def _digests(records: Records) -> list[bytes]:
    """Digest of each example; b"" for unreadable ones, which decoding will report."""

    def digest(index: int) -> bytes:
        try:
            return digest_of_example(records[index])
        except (OSError, DamagedImage):
            return b""

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, range(len(records))))


def _decode_all(records: Records, config: ConfigDict) -> tuple[Split, list[bytes]]:
    """Decode all examples, and return the digest of each."""
    n, size = len(records), config.image_size
    images = np.empty((n, size, size, config.channels), np.uint8)
    labels = np.empty(n, np.int32)
    digests = [b""] * n
    decode = _decoder(config)

    def read(index: int) -> tuple[str, str]:
        """Read one image; return what is wrong with it, and its name if its file holds several."""
        try:
            record = records[index]
        except (OSError, DamagedImage) as error:
            return f"cannot be read: {error}", ""
        labels[index], digests[index] = record.label, digest_of_example(record)
        try:
            images[index] = decode(record)
        except ValueError as error:
            return f"{record.name}: {error}", ""
        return "", record.name if has_more_frames(record.data) else ""

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(read, range(n)))
    failures = [failure for failure, _ in outcomes if failure]
    if failures:
        raise UsageError(
            f"{len(failures)} of {n} images cannot be used; fix or remove them:\n  "
            + "\n  ".join(failures[:5])
            + ("\n  ..." if len(failures) > 5 else "")
        )
    for name in (name for _, name in outcomes if name):
        say_first_frame(name)
    return Split(images, labels), digests


def _decoder(config: ConfigDict) -> Callable[[Record], np.ndarray]:
    """Make a function that decodes a record, or raises ValueError with the reason."""
    from siman_jax.data.decode import WrongSize, whole_image
    from siman_jax.data.pixels import pixel_rules

    rules = pixel_rules(config)

    def decode(record: Record) -> np.ndarray:
        try:
            return whole_image(
                record.data, rules=rules, size=config.image_size, resize=config.resize
            )
        except WrongSize as error:
            raise ValueError(
                f"{error}; change --config.data.image_size, or set --config.data.resize=True to"
                " scale and crop"
            ) from error

    return decode
