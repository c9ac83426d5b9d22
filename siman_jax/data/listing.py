"""Find the image files in a folder, and count the files that are left out by reason."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from siman_jax.data.formats import EXTENSIONS
from siman_jax.errors import UsageError

_log = logging.getLogger(__name__)


def images_below(folder: Path | str, left_out: Counter[str]) -> Iterator[str]:
    """Iterate over the paths of the images in a folder and its subfolders, in any order.

    Links are followed.

    Args:
      folder: folder to search.
      left_out: counter of the files left out, by reason; a folder that is left out counts once.

    Raises:
      UsageError: a folder cannot be listed.
    """
    yield from _walk(os.fspath(folder), (os.path.realpath(folder),), left_out)


def _walk(folder: str, around: tuple[str, ...], left_out: Counter[str]) -> Iterator[str]:
    for entry in entries(folder):
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif is_folder(entry):
            link = entry.is_symlink()
            inside = os.path.realpath(entry) if link else os.path.join(around[-1], entry.name)
            if inside in around:
                left_out["linked to a folder that contains it"] += 1
            else:
                yield from _walk(entry.path, (*around, inside), left_out)
        elif reason := why_left_out(entry):
            left_out[reason] += 1
        else:
            yield entry.path


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; circular links are not."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def why_left_out(entry: os.DirEntry[str]) -> str:
    """Return the reason why a file is left out, "" if it is an image; the file is not a folder."""
    if entry.name.startswith("."):
        return "hidden"
    if not (os.path.isfile(entry) if entry.is_symlink() else entry.is_file()):
        return "with a broken link" if entry.is_symlink() else "neither file nor folder"
    extension = os.path.splitext(entry.name)[1].lower()
    return "" if extension in EXTENSIONS else extension or "without an extension"


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """List a folder.

    Raises:
      UsageError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be listed: {error.strerror}.") from error


def warn_of_left_out(folder: Path | str, left_out: Counter[str]) -> None:
    """Warn how many files of a folder were left out, and why, if there are any."""
    if left_out:
        ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count} {reason}" for reason, count in ordered)
        _log.warning(
            "left out of %s: %s; names of images end in %s", folder, reasons, " ".join(EXTENSIONS)
        )
