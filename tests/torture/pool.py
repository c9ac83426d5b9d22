"""Runs cases in worker processes: crashes and hangs are seen from outside."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
_SECONDS_TO_START = 900
_TICK = 1.0  # seconds


class Result(NamedTuple):
    """Of one case.

    Attributes:
      case: as given: a number, or the path of a stored case.
      word: "ok", "finding" or "unavailable".
      counts: what happened, where it is ok.
      text: what was found, or why it could not be tried.
    """

    case: str
    word: str
    counts: dict[str, int]
    text: str


def run_cases(name: str, seed: int, cases: Iterable[Any]) -> Iterator[Result]:
    """Try cases of one kind one after the other; ends early where the kind is unavailable.

    Args:
      name: of the kind.
      seed: of the campaign.
      cases: numbers, or paths of stored cases.
    """
    waiting = iter(cases)
    while True:
        with Worker(name, seed) as worker:
            if worker.unavailable:
                yield Result("", "unavailable", {}, worker.unavailable)
                return
            for _ in range(worker.lifetime):
                case = next(waiting, None)
                if case is None:
                    return
                answer = worker.ask(str(case))
                yield Result(
                    str(case), answer["word"], answer.get("counts", {}), answer.get("text", "")
                )
                if answer["word"] == "finding" and worker.ended:
                    break


class Worker:
    """A process that tries cases; use it as a context manager.

    Args:
      name: of the kind.
      seed: of the campaign.
      environment: variables to set.
      tree: folder to run in.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        environment: Mapping[str, str] | None = None,
        tree: Path = REPOSITORY,
    ) -> None:
        self._name, self._seed, self._tree = name, seed, tree
        self._environment = {**_environment(), **(environment or {})}
        self.ended = False

    def __enter__(self) -> "Worker":
        self._scratch = tempfile.mkdtemp(prefix="torture-")
        self._errors = (Path(self._scratch) / "stderr").open("w+b")
        (Path(self._scratch) / "work").mkdir()
        line = [sys.executable, "-m", "tests.torture.worker", self._name, str(self._seed)]
        self._process = subprocess.Popen(
            [*line, f"{self._scratch}/work"],
            cwd=self._tree,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._buffer = b""
        hello = self._read(_SECONDS_TO_START)
        if hello["word"] == "finding":
            raise RuntimeError(f"cannot start {self._name}: {hello['text']}")
        self.unavailable = hello["text"] if hello["word"] == "unavailable" else ""
        self.seconds, self.lifetime = hello.get("seconds", 0), hello.get("lifetime", 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def ask(self, case: str) -> dict[str, Any]:
        """Try a case and wait for what comes of it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has crashed: what it said tells
            self._process.stdin.write(f"{case}\n".encode())
            self._process.stdin.flush()
        return self._read(self.seconds)

    def _read(self, seconds: int) -> dict[str, Any]:
        """The next line, or a finding of a crash or a hang.

        Time is counted in ticks of this process, so that a machine that was asleep hangs nothing.
        """
        assert self._process.stdout is not None
        for _ in range(int(seconds / _TICK)):
            if b"\n" in self._buffer:
                break
            if not select.select([self._process.stdout], [], [], _TICK)[0]:
                continue
            read = os.read(self._process.stdout.fileno(), 1 << 20)
            if not read:
                self.ended = True
                status = self._process.wait()
                return {"word": "finding", "text": f"crash: status {status}\n{self._said()}"}
            self._buffer += read
        if b"\n" not in self._buffer:
            self._end()
            self.ended = True
            return {"word": "finding", "text": f"hang: over {seconds} s\n{self._said()}"}
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _said(self) -> str:
        """The end of its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(size - 6000, 0))
        return self._errors.read().decode(errors="replace")

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _environment() -> dict[str, str]:
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONFAULTHANDLER": "1",
    }
