"""Find the config files that are installed with the package, from any folder."""

import os
from pathlib import Path

from siman_jax.errors import UsageError
from siman_jax.terminal import say

_PACKAGE = Path(__file__).parent
_FOLDER = "configs"


def find_config(path: Path) -> Path:
    """Find a config or sweep: the file itself, or the shipped file of that name.

    The shipped file is used, with a message, if `path` begins with "configs" and there is no such
    file in the working folder.

    Args:
      path: path of a file, such as `configs/digits.py`; your own files may be anywhere.

    Raises:
      UsageError: there is no such file.

    >>> find_config(Path("configs/digit.py"))
    Traceback (most recent call last):
    siman_jax.errors.UsageError: there is no file configs/digit.py. ...
    """
    if os.path.exists(path):  # False for names that are too long, too
        return path
    inside = path.parts[:1] == (_FOLDER,) and ".." not in path.parts
    if inside and os.path.isfile(_PACKAGE / path):
        say(f"{path} is not in this folder; using the one shipped with siman_jax.")
        return _PACKAGE / path
    raise UsageError(
        f"there is no file {path}. Name your own file, or one shipped with siman_jax:"
        f" {', '.join(_shipped(path))}."
    )


def _shipped(path: Path) -> list[str]:
    """List the shipped configs, or the shipped sweeps if a sweep was named."""
    sweeps = "sweeps" in path.parts
    folder = _PACKAGE / _FOLDER / ("sweeps" if sweeps else "")
    return sorted(
        str(file.relative_to(_PACKAGE)) for file in folder.glob("*.py") if file.stem != "__init__"
    )
