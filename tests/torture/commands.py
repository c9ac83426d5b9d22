"""Commands in processes forked from one that has imported everything: each starts in a second.

The process that forks must not have used JAX, whose threads a fork would lose.
"""

import contextlib
import ctypes
import gc
import os
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .case import Finding

REPOSITORY = Path(__file__).parent.parent.parent
TINY = "cifar.tiny_1w1a"  # a network of one block, which builds faster than any that is published
# Of tiny trainings: three epochs of two steps.
_TRAINING = [
    *(f"--config.model.name={TINY}", "--config.model.width=4"),
    *("--config.eval_batch_size=60", "--config.epochs=3", "--config.keep_checkpoints=2"),
    "--config.native=False",  # which builds faster
]
IN_MEMORY = [
    *("main", "--config=configs/digits.py", *_TRAINING),
    *("--config.batch_size=32", "--config.data.train_examples=64"),
]
_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}


def prepare(scratch: Path) -> None:
    """Import what commands need, and let all of them share what is compiled."""
    import cv2  # noqa: F401
    import grain  # noqa: F401
    import jax
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboardX  # noqa: F401

    import siman_jax.analysis.measures
    import siman_jax.packed.model
    import siman_jax.report.page
    import siman_jax.runs.sweep_plan
    import siman_jax.runs.train  # noqa: F401
    from siman_jax.models import NETWORKS, cifar

    NETWORKS[TINY] = lambda *arguments, **options: cifar.resnet20_1w1a(*arguments, **options).clone(
        stages=(1,)
    )
    jax.config.update("jax_compilation_cache_dir", str(scratch / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.chdir(REPOSITORY)
    gc.freeze()


class Trap:
    """Sends a signal to a command, at a moment that is a place in its work or a time.

    Args:
      number: of the signal.
      folder: whose files are watched.
      event: at so manieth opening, making, renaming or removal of a file there; 0: at a time.
      delay: seconds after that, or after the start.
    """

    def __init__(self, number: int, folder: Path, event: int, delay: float) -> None:
        self.number, self.folder, self.event, self.delay = number, str(folder), event, delay
        self.count = 0

    def set(self) -> None:
        """Set it in this process, which it may end."""
        if not self.event:
            self._spring_later()
        sys.addaudithook(self._count)

    def _count(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in _EVENTS or not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.event:
            if self.delay:
                self._spring_later()
            else:
                os.kill(os.getpid(), self.number)

    def _spring_later(self) -> None:
        def spring() -> None:
            time.sleep(self.delay)
            os.kill(os.getpid(), self.number)

        threading.Thread(target=spring, daemon=True).start()


def start(words: Sequence[str], output: Path, trap: Trap | None = None) -> int:
    """Start `python -m siman_jax.WORDS`, whose output goes to a file; its process's number."""
    return fork(lambda: _run_command(words), output, trap)


def fork(function: Callable[[], None], output: Path, trap: Trap | None = None) -> int:
    """Call a function in a process of its own, in a new session; its process's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        _die_with_parent()
        null, file = (
            os.open(os.devnull, os.O_RDONLY),
            os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        )
        os.dup2(null, 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, closefd=False)  # noqa: SIM115
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        if trap:
            trap.set()
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        if trap:
            output.with_suffix(".events").write_text(str(trap.count))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _end_threads()
        os._exit(status)
    raise AssertionError


def wait(process: int) -> int:
    """Exit status of a process, negative where a signal ended it; what it left running is ended."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    return status


def finish(words: Sequence[str], output: Path) -> None:
    """Run a command to its end.

    Raises:
      Finding: its status is not 0.
    """
    status = wait(start(words, output))
    if status:
        raise Finding(f"the same command ends with {status}:\n{tail(output)}")


def tail(output: Path) -> str:
    """The end of a command's output."""
    return output.read_text(errors="replace")[-4000:]


def _run_command(words: Sequence[str]) -> None:
    module, *arguments = words
    sys.argv = [module, *arguments]
    runpy.run_module(f"siman_jax.{module}", run_name="__main__", alter_sys=True)


def _die_with_parent() -> None:
    """So that no command outlives the worker that started it."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _end_threads() -> None:
    """Run what Python would have run at its end, such as the closing of pools."""
    import atexit

    threading._shutdown()
    atexit._run_exitfuncs()


def empty(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
