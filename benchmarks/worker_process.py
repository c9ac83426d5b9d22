"""A worker process of a benchmark: it answers each line of JSON on its input with another.

Runs on Python 3.10 too, which Larq Compute Engine needs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


class WorkerError(Exception):
    """A worker that cannot run here, and why."""


class WorkerProcess:
    """The benchmark's end of a worker process on the CPU.

    Args:
      command: starts the process.
      install: how to install its packages, for error messages.
      log: file for its standard error.
      variables: environment variables in addition to the benchmark's own.
      folder: where the process starts, which is where it imports `benchmarks` from.
    """

    def __init__(
        self,
        command: list[str],
        *,
        install: str,
        log: Path,
        variables: dict[str, str],
        folder: Path = REPOSITORY,
    ) -> None:
        self._install, self._log = install, log
        with log.open("a") as file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def answer(self) -> dict:
        """Wait for the next answer.

        Raises:
          WorkerError: the worker lacks packages, or has failed.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": "the process ended without an answer"}
        if "missing" in answer:
            raise WorkerError(f"not installed: {self._install} ({answer['missing']})")
        if "failed" in answer:
            tail = " | ".join(self._log.read_text().splitlines()[-3:])
            raise WorkerError(f"failed: {answer['failed']} ({tail})"[:1000])
        return answer

    def ask(self, command: str, **arguments: object) -> dict:
        """Send a request, and wait for its answer."""
        assert self._process.stdin
        request = json.dumps({"command": command, **arguments})
        with suppress(BrokenPipeError):  # the answer says why
            print(request, file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process.wait()


@contextmanager
def answering() -> Iterator[Callable[..., None]]:
    """Yield the function that answers, in the worker; errors are answered too.

    Libraries then print to standard error, so that the pipe carries only answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        yield answer
    except ModuleNotFoundError as error:
        answer(missing=str(error))
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {error}")
        raise


def answer_requests(worker: Any, answer: Callable[..., None]) -> None:
    """Answer requests by calling the methods of `worker`, until the pipe closes."""
    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer(**getattr(worker, request.pop("command"))(**request))
