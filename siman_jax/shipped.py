"""The config files that are installed with the package, and found from any folder."""

import os
from pathlib import Path

from siman_jax.errors import UsageError
from siman_jax.terminal import say

_PACKAGE = Path(__file__).parent
_FOLDER = "configs"


def find_config(path: Path) -> Path:
    """Find a config or sweep: the file itself, or the shipped one of that name.

    A shipped file is taken, and said to be, where `path` begins with "configs" and there is no such
    file in the working folder.

    Args:
      path: such as `configs/digits.py`; one's own may be anywhere.

    Raises:
      UsageError: there is no such file.

    >>> find_config(Path("configs/digit.py"))
    Traceback (most recent call last):
    siman_jax.errors.UsageError: there is no file configs/digit.py. ...
    """
    if os.path.exists(path):  # also False of names too long for the system
        return path
    inside = path.parts[:1] == (_FOLDER,) and ".." not in path.parts
    if inside and os.path.isfile(_PACKAGE / path):
        say(f"{path} is not in this folder; the one that siman_jax brings is used.")
        return _PACKAGE / path
    raise UsageError(
        f"there is no file {path}. Name one of yours, or one that siman_jax brings:"
        f" {', '.join(_shipped(path))}."
    )


def _shipped(path: Path) -> list[str]:
    """Configs to choose from; sweeps where a sweep was named."""
    sweeps = "sweeps" in path.parts
    folder = _PACKAGE / _FOLDER / ("sweeps" if sweeps else "")
    return sorted(
        str(file.relative_to(_PACKAGE)) for file in folder.glob("*.py") if file.stem != "__init__"
    )
