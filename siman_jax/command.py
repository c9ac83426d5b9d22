"""Start a command: read its flags, run it, and report errors."""

import logging
import os
import signal
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from siman_jax.config_flag import check_field_flags, with_found_configs
from siman_jax.errors import UsageError
from siman_jax.native.library import keep_freed_memory
from siman_jax.outside import describe
from siman_jax.stop import EXIT_CODE, Preempted
from siman_jax.terminal import accept_any_text, say, shown

# Name that ml_collections gives to the module that it loads from the file of --config.
_CONFIG_MODULE = "config_config"
# Exit status of a program that writes to a closed pipe (128 + SIGPIPE), as shells report it.
CLOSED_PIPE = 141


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command and exit with its status.

    The status is 0 on success, 2 for a `UsageError`, which is printed as `error: ...`, 75 for
    `Preempted`, 130 for Ctrl-C that the command does not handle, and 141, silently, when nobody
    reads the output any more, as in `| head`.
    """

    def start(argv: list[str]) -> None:
        _log_plainly()  # after absl has set up its own log
        keep_freed_memory()
        main(argv)

    flags.FLAGS.set_gnu_getopt(True)  # flags may follow other arguments
    accept_any_text()
    try:
        try:
            app.run(start, flags_parser=parse_flags)
        except UsageError as error:
            say(f"error: {error}")
            sys.exit(2)
        except Preempted as stop:
            say(f"{stop}; run the same command to continue from there.")
            sys.exit(EXIT_CODE)
        except KeyboardInterrupt:
            say("stopped by Ctrl-C.")
            sys.exit(128 + signal.SIGINT)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # otherwise Python flushes at exit, and prints an error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)


def lock_config(config: ConfigDict) -> ConfigDict:
    """Split the values of `--config.FIELD=a,b` at commas, and refuse new fields from now on.

    Raises:
      UsageError: the config's file could not be loaded, or gave no config.
    """
    try:
        if not isinstance(config, ConfigDict):
            raise UsageError(
                f"get_config() of the file that --config names returned {type(config).__name__};"
                " expected an ml_collections.ConfigDict, as from configs/digits.py."
            )
        _split_commas(config)
        config.lock()
    except OSError as error:  # a file that cannot be loaded raises at its first use
        raise UsageError(str(error)) from error
    return config


def load_variant(variant: str) -> ConfigDict:
    """Load another variant of the file that --config names, with the fields that flags set.

    Raises:
      UsageError: the file has no such variant, or one without a field that a flag sets.
    """
    flag = flags.FLAGS["config"]
    file = config_flags.get_config_filename(flag)
    try:
        config = flag.parser.parse(f"{file}:{variant}")
        config.lock().update_from_flattened_dict(config_flags.get_override_values(flag))
    except Exception as error:  # the file may raise any error
        cause = _cause(error)
        if isinstance(cause, UsageError):
            raise cause from None
        raise UsageError(
            f"cannot use --config={file}:{variant}: {describe(cause, _CONFIG_MODULE)}."
        ) from None
    return lock_config(config)


def _split_commas(config: ConfigDict) -> None:
    """Replace `("a,b",)`, which `--config.FIELD=a,b` gives, by `("a", "b")` in all tuples.

    `("",)`, which `--config.FIELD=` gives, becomes the empty tuple.
    """
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _split_commas(value)
        elif value == ("",):
            config[name] = ()
        elif isinstance(value, tuple):
            config[name] = tuple(
                part
                for item in value
                for part in (map(str.strip, item.split(",")) if isinstance(item, str) else [item])
            )


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags in `argv` and return the other arguments.

    Raises:
      UsageError: a flag or config field is unknown, or its value cannot be used.
    """
    argv = with_found_configs([_expand_home(argument) for argument in argv])
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # --help prints, and then exits with status 1
        sys.exit(0)
    except Exception as error:  # errors of flags, and anything that a config file raises
        cause = _cause(error)
        if isinstance(cause, UsageError):  # raised by get_config and wrapped twice
            raise cause from None
        check_field_flags(argv, error)
        if not isinstance(error, flags.Error) or "Traceback" in str(error):
            given = " ".join(arg for arg in argv if arg.startswith("--config"))
            if isinstance(cause, AttributeError) and "'get_config'" in str(cause):
                raise UsageError(
                    f"the file of {given} defines no get_config(); expected a function that returns"
                    " an ml_collections.ConfigDict, as in configs/digits.py."
                ) from None
            raise UsageError(f"cannot use {given}: {describe(cause, _CONFIG_MODULE)}.") from None
        raise UsageError(f"{error} (--help lists the flags)") from None


def _cause(error: BaseException) -> BaseException:
    """The first error of those that led to this one."""
    while error.__context__:
        error = error.__context__
    return error


def _expand_home(argument: str) -> str:
    """Expand the `~` in `--NAME=~/...`, which shells do not expand."""
    flag, equals, value = argument.partition("=")
    return flag + equals + os.path.expanduser(value) if flag.startswith("-") else argument


def _log_plainly() -> None:
    """Show this package's log messages, without absl's prefixes; hide those of other libraries."""
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
