"""A folder of images by class: ROOT/SPLIT/CLASS/**/*.jpg, or another format in `listing`."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset, Record
from siman_jax.data.formats import EXTENSIONS
from siman_jax.data.listing import entries, images_below, is_folder, warn_of_left_out, why_left_out
from siman_jax.errors import UsageError
from siman_jax.paths import local_path


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a split, read on access.

    Attributes:
      folder: folder of the split.
      names: paths relative to `folder`, in a fixed order; strings, because every worker process
        gets a copy and a million `Path`s are slow to copy.
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


def load(config: ConfigDict) -> Dataset:
    """List the images of both splits; no file is opened.

    Subfolders of class folders are searched too. Hidden files, files without an image's extension,
    and files beside the class folders are left out; a warning says how many, and why.

    Args:
      config: with `root`, the folder, and `train_split` and `test_split`, folders in it.

    Raises:
      UsageError: a folder is missing or empty, or the splits have different classes.
    """
    root = _root(config)
    classes = class_names(config)
    train, test = (
        _list_files(root / split, classes, config)
        for split in (config.train_split, config.test_split)
    )
    return Dataset(train, test, classes)


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the class folders of the training split, sorted.

    Raises:
      UsageError: the split does not exist or has no class folders.
    """
    train = _root(config) / config.train_split
    if not train.is_dir():
        raise UsageError(
            f"there is no folder {train}; {_layout(config)}. Name ROOT with"
            " --config.data.root=ROOT."
        )
    _check_not_flat(train, config)
    names = tuple(sorted(_folders(train)))
    if not names:
        raise UsageError(f"{train} holds no class folders; {_layout(config)}.")
    return names


def _root(config: ConfigDict) -> Path:
    return local_path(config.root, "--config.data.root")


def _list_files(folder: Path, classes: Sequence[str], config: ConfigDict) -> ImageFiles:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; {_layout(config)}.")
    _check_not_flat(folder, config)
    others = _folders(folder) ^ set(classes)
    if others:
        raise UsageError(
            f"{folder} and its sibling {config.train_split} have different class folders:"
            f" {sorted(others)[:5]} are in only one of them. Give both splits the same classes."
        )
    names: list[str] = []
    labels: list[int] = []
    left_out = Counter(
        why_left_out(entry) or "beside the class folders"
        for entry in entries(folder)
        if entry.name not in classes
    )
    for label, name in enumerate(classes):
        images = sorted(
            file.removeprefix(f"{folder}{os.sep}") for file in images_below(folder / name, left_out)
        )
        if not images:
            raise UsageError(f"{folder / name} holds no images; {_layout(config)}.")
        names.extend(images)
        labels.extend([label] * len(images))
    warn_of_left_out(folder, left_out)
    return ImageFiles(folder, tuple(names), tuple(labels))


def _folders(folder: Path) -> set[str]:
    found = entries(folder)
    return {entry.name for entry in found if is_folder(entry) and not entry.name.startswith(".")}


def _check_not_flat(folder: Path, config: ConfigDict) -> None:
    """Check that a split's images are not directly in its folder, as in ImageNet's validation set.

    Raises:
      UsageError: the folder holds images and no folders.
    """
    files = (entry for entry in entries(folder) if not is_folder(entry))
    images = [entry.name for entry in files if not why_left_out(entry)]
    if images and not _folders(folder):
        raise UsageError(
            f"{folder} is flat: it holds {len(images)} images and no class folders, like ImageNet's"
            " validation images. Move each image into the folder of its class, such as"
            f" {folder / 'CLASS' / min(images)}; the names of classes are those in"
            f" {config.train_split}."
        )


def _layout(config: ConfigDict) -> str:
    train, test = config.train_split, config.test_split
    return (
        f"expected ROOT/{train}/CLASS/*.jpg and ROOT/{test}/CLASS/*.jpg (or"
        f" {' '.join(EXTENSIONS[1:])}); --config.data.train_split and --config.data.test_split"
        " name the folders"
    )
