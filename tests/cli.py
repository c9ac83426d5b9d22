"""Call the project's commands, in the test's process or in a new one."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from absl.testing import flagsaver

from siman_jax.command import parse_flags

REPOSITORY = Path(__file__).parent.parent
# Flags of a training on the digits that compiles fast, with five binary convolutions.
TINY = [
    "--config=configs/digits.py",
    "--config.model.name=cifar.vgg_small_1w1a",
    "--config.model.width=4",
    "--config.batch_size=256",
    "--config.eval_batch_size=100",
]


def call(main, *arguments):
    """Run a command in this process; errors are raised, not printed."""
    with flagsaver.flagsaver():
        flags.FLAGS.set_gnu_getopt(True)
        main(parse_flags(["command", *map(str, arguments)]))


def run(module, *arguments, **options):
    """Run a command in a new process, and capture its output."""
    return subprocess.run(
        [sys.executable, "-m", f"siman_jax.{module}", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        **{"text": True, **options},
    )


@contextlib.contextmanager
def started(line, **options) -> Iterator[subprocess.Popen]:
    """A process; it is waited for, but where a test fails it is killed instead."""
    with subprocess.Popen(line, cwd=REPOSITORY, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
