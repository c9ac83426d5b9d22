"""SIGTERM and Ctrl-C: a command ends at once, but for a loop that saves its work first.

This imports nothing that takes time, so that a command can begin with it.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

# Exit status of a command that was asked to stop and lost nothing (EX_TEMPFAIL): start it again.
EXIT_CODE = 75

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

Handler = Callable[[int, FrameType | None], None]


class Preempted(Exception):  # noqa: N818, no error: the run is whole
    """Training was asked to stop, and stopped with everything saved."""


def stop_at_once() -> None:
    """End this process with status 75 on SIGTERM or Ctrl-C from here on.

    For a command that loses nothing by it: what it writes is written whole, and a loop with work to
    save handles the signals itself while it runs.
    """
    set_handlers(_leave)


def set_handlers(handler: Handler) -> dict[int, Any]:
    """Set the handler of SIGTERM and Ctrl-C; call it from the main thread.

    A command that a shell started in the background ignores Ctrl-C, which is not meant for it; it
    stays so.

    Returns:
      The handlers before, by signal, for `restore_handlers`.
    """
    numbers = [n for n in _NAMES if n != signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Set each signal's handler, as `set_handlers` returned them."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def signal_name(number: int) -> str:
    """What messages call a signal.

    >>> signal_name(15)
    'SIGTERM'
    """
    return _NAMES[signal.Signals(number)]


def say(line: str) -> None:
    """Print a line to standard error from a signal handler, where `print` may be in use."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    with contextlib.suppress(Exception):  # it may be in use, closed or full
        sys.stdout.flush()
    say(f"stopped by {signal_name(number)}, with nothing to save; the same command goes on.")
    os._exit(EXIT_CODE)
