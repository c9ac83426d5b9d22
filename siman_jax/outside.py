"""Import and call functions outside this package by name: PACKAGE.MODULE:FUNCTION."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from siman_jax.errors import UsageError, first_line


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
      UsageError: the module is not found or fails, or it has no such function.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # `python -m` adds it, an installed command does not
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything
        start = f"--config.{field} is {name!r}, but importing {module_name or 'nothing'} failed:"
        if isinstance(error, SyntaxError) or _last_line(error, name):
            raise UsageError(f"{start} {describe(error, name)}. Fix the module.") from error
        raise UsageError(
            f"{start} {first_line(error)}. Write PACKAGE.MODULE:FUNCTION and run the command where"
            f" Python finds the package, or choose one of: {', '.join(sorted(known))}."
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


def call_function(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function, and say what is wrong if it fails.

    Args:
      function: from `find_function`.
      name: its name, "PACKAGE.MODULE:FUNCTION".
      *args: its arguments.
      **kwargs: those that are given by keyword.

    Raises:
      UsageError: it has too few or too many parameters, or it raises an error.
    """
    _check_takes(function, name, args, kwargs)
    try:
        return function(*args, **kwargs)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a function may raise anything
        raise UsageError(f"{name} failed: {describe(error, name)}. Fix the function.") from error


def describe(error: BaseException, name: str) -> str:
    """Describe an error that code of others raised: its type, its message, and the line.

    Args:
      error: the error, as it was caught.
      name: of the function or module that failed: "PACKAGE.MODULE:FUNCTION" or "PACKAGE.MODULE".
    """
    text = first_line(error).rstrip(".")
    kind = type(error).__name__
    # The text of a SyntaxError holds the line.
    line = "" if isinstance(error, SyntaxError) else _last_line(error, name)
    return (text if text == kind else f"{kind}: {text}") + (f" ({line})" if line else "")


def parameters_of(function: Callable[..., Any], name: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function by name.

    Raises:
      UsageError: they cannot be found out, as for some functions written in C.
    """
    try:
        return inspect.signature(function).parameters
    except ValueError as error:
        raise UsageError(
            f"the parameters of {name} cannot be found out; write a function in Python that calls"
            " it."
        ) from error


def _last_line(error: BaseException, name: str) -> str:
    """Return the last line that ran of the function's package, such as "my_data.py, line 12"."""
    package = name.partition(":")[0].partition(".")[0]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == package:
            return f"{Path(frame.f_code.co_filename).name}, line {line}"
    return ""


def _check_takes(function: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> None:
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
