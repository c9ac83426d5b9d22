"""Handlers of SIGTERM and Ctrl-C: exit at once, unless a loop saves its work first.

This module imports nothing slow, so a command can import it first.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# Exit status of a command that was asked to stop and lost nothing (EX_TEMPFAIL); run it again.
EXIT_CODE = 75

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

Handler = Callable[[int, FrameType | None], None]


class Preempted(Exception):  # noqa: N818, not an error: everything is saved
    """Training stopped on request, with everything saved."""


def stop_at_once() -> None:
    """Make SIGTERM and Ctrl-C end this process with status 75.

    This is safe where files are written completely or not at all, and where loops with work to
    save handle the signals themselves.
    """
    set_handlers(_leave)


def set_handlers(handler: Handler) -> dict[int, Any]:
    """Set the handler of SIGTERM and Ctrl-C; in other threads than the main one, do nothing.

    Python handles signals in the main thread only. Ctrl-C stays ignored where it is ignored now, as
    in a command that a shell started in the background.

    Returns:
      The previous handlers by signal, for `restore_handlers`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [n for n in _NAMES if n != signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Set the handlers that `set_handlers` returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def signal_name(number: int) -> str:
    """Name of a signal, for messages.

    >>> signal_name(15)
    'SIGTERM'
    """
    return _NAMES[signal.Signals(number)]


def write_line(line: str) -> None:
    """Print a line to standard error; safe in a signal handler, where `print` is not."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    with contextlib.suppress(Exception):  # the stream may be in use, closed or full
        sys.stdout.flush()
    write_line(
        f"stopped by {signal_name(number)}; nothing is lost, run the same command to continue."
    )
    os._exit(EXIT_CODE)
