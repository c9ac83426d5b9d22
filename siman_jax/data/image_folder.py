"""A folder of images by class: ROOT/SPLIT/CLASS/*.{jpg,jpeg,png}."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset, Record
from siman_jax.errors import UsageError

EXTENSIONS = {".jpg", ".jpeg", ".png"}


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
    names = tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
    if not names:
        raise UsageError(f"{train} holds no class folders; {_layout(config)}.")
    return names


def _list_files(folder: Path, classes: Sequence[str], config: ConfigDict) -> ImageFiles:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; {_layout(config)}.")
    others = {path.name for path in folder.iterdir() if path.is_dir()} ^ set(classes)
    if others:
        raise UsageError(
            f"{folder} and its sibling {config.train_split} have different class folders:"
            f" {sorted(others)[:5]} stand in only one of them. Give both splits the same classes."
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(
            entry.name
            for entry in os.scandir(folder / name)
            if Path(entry.name).suffix.lower() in EXTENSIONS
        )
        if not images:
            raise UsageError(f"{folder / name} holds no images; {_layout(config)}.")
        names.extend(f"{name}/{image}" for image in images)
        labels.extend([label] * len(images))
    return ImageFiles(folder, tuple(names), tuple(labels))


def _layout(config: ConfigDict) -> str:
    train, test = config.train_split, config.test_split
    return (
        f"expected ROOT/{train}/CLASS/*.jpg and ROOT/{test}/CLASS/*.jpg (or .jpeg, .png); the"
        " folders' names are --config.data.train_split and --config.data.test_split"
    )
