"""Functions outside this package, imported by their names: PACKAGE.MODULE:FUNCTION."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from siman_jax.errors import UsageError


def is_outside(name: str) -> bool:
    """Whether `name` is that of a function outside this package."""
    return ":" in name


def find_function(name: str, field: str, known: Iterable[str]) -> Callable[..., Any]:
    """Import a function, from where Python finds modules or from the working folder.

    Args:
      name: "PACKAGE.MODULE:FUNCTION".
      field: of the config that names it, for messages.
      known: names that the field may have instead.

    Raises:
      UsageError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` has it, but not an installed command
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"--config.{field} is {name!r}, but importing {module_name or 'nothing'} failed:"
            f" {error}. Name a function as PACKAGE.MODULE:FUNCTION, and start where Python finds"
            f" the package; or choose one of: {', '.join(sorted(known))}."
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
