"""Standard output and standard error that fail without ending a run."""

import io
import os
import sys
from typing import Any, TextIO

from siman_jax.stop import say


def outlive_streams() -> None:
    """Let a command go on where its output is closed, or fails later: a full disk, `| head`.

    What is printed then is lost; for standard output, a line on standard error says so once.
    """
    for number in (0, 1, 2):  # else the next file that is opened takes the number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            if number == 1:
                _tell("it is closed")
    sys.stdout, sys.stderr = _outliving(sys.stdout, 1), _outliving(sys.stderr, 2)


def _outliving(stream: TextIO | Any, number: int) -> TextIO:
    """A stream like the given one, which None stands for where it was closed."""
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
    """A stream's end; where it fails, /dev/null takes its place."""

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
    say(f"warning: standard output cannot be written ({reason}); the command goes on without it.")
