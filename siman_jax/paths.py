"""Paths given by users."""

import re
from pathlib import Path

from siman_jax.errors import UsageError


def local_path(name: str | Path, flag: str) -> Path:
    """Convert a user's text to a path; `~` stands for the home folder.

    Args:
      name: the text.
      flag: the flag that gave it, or another name for it, for the message.

    Raises:
      UsageError: it is an address, such as gs://bucket/run, or names the home of an unknown user.

    >>> local_path("s3://bucket/run", "--workdir")
    Traceback (most recent call last):
    siman_jax.errors.UsageError: --workdir=s3://bucket/run is an address, ...
    """
    # A Path joins the two slashes of an address to one.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(name)):
        raise UsageError(
            f"{flag}={name} is an address; only files on this machine can be read and written."
            " Mount the bucket or share as a folder and name that folder."
        )
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{flag}={name}: {error}") from None


def read_file(path: Path, most: int) -> bytes:
    """Read a file, or a pipe, of at most `most` bytes.

    Raises:
      UsageError: it is larger.
      OSError: it does not exist or cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UsageError(f"{path} is larger than {most:,} bytes.")
    return data
