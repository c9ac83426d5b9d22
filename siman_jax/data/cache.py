"""A cache of decoded images in files; the key is the encoded bytes and the decoding rules."""

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from siman_jax.data.dataset import Record, Split
from siman_jax.output import draft_of
from siman_jax.paths import local_path

_VERSION = 1  # increase it when the same bytes decode to other pixels
_DECODERS = ("pillow", "simplejpeg")
_FIELDS = ("image_size", "channels", "resize", "background", "exif_orientation")
# Also drafts, and the entries and drafts of older versions.
_ENTRY = re.compile(r"[0-9a-f]{32}([-.][0-9a-f]{32})*\.npz(\.[0-9a-f]+\.draft)?")
_DAYS = 30  # an entry is removed so long after its last use

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """The cached images of one data set; there is one entry at a time.

    The entry is replaced when an image or the version of a decoder changes, and removed when it
    was not used for a month.

    Attributes:
      folder: folder of all entries.
      data_set: digest of the place of the image files and of the decoding rules.
    """

    folder: Path
    data_set: str

    def read(self, digest: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Split] | None:
        """Read the entry for a digest; None if there is none or it is damaged.

        Args:
          digest: result of `digest_of`.
          shapes: expected shape of the images of each split.
        """
        path = self._path(digest)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                splits = {
                    split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"])
                    for split in shapes
                }
            for split, shape in shapes.items():
                images, labels = splits[split].images, splits[split].labels
                if (images.shape, labels.shape) != (shape, shape[:1]) or images.dtype != np.uint8:
                    raise ValueError(f"the {split} split has another shape")
            path.touch()  # records the time of the last use
        except FileNotFoundError:
            return None
        except Exception as error:  # damage of any kind means decoding again
            _log.warning("the cache %s is damaged (%s); decoding again", path, error)
            return None
        return splits

    def write(self, digest: str, splits: dict[str, Split]) -> None:
        """Write decoded images, and remove the previous entry of the data set."""
        path = self._path(digest)
        arrays = {
            f"{name}_{field}": getattr(split, field)
            for name, split in splits.items()
            for field in ("images", "labels")
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(path) as draft, draft.open("wb") as file:
                np.savez(file, **arrays)
            self._remove_old(path)
        except OSError as error:
            _log.warning("decoded images cannot be cached: %s", error)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{self.data_set}-{digest}.npz"

    def _remove_old(self, newest: Path) -> None:
        oldest = time.time() - _DAYS * 24 * 3600
        for path in self.folder.iterdir():
            before = re.fullmatch(f"{self.data_set}-[0-9a-f]{{32}}", path.stem) and path != newest
            unused = _ENTRY.fullmatch(path.name) and path.stat().st_mtime < oldest
            if before or unused:
                path.unlink(missing_ok=True)


def cache_of(config: ConfigDict) -> Cache | None:
    """The cache of the data set that `config` describes; None if `cache_dir` is empty."""
    if not config.cache_dir:
        return None
    root = Path(config.root).expanduser().resolve()
    place = f"{config.tfds_dir}/{config.name}" if config.source == "tfds" else str(root)
    asked = [config.source, place, config.train_split, config.test_split]
    asked += [repr(config[field]) for field in _FIELDS]
    folder = local_path(config.cache_dir, "--config.data.cache_dir")
    return Cache(folder, _digest(text.encode(errors="surrogatepass") for text in asked))


def digest_of_example(record: Record) -> bytes:
    """Return the digest of an example's bytes and label."""
    return record.label.to_bytes(4) + hashlib.sha256(record.data).digest()


def digest_of(examples: Iterable[bytes]) -> str:
    """Return the digest of the examples' digests, in order, and of the decoders' versions."""
    versions = [str(_VERSION), *(f"{name} {version(name)}" for name in _DECODERS)]
    return _digest([*(text.encode() for text in versions), *examples])


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8) + part)
    return whole.hexdigest()[:32]
