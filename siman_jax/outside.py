"""Import functions outside this package by name: PACKAGE.MODULE:FUNCTION."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from siman_jax.errors import UsageError


def is_outside(name: str) -> bool:
    """Whether `name` names a function outside this package."""
    return ":" in name


def find_function(name: str, field: str, known: Iterable[str]) -> Callable[..., Any]:
    """Import a function from Python's search path or the working folder.

    Args:
      name: "PACKAGE.MODULE:FUNCTION".
      field: the config field that names it, for messages.
      known: other values that the field may have, for messages.

    Raises:
      UsageError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # `python -m` adds it, an installed command does not
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"--config.{field} is {name!r}, but importing {module_name or 'nothing'} failed:"
            f" {error}. Write PACKAGE.MODULE:FUNCTION and run the command where Python finds the"
            f" package, or choose one of: {', '.join(sorted(known))}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = sorted(
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        )
        raise UsageError(
            f"{module_name} has no function {function_name!r}; it has:"
            f" {', '.join(names) or 'none'}."
        )
    return function


def check_takes(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> None:
    """Check that a function has parameters for the arguments that it will be given.

    Args:
      function: from `find_function`.
      name: of the function, for messages.
      *args: the arguments.
      **kwargs: those that are given by keyword.

    Raises:
      UsageError: it has too few or too many parameters.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [type(value).__name__ for value in args] + [f"{key}=..." for key in kwargs]
        raise UsageError(
            f"{name}{signature} cannot be called with ({', '.join(given)}): {error}. Change its"
            " parameters."
        ) from error
