"""How every command of the project starts, reads its flags and says what was wrong with them."""

import logging
import os
import signal
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict

from siman_jax.errors import UsageError
from siman_jax.native.library import keep_freed_memory
from siman_jax.stop import EXIT_CODE, Preempted
from siman_jax.terminal import accept_any_text, say, shown

# What a shell says of a program that a closed pipe ended (128 + SIGPIPE).
CLOSED_PIPE = 141


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command, which ends with status 0, or as the errors that it raises say.

    `UsageError`: 2, after `error: ...`; `Preempted`: 75, since the same command goes on; Ctrl-C,
    where the command does not handle it: 130. Output that nobody reads any more, as in `| head`,
    ends it with 141 and without a word.
    """

    def start(argv: list[str]) -> None:
        _log_plainly()  # absl sets up its own log before
        keep_freed_memory()
        main(argv)

    flags.FLAGS.set_gnu_getopt(True)  # flags may follow what is no flag
    accept_any_text()
    try:
        try:
            app.run(start, flags_parser=parse_flags)
        except UsageError as error:
            say(f"error: {error}")
            sys.exit(2)
        except Preempted as stop:
            say(f"{stop}; the same command goes on from there.")
            sys.exit(EXIT_CODE)
        except KeyboardInterrupt:
            say("stopped by Ctrl-C.")
            sys.exit(128 + signal.SIGINT)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # else Python does so at its end, and complains
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)


def lock_config(config: ConfigDict) -> ConfigDict:
    """Read what flags set in fields that hold several values, and refuse new fields from here on.

    Raises:
      UsageError: the config's file could not be loaded.
    """
    try:
        _split_commas(config)
        config.lock()
    except OSError as error:  # a file that could not be loaded says so at its first use
        raise UsageError(str(error)) from error
    return config


def _split_commas(config: ConfigDict) -> None:
    """Make two names of the one in `("a,b",)`, in every field that holds a tuple.

    That is what the flag `--config.FIELD=a,b` gives.
    """
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _split_commas(value)
        elif isinstance(value, tuple):
            config[name] = tuple(
                part
                for item in value
                for part in (map(str.strip, item.split(",")) if isinstance(item, str) else [item])
            )


def parse_flags(argv: list[str]) -> list[str]:
    """Set the flags that `argv` holds and return the rest of it.

    Raises:
      UsageError: a flag or a field of a config is unknown, or its value is of no use.
    """
    try:
        return flags.FLAGS([_expand_home(argument) for argument in argv])
    except SystemExit:  # --help and its kin print, and then end with status 1
        sys.exit(0)
    except Exception as error:  # the flags' own errors, and whatever a config file raises
        cause: BaseException = error
        while cause.__context__:
            cause = cause.__context__
        if isinstance(cause, UsageError):  # raised by get_config, wrapped twice since
            raise cause from None
        if isinstance(cause, KeyError):  # the error in hand knows the nearest field
            raise UsageError(f"unknown config field {_text(error)}") from None
        if not isinstance(error, flags.Error) or "Traceback" in str(error):
            given = " ".join(arg for arg in argv if arg.startswith("--config"))
            raise UsageError(f"cannot use {given}: {cause}") from None
        raise UsageError(f"{error} (--help lists the flags)") from None


def _expand_home(argument: str) -> str:
    """Expand the `~` of `--NAME=~/...`, which shells leave as it is."""
    flag, equals, value = argument.partition("=")
    return flag + equals + os.path.expanduser(value) if flag.startswith("-") else argument


def _text(error: object) -> str:
    while isinstance(error, BaseException) and error.args:
        error = error.args[0]
    return ". ".join(str(error).splitlines())


def _log_plainly() -> None:
    """Show what this package reports, without absl's prefixes and other libraries' chatter."""
    logging.getLogger().setLevel(logging.WARNING)
    logger = logging.getLogger("siman_jax")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.propagate = False


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record), keep="\n\t")
