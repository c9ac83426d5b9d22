"""Files that commands write: whole or not at all, and never by accident over another."""

import contextlib
import os
import secrets
from pathlib import Path

from siman_jax.errors import UsageError

_DRAFT = ".draft"


def check_output(path: Path, flag: str, overwrite: bool) -> None:
    """Refuse, before any work, a file that could not be written; nothing is written.

    Args:
      path: of the file.
      flag: that named it, for the message.
      overwrite: whether a file may be there already.

    Raises:
      UsageError: it exists, or its folder does not, or may not be written in.
    """
    if path.is_dir():
        raise UsageError(f"--{flag}={path} is a folder; name a file in it.")
    if path.is_symlink() and not path.exists():
        raise UsageError(f"--{flag}={path} is a link to what is not there; name another file.")
    if path.exists() and not overwrite:
        raise UsageError(
            f"--{flag}={path} exists; name another file, or replace it by --overwrite."
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--{flag}={path}: there is no folder {path.parent}; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--{flag}={path}: there is no permission to write in {path.parent}.")


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename; of several that write at the same time, one's is there.

    Raises:
      UsageError: it cannot be written, for want of space for instance; what was there is as it was.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_DRAFT}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left half-written; call it where no other one writes."""
    for draft in folder.glob(f"*{_DRAFT}"):
        with contextlib.suppress(OSError):
            draft.unlink()
