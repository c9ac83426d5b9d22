"""A lock that allows one training at a time in a run's folder."""

import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.errors import UsageError

_FILE = ".lock"
_log = logging.getLogger(__name__)


class RunLock:
    """Locks a run's folder; use it as a context manager around the training.

    It is a lock of the operating system on a file in the folder, so it is released when the process
    ends, however it ends. Process 0 holds it for all processes of a run. A folder that does not
    exist is created and locked later, by `make_folder`, so that bad input leaves no folder behind.

    Args:
      workdir: the run's folder.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._descriptor = -1
        self._was_there = workdir.is_dir()

    def __enter__(self) -> "RunLock":
        self._agree(self._lock() if is_first_process() and self._was_there else "")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def make_folder(self) -> None:
        """Create and lock the folder, if it did not exist.

        Raises:
          UsageError: it cannot be created, or another training started in it meanwhile.
        """
        self._agree(self._make() if is_first_process() and not self._was_there else "")
        self._was_there = True

    def _make(self) -> str:
        """Create and lock the folder; return the reason if that fails, otherwise ""."""
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _unwritable(self._workdir, error)
        problem = self._lock()
        if not problem and any(path.name != _FILE for path in self._workdir.iterdir()):
            problem = f"another training started in {self._workdir} meanwhile. {_ADVICE}"
        return problem

    def _lock(self) -> str:
        """Lock the folder if its disk supports locks; return the reason if that fails."""
        try:
            descriptor = os.open(self._workdir / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            return _unwritable(self._workdir, error)
        try:
            import fcntl  # exists on Unix only

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            holder = holder or "just started"
            return f"another training, {holder}, uses {self._workdir}. {_ADVICE}"
        except (ImportError, OSError) as error:
            _log.warning(
                "locks do not work in %s (%s); make sure that no other training uses it.",
                self._workdir,
                error,
            )
        self._descriptor = descriptor
        with suppress(OSError):  # the name is only for messages
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{_own_name()}\n".encode())
        return ""

    def _agree(self, problem: str) -> None:
        """Raise the problem of process 0 in all processes, unless it is ""."""
        if not all_agree(not problem):
            self.__exit__(None, None, None)
            raise UsageError(problem or f"the first process could not lock {self._workdir}.")


_ADVICE = "Wait until it ends, or name another --workdir."


def _own_name() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()} since {started}"


def _unwritable(workdir: Path, error: OSError) -> str:
    return (
        f"--workdir={workdir} cannot be written ({error}). Fix its permissions, free some space, or"
        " name another folder."
    )
