"""Output that a run can do without."""

import logging
from types import TracebackType

_log = logging.getLogger(__name__)


class Dispensable:
    """Lets a run go on where something cannot be written; the first time, a warning says why.

    Use it as a context manager around each attempt.

    Args:
      what: is written, for the message.

    Attributes:
      failed: whether an attempt has.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.failed = False

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):  # none, or one that ends the process
            return False
        if not self.failed:
            reason = str(error) or type(error).__name__
            _log.warning("%s cannot be written, and the run goes on: %s", self._what, reason)
        self.failed = True
        return True
