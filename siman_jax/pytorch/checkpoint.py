"""Reads the arrays of a PyTorch checkpoint; the only file that imports torch.

Only tensors are read and no code is run: `weights_only` refuses other Python objects.
"""

import importlib.util
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siman_jax.errors import UsageError
from siman_jax.paths import read_file

# Entries where training programs store weights; the first one present is used.
_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
# Prefixes that all names get from training on several GPUs, or from torch.compile.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged)(_|$)", re.IGNORECASE)
_MOST_BYTES = 2**34


@dataclass(frozen=True)
class State:
    """The arrays of a network from a checkpoint.

    Attributes:
      arrays: by name, without prefixes such as `module.`; floats are float32.
      entry: the entry of the checkpoint's dictionary that holds them; "" for the dictionary itself.
      averaged: names of entries that seem to hold averages of weights over training steps.
    """

    arrays: dict[str, np.ndarray]
    entry: str
    averaged: tuple[str, ...]


def read_state(path: Path, entry: str = "") -> State:
    """Read the weights from a file written by `torch.save`, in either of its formats.

    Args:
      path: file with a `state_dict`, or with a dictionary that holds one.
      entry: key in that dictionary; "" for the first of `state_dict`, `model_state_dict`, `model`
        and `net` that holds one.

    Raises:
      UsageError: torch is not installed, or the file is missing, damaged or not a checkpoint.
    """
    if not path.exists():
        raise UsageError(f"there is no file {path}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file written by torch.save.")
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "reading PyTorch files needs PyTorch; install it with\n"
            "  pip install 'siman-jax[torch]'     (from a clone: pip install -e '.[torch]')"
        )
    return find_state(_load(path), path, entry)


def find_state(content: Any, path: Path, entry: str = "") -> State:
    """Find the arrays in the content of a checkpoint; see `read_state`.

    Args:
      content: the object that was saved; tensors may also be NumPy arrays.
      path: of the file, for messages.
      entry: as for `read_state`.
    """
    content = content if isinstance(content, dict) else {}
    tables = [str(name) for name, value in content.items() if isinstance(value, dict) and value]
    if entry and entry not in tables:
        raise UsageError(
            f"{path} has no entry {entry!r} with tensors; it has {', '.join(tables) or 'none'}."
        )
    entry = entry or next((name for name in _ENTRIES if name in tables), "")
    state = content[entry] if entry else content
    if not any(hasattr(value, "shape") for value in state.values()):
        raise UsageError(
            f"{path} holds no state_dict; expected a state_dict saved by torch.save, or a"
            f" dictionary with it under one of the keys {', '.join(_ENTRIES)}. Name any other key"
            " with --entry."
        )
    wrong = [str(name) for name, value in state.items() if not hasattr(value, "shape")]
    if wrong:
        raise UsageError(
            f"{entry or 'the state_dict'} of {path} holds values that are not tensors:"
            f" {', '.join(wrong)}."
        )
    arrays = {str(name): _array(value) for name, value in state.items()}
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in arrays)), ""):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    averaged = tuple(name for name in tables if _AVERAGED.search(name) and name != entry)
    return State(arrays, entry, averaged)


def _load(path: Path) -> Any:
    import torch

    try:
        data = io.BytesIO(read_file(path, _MOST_BYTES))  # torch seeks, which a pipe does not allow
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        # A schedule computed in NumPy leaves NumPy scalars in the optimizer's settings.
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(data, map_location="cpu", weights_only=True)
    # Damage can raise any exception. torch's messages are not shown, since some recommend loading
    # the file in a way that runs code in it.
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UsageError(
                f"{path} was not loaded, since it holds a Python object that could run code:"
                f" {found[1]}. Save only its tensors:"
                " torch.save({'state_dict': model.state_dict()}, PATH)."
            ) from None
        raise UsageError(
            f"{path} is damaged or not a PyTorch checkpoint ({type(error).__name__})."
        ) from None


def _numpy_scalars() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = ("float32", "float64", "int32", "int64", "bool")
    return [np.dtype, *(type(np.dtype(kind)) for kind in kinds), *((scalar, n) for n in names)]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        array = value
    else:
        array = (value.float() if value.is_floating_point() else value).detach().numpy()
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
