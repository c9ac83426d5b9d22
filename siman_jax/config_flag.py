"""The flags --config=FILE and --config.FIELD=VALUE: find the file, and explain errors."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from siman_jax.errors import UsageError
from siman_jax.field_names import expected, find_field
from siman_jax.paths import local_path
from siman_jax.shipped import find_config


def with_found_configs(argv: Sequence[str]) -> list[str]:
    """Replace FILE in `--config=FILE:VARIANT` by the path that `find_config` finds.

    Raises:
      UsageError: there is no such file, or it is an address.
    """
    found = list(argv)
    for index, start, value in _configs(argv):
        file, colon, variant = value.partition(":")
        if file:
            local_path(value, "--config")  # refuse addresses, which contain a colon too
            found[index] = f"{start}{find_config(Path(file))}{colon}{variant}"
    return found


def check_field_flags(argv: Sequence[str], error: Exception) -> None:
    """Explain the flag --config.FIELD=VALUE that could not be parsed.

    Args:
      argv: the command's arguments, from `with_found_configs`.
      error: the error of parsing.

    Raises:
      UsageError: a field is unknown, or its value has a wrong type.
    """
    config = None
    for _, _, value in _configs(argv):
        try:
            config = flags.FLAGS["config"].parser.parse(value)
        except Exception:  # the config file itself fails, so no field is at fault
            return
    if not isinstance(config, ConfigDict):
        return
    given = {}
    for argument in argv:
        if match := re.match(r"--?config\.([^=]+)", argument):
            find_field(config, match[1])
            given[match[1]] = argument
    if match := re.match(r"flag --config\.([\w.]+)=", str(error)):
        field, value = match[1], find_field(config, match[1])
        if isinstance(value, ConfigDict):
            names = ", ".join(f"--config.{field}.{name}" for name in sorted(value))
            raise UsageError(f"{field} is a section; set one of its fields: {names}.")
        raise UsageError(f"{given[field]}: {expected(value)}.")


def _configs(argv: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Find the names of configs: the index in `argv`, the text before the name, and the name."""
    for index, argument in enumerate(argv):
        if argument in ("--config", "-config") and index + 1 < len(argv):
            yield index + 1, "", argv[index + 1]
        elif match := re.match(r"--?config=", argument):
            yield index, match[0], argument[match.end() :]
