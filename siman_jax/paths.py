"""Paths that users name."""

import re
from pathlib import Path

from siman_jax.errors import UsageError


def local_path(name: str | Path, flag: str) -> Path:
    """The path that a user named, with `~` taken for the home folder.

    Args:
      name: what was given.
      flag: that gave it, or another word for it, for the message.

    Raises:
      UsageError: it is an address, such as gs://bucket/run, or of a user whom the system lacks.

    >>> local_path("s3://bucket/run", "--workdir")
    Traceback (most recent call last):
    siman_jax.errors.UsageError: --workdir=s3://bucket/run is an address, ...
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(name)):
        raise UsageError(
            f"{flag}={name} is an address, and files are read and written on this machine alone."
            " Mount the bucket or share as a folder and name that, or copy what you need."
        )
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{flag}={name}: {error}") from None


def read_file(path: Path, most: int) -> bytes:
    """Read a file or what stands for one, such as a pipe, of at most `most` bytes.

    Raises:
      UsageError: it holds more.
      OSError: it is not there, or cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UsageError(f"{path} holds more than {most:,} bytes.")
    return data
