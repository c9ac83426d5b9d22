"""A folder of images by class: ROOT/SPLIT/CLASS/**/*.{jpg,jpeg,png}."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset, Record
from siman_jax.errors import UsageError

EXTENSIONS = {".jpg", ".jpeg", ".png"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Image files, read when they are asked for.

    Attributes:
      folder: of the split.
      names: of the files, from there, in a fixed order; strings, since worker processes get a
        copy and a million paths are slow to copy.
      labels: index of each file's class.
    """

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        path = self.folder / self.names[index]
        return Record(path.read_bytes(), self.labels[index], str(path))

    def fingerprint(self) -> str:
        """Name, size and time of each file."""
        lines = []
        for name in self.names:
            status = (self.folder / name).stat()
            lines.append(f"{self.folder.name}/{name} {status.st_size} {status.st_mtime_ns}")
        return "".join(lines)


def load(config: ConfigDict) -> Dataset:
    """List the images of both splits; none is opened.

    Folders within a class's folder are searched, too. Names that begin with a dot are left out. So
    are files with other extensions, and a warning says how many.

    Args:
      config: with `root`, the folder, and `train_split` and `test_split`, the folders below it.

    Raises:
      UsageError: a folder is missing or empty, or the splits have different classes.
    """
    root = Path(config.root).expanduser()
    classes = class_names(config)
    train, test = (
        _list_files(root / split, classes, config)
        for split in (config.train_split, config.test_split)
    )
    return Dataset(train, test, classes)


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Names of the class folders of the training split, sorted.

    Raises:
      UsageError: there is no such folder, or no folder in it.
    """
    train = Path(config.root).expanduser() / config.train_split
    if not train.is_dir():
        raise UsageError(
            f"there is no folder {train}; {_layout(config)}. Name ROOT with"
            " --config.data.root=ROOT."
        )
    names = tuple(sorted(_folders(train)))
    if not names:
        raise UsageError(f"{train} holds no class folders; {_layout(config)}.")
    return names


def _list_files(folder: Path, classes: Sequence[str], config: ConfigDict) -> ImageFiles:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; {_layout(config)}.")
    others = _folders(folder) ^ set(classes)
    if others:
        raise UsageError(
            f"{folder} and its sibling {config.train_split} have different class folders:"
            f" {sorted(others)[:5]} stand in only one of them. Give both splits the same classes."
        )
    names: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for label, name in enumerate(classes):
        images = []
        for file in _files(folder / name):
            extension = Path(file).suffix.lower()
            if extension in EXTENSIONS:
                images.append(file.removeprefix(f"{folder}{os.sep}"))
            else:
                left_out[extension or "without an extension"] += 1
        if not images:
            raise UsageError(f"{folder / name} holds no images; {_layout(config)}.")
        names.extend(sorted(images))
        labels.extend([label] * len(images))
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        _log.warning("left out of %s, being neither .jpg, .jpeg nor .png: %s", folder, kinds)
    return ImageFiles(folder, tuple(names), tuple(labels))


def _folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}


def _files(folder: Path) -> Iterator[str]:
    """Paths of the files in a folder and the folders below it, in any order."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(where, name) for name in files if not name.startswith("."))


def _layout(config: ConfigDict) -> str:
    train, test = config.train_split, config.test_split
    return (
        f"expected ROOT/{train}/CLASS/*.jpg and ROOT/{test}/CLASS/*.jpg (or .jpeg, .png); the"
        " folders' names are --config.data.train_split and --config.data.test_split"
    )
