"""Stop cleanly on SIGTERM, at the same step in every process."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from siman_jax.stop import restore_handlers, set_handlers, signal_name, write_line


class StopSignals:
    """Tells all processes to stop after the same step, once any of them gets SIGTERM or Ctrl-C.

    Use it as a context manager around each loop that saves before it stops; a signal that arrives
    in one loop also stops the next. With one process it is a signal handler; with several, JAX's
    preemption service agrees on a step. A second Ctrl-C ends the process at once.

    Attributes:
      name: name of the signal that arrived.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._stopping = False
        self._asked = 0
        self._previous: dict[int, Any] = {}
        self.name = "SIGTERM"

    def __enter__(self) -> "StopSignals":
        if self._alone:
            self._previous = set_handlers(self._note)
        elif signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            # JAX's service handles SIGTERM; a handler set here would hide the signal from it.
            self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        restore_handlers(self._previous)

    def should_stop(self, step: int) -> bool:
        """Whether to stop now; every process must ask after the same steps.

        Args:
          step: steps taken since training began; orbax reports the same numbers to JAX's service.
        """
        if not self._alone:
            # The service says yes at one step only, so every step must be asked about.
            for passed in range(self._asked + 1, step + 1):
                self._stopping |= multihost_utils.reached_preemption_sync_point(passed)
            self._asked = max(self._asked, step)
        return self._stopping

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._stopping, self.name = True, signal_name(number)
        if number == signal.SIGINT:
            _end_at_the_next()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        _end_at_the_next()
        os.kill(os.getpid(), signal.SIGTERM)


def _end_at_the_next() -> None:
    """Let a second Ctrl-C end the process at once, even in the middle of a step."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stderr is not None and sys.stderr.isatty():
        write_line("Ctrl-C: saving after this step; press it again to stop at once without saving.")
