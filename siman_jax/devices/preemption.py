"""Stopping in order when the machine is taken away: SIGTERM asks, a checkpoint answers."""

import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

# What the command line exits with after such a stop (EX_TEMPFAIL): start the same command again.
EXIT_CODE = 75


class Preempted(Exception):  # noqa: N818, no error: the run is whole
    """Training was asked to stop, and stopped with everything saved."""


class SigtermWatch:
    """Tells all processes of a run to stop after the same step, once any of them got SIGTERM.

    Use it as a context manager around the loop. With one process it is a signal handler, and
    watches around one another hear the same; with several it is JAX's preemption service, which
    agrees on a step.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._stopping = False
        self._asked = 0

    def __enter__(self) -> "SigtermWatch":
        if self._alone:
            self._previous = signal.signal(signal.SIGTERM, self._note)
            around = getattr(self._previous, "__self__", None)
            if isinstance(around, SigtermWatch):  # which may have been asked before this began
                self._stopping |= around._stopping
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)

    def should_stop(self, step: int) -> bool:
        """Whether to stop now, or should have before; every process asks after the same steps.

        Args:
          step: steps taken since training began; orbax too tells JAX's service of these.
        """
        if not self._alone:
            # The service agrees on a step, the first one if nobody has asked yet, and answers yes
            # for that alone: so none may be left out.
            for passed in range(self._asked + 1, step + 1):
                self._stopping |= multihost_utils.reached_preemption_sync_point(passed)
            self._asked = max(self._asked, step)
        return self._stopping

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        if callable(self._previous):
            self._previous(number, frame)
