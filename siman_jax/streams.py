"""Standard output and error streams whose failure does not end a run."""

import io
import os
import sys
from typing import Any, TextIO

from siman_jax.stop import write_line


def outlive_streams() -> None:
    """Let a command continue when its output is closed or fails: a full disk, `| head`.

    Output after the failure is lost. If standard output fails, one line on standard error says so.
    """
    for number in (0, 1, 2):  # a closed number would be reused by the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            if number == 1:
                _tell("it is closed")
    sys.stdout, sys.stderr = _outliving(sys.stdout, 1), _outliving(sys.stderr, 2)


def _outliving(stream: TextIO | Any, number: int) -> TextIO:
    """Make a stream like `stream`, which is None if it was closed, that survives failures."""
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "w", closefd=False)),
        encoding=getattr(stream, "encoding", None),
        errors=getattr(stream, "errors", None),
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


class _Output(io.FileIO):
    """A file descriptor that is replaced by /dev/null when writing to it fails."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() == 1:
                _tell(error.strerror or str(error))
            return len(data)


def _tell(reason: str) -> None:
    write_line(f"warning: cannot write to standard output ({reason}); continuing without it.")
