"""A folder of images by class: ROOT/{train,test}/CLASS/*.{jpg,jpeg,png}.

Decoded once, in parallel, into one cache file that later runs read.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from siman_jax.data.dataset import Dataset, Split
from siman_jax.errors import UsageError

_EXTENSIONS = {".jpg", ".jpeg", ".png"}
_LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or .jpeg, .png)"

_log = logging.getLogger(__name__)


def load(config: ConfigDict) -> Dataset:
    """Load every image of both splits.

    Args:
      config: with `root`, the folder; `image_size`, pixels; `channels`, 1 or 3; `resize`,
        whether to scale and crop images of other sizes instead of refusing them; `cache_dir`,
        where decoded images are kept.

    Raises:
      UsageError: a folder is missing or empty, the splits have different classes, or an image
        cannot be read or has another size; files are named.
    """
    root = Path(config.root).expanduser()
    classes = class_names(root)
    files = {split: _list_files(root / split, classes) for split in ("train", "test")}
    cache = Path(config.cache_dir).expanduser() / f"{_digest(root, files, config)}.npz"
    arrays = _read_cache(cache)
    if arrays is None:
        _log.info("decoding %d images below %s", sum(map(len, files.values())), root)
        arrays = {split: _decode_all(paths, config) for split, paths in files.items()}
        _write_cache(cache, arrays)
    label = {name: index for index, name in enumerate(classes)}
    train, test = (
        Split(arrays[split], np.array([label[path.parent.name] for path in paths], np.int32))
        for split, paths in files.items()
    )
    return Dataset(train, test, classes)


def class_names(root: Path) -> tuple[str, ...]:
    """Names of the class folders below ROOT/train, sorted.

    Raises:
      UsageError: there is no such folder, or no folder in it.
    """
    train = root.expanduser() / "train"
    if not train.is_dir():
        raise UsageError(
            f"there is no folder {train}; {_LAYOUT}. Name ROOT with --config.data.root=ROOT."
        )
    names = tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
    if not names:
        raise UsageError(f"{train} holds no class folders; {_LAYOUT}.")
    return names


def _list_files(folder: Path, classes: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; {_LAYOUT}.")
    others = {path.name for path in folder.iterdir() if path.is_dir()} ^ set(classes)
    if others:
        raise UsageError(
            f"{folder} and its sibling train have different class folders: {sorted(others)[:5]}"
            " stand in only one of them. Give both splits the same classes."
        )
    files = []
    for name in classes:
        images = [p for p in (folder / name).iterdir() if p.suffix.lower() in _EXTENSIONS]
        if not images:
            raise UsageError(f"{folder / name} holds no images; {_LAYOUT}.")
        files.extend(sorted(images))
    return files


def _decode_all(paths: Sequence[Path], config: ConfigDict) -> np.ndarray:
    """Decode into one uint8 array `[n, size, size, channels]`."""
    size = config.image_size
    images = np.empty((len(paths), size, size, config.channels), np.uint8)

    def decode(index: int) -> str | None:
        try:
            images[index] = _decode(paths[index], config)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{paths[index]}: {error}"
        return None

    with ThreadPoolExecutor() as pool:
        failures = [text for text in pool.map(decode, range(len(paths))) if text]
    if failures:
        raise UsageError(
            f"{len(failures)} of {len(paths)} images cannot be used; mend or remove them:\n  "
            + "\n  ".join(failures[:5])
            + ("\n  ..." if len(failures) > 5 else "")
        )
    return images


def _decode(path: Path, config: ConfigDict) -> np.ndarray:
    size = (config.image_size, config.image_size)
    with Image.open(path) as file:
        image = file.convert("RGB" if config.channels == 3 else "L")
    if config.resize:
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if image.size != size:
        raise ValueError(
            f"is {image.width}x{image.height} pixels, expected {size[0]}x{size[1]}; set"
            " --config.data.image_size, or scale and crop with --config.data.resize=True"
        )
    return np.asarray(image).reshape(*size, config.channels)


def _digest(root: Path, files: dict[str, list[Path]], config: ConfigDict) -> str:
    """Name of the cache: changes when a file, or what is made of it, changes."""
    digest = hashlib.sha256(f"{config.image_size} {config.channels} {config.resize}".encode())
    for path in (path for paths in files.values() for path in paths):
        status = path.stat()
        digest.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {split: arrays[split] for split in ("train", "test")}
    except Exception as error:  # any damage whatever means decoding again
        _log.warning("decoding again: cache %s is damaged (%s)", path, error)
        return None


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write beside the final name, then rename, so that no half-written cache is ever read."""
    draft = path.with_suffix(f".{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(draft, train=arrays["train"], test=arrays["test"])
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        _log.warning("decoded images are not cached: %s", error)
