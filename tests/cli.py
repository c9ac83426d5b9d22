"""Commands of the project, called in the tests' own process or as a user calls them."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from absl.testing import flagsaver

from siman_jax.command import parse_flags

REPOSITORY = Path(__file__).parent.parent
# Of a training on the digits that compiles fast: five binary convolutions.
TINY = [
    "--config=configs/digits.py",
    "--config.model.name=cifar.vgg_small_1w1a",
    "--config.model.width=4",
    "--config.batch_size=256",
    "--config.eval_batch_size=100",
]


def call(main, *arguments):
    """Do what a command does between reading its flags and printing its errors."""
    with flagsaver.flagsaver():
        flags.FLAGS.set_gnu_getopt(True)
        main(parse_flags(["command", *map(str, arguments)]))


def run(module, *arguments, **options):
    """Run a command in a process of its own; nothing of its output is lost."""
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
