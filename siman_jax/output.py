"""Writing files: completely or not at all, and never over another file by accident."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from siman_jax.errors import UsageError

_DRAFT = ".draft"


def check_output(path: Path, flag: str, overwrite: bool) -> None:
    """Check, before any work starts, that a file can be written; nothing is written.

    Args:
      path: the file to write.
      flag: the flag that named it, for the message.
      overwrite: whether the file may exist already.

    Raises:
      UsageError: the file exists, or its folder does not exist or is not writable.
    """
    if path.is_dir():
        raise UsageError(f"--{flag}={path} is a folder; name a file in it.")
    if path.is_symlink() and not path.exists():
        raise UsageError(f"--{flag}={path} is a broken link; name another file.")
    if path.exists() and not overwrite:
        raise UsageError(
            f"--{flag}={path} exists; name another file, or replace it by --overwrite."
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(
            f"--{flag}={path}: the folder {path.parent} does not exist; create it first."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--{flag}={path}: there is no permission to write in {path.parent}.")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside `path`, then rename it, so that `path` is never half-written.

    Several processes may write the same path at once; one of them wins.

    Raises:
      UsageError: the file cannot be written, for example because the disk is full; an older file
        at `path` is unchanged.
    """
    try:
        with draft_of(path) as draft:
            draft.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path`; at the end rename it to `path`.

    After an error it is removed instead, and a file at `path` is unchanged.
    """
    import secrets  # late: a model loads sooner without it

    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_DRAFT}")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def remove_drafts(folder: Path) -> None:
    """Remove half-written files of killed processes; no other process may write in `folder`."""
    for draft in folder.glob(f"*{_DRAFT}"):
        with contextlib.suppress(OSError):
            draft.unlink()
