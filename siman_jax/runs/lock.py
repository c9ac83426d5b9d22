"""One training at a time in a run's folder."""

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
    """Keeps other trainings out of a run's folder; use it as a context manager around the training.

    The lock is the system's, on a file in the folder: it goes with the process that holds it,
    however that ends. The first process holds it for all of a run. A folder that is not there yet
    is locked by `make_folder`, since a training that is refused should leave none behind.

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
        """Make and lock the folder, if it was not there.

        Raises:
          UsageError: it cannot be made, or another training began in it meanwhile.
        """
        self._agree(self._make() if is_first_process() and not self._was_there else "")
        self._was_there = True

    def _make(self) -> str:
        """The reason why it cannot be made and locked, "" if it was."""
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _unwritable(self._workdir, error)
        problem = self._lock()
        if not problem and any(path.name != _FILE for path in self._workdir.iterdir()):
            problem = f"another training began in {self._workdir} meanwhile. {_ADVICE}"
        return problem

    def _lock(self) -> str:
        """The reason why it cannot be locked, "" if it was or locks do not work there."""
        try:
            descriptor = os.open(self._workdir / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            return _unwritable(self._workdir, error)
        try:
            import fcntl  # which only Unix has

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            return f"another training, {holder or 'just begun'}, uses {self._workdir}. {_ADVICE}"
        except (ImportError, OSError) as error:
            _log.warning(
                "locks do not work in %s (%s): see to it that no other training uses it.",
                self._workdir,
                error,
            )
        self._descriptor = descriptor
        with suppress(OSError):  # the name is for messages alone
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{_own_name()}\n".encode())
        return ""

    def _agree(self, problem: str) -> None:
        """Raise in all processes what the first one found."""
        if not all_agree(not problem):
            self.__exit__(None, None, None)
            raise UsageError(problem or f"the first process could not lock {self._workdir}.")


_ADVICE = "Wait for its end, or name another --workdir."


def _own_name() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()} since {started}"


def _unwritable(workdir: Path, error: OSError) -> str:
    return (
        f"--workdir={workdir} cannot be written ({error}). Name another folder, mend its"
        " permissions, or make room."
    )
