"""Optional output, whose failure does not stop a run."""

import logging
from types import TracebackType

_log = logging.getLogger(__name__)


class Dispensable:
    """Suppresses errors while optional output is written; the first error is logged as a warning.

    Use it as a context manager around each attempt.

    Args:
      what: name of the output, for the message.

    Attributes:
      failed: whether an attempt failed.
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
        if not isinstance(error, Exception):  # None, or an error that ends the process
            return False
        if not self.failed:
            reason = str(error) or type(error).__name__
            _log.warning("%s cannot be written; the run continues: %s", self._what, reason)
        self.failed = True
        return True
