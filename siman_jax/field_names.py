"""Fields of a config by dotted names, such as "model.width", and the types of their values."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from siman_jax.errors import UsageError

WHOLE, NUMBER, TEXT, BOOL, LIST = "a whole number", "a number", "a text", "True or False", "a list"
NUMBERS = "a list of numbers"
# Fields that may name a run, to start or to learn from.
RUN_FIELDS = ("init_from", "distillation.teacher")
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, BOOL),  # before int, of which bool is one
    (int, WHOLE),
    (float, NUMBER),
    (str, TEXT),
    ((tuple, list), LIST),
)


def find_field(config: ConfigDict, name: str) -> Any:
    """Look up a field by its dotted name.

    Args:
      config: a config.
      name: dotted name, such as "model.width".

    Raises:
      UsageError: there is no such field; the message suggests the nearest one, or lists the fields
        of the section.

    >>> config = ConfigDict({"epochs": 3, "model": {"width": 16, "name": "small"}})
    >>> find_field(config, "model.width")
    16
    >>> find_field(config, "model.rule")
    Traceback (most recent call last):
    siman_jax.errors.UsageError: unknown config field 'model.rule'. model has: ...
    """
    value: Any = config
    prefix = ""
    for part in name.split("."):
        if not isinstance(value, ConfigDict):
            raise UsageError(
                f"unknown config field {name!r}: {prefix[:-1]} is {value!r}, which has no fields."
            )
        if part not in value:
            raise UsageError(f"unknown config field {name!r}{_hint(config, value, prefix, part)}")
        value = value[part]
        prefix += f"{part}."
    return value


def expected(value: Any) -> str:
    """Describe the type of a field's value, with the value as an example.

    >>> expected(16)
    'it must be a whole number, such as 16'
    """
    for types, kind in _KINDS:
        if isinstance(value, types):
            return f"it must be {kind}, such as {value!r}"
    return f"it must be of the type of {value!r}"


def _hint(config: ConfigDict, section: ConfigDict, prefix: str, name: str) -> str:
    """Suggest a similar field, a field of that name in another section, or list all fields."""
    for near in difflib.get_close_matches(name, section, n=1):
        return f"; did you mean {prefix + near!r}?"
    for other, fields in config.items():
        if isinstance(fields, ConfigDict) and name in fields:
            return f"; did you mean '{other}.{name}'?"
    names = ", ".join(f"{prefix}{field}" for field in sorted(section))
    return f". {prefix[:-1] or 'The config'} has: {names}."
