"""Errors caused by bad input; messages say how to fix them."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UsageError(ValueError):
    """Bad input: a flag, a config, a file or data that cannot be used.

    The message says what was wrong, what was expected and what to do. The command line prints
    it without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """First line of an error's message; the name of its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def on_one_line(error: object) -> str:
    """An error's message with its lines joined to one."""
    return ". ".join(str(error).splitlines())


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """Return `table[name]`.

    Args:
      table: the choices by name.
      name: the choice that was asked for.
      what: what is being chosen, for the message, such as "weight rule".

    Raises:
      UsageError: `name` is not in `table`; the message lists the names and suggests the nearest.

    >>> choose({"half_half": 1}, "half_hlaf", "weight rule")
    Traceback (most recent call last):
    siman_jax.errors.UsageError: unknown weight rule 'half_hlaf'; did you mean 'half_half'? ...
    """
    if name in table:
        return table[name]
    import difflib  # late: a model loads sooner without it

    nearest = difflib.get_close_matches(str(name), table, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise UsageError(f"unknown {what} {name!r}{hint} Choose one of: {', '.join(sorted(table))}.")
