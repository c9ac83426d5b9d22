"""Arrays of a PyTorch checkpoint, the only file that knows torch.

Tensors are read and nothing is run: `weights_only` refuses other Python objects.
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

# Entries that training programs keep weights in; the first that is there is taken.
_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
# Of every name, where several GPUs trained, or torch.compile made the network.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged)(_|$)", re.IGNORECASE)
_MOST_BYTES = 2**34


@dataclass(frozen=True)
class State:
    """Arrays of a network, as a checkpoint holds them.

    Attributes:
      arrays: by name, floats in float32, without prefixes such as `module.`.
      entry: of the checkpoint's dictionary that they are in; "" where they are the dictionary.
      averaged: entries that hold averages of weights over training steps, by their names.
    """

    arrays: dict[str, np.ndarray]
    entry: str
    averaged: tuple[str, ...]


def read_state(path: Path, entry: str = "") -> State:
    """Read the weights of a file that `torch.save` wrote, in either of its formats.

    Args:
      path: of a `state_dict`, or of a dictionary that holds one.
      entry: of that dictionary; "" for the first of `state_dict`, `model_state_dict`, `model` and
        `net` that holds one.

    Raises:
      UsageError: torch is not installed, or the file is no such checkpoint.
    """
    if not path.exists():
        raise UsageError(f"there is no file {path}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file that torch.save wrote.")
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "reading PyTorch's files needs PyTorch:\n"
            "  pip install 'siman-jax[torch]'     (from a clone: pip install -e '.[torch]')"
        )
    return find_state(_load(path), path, entry)


def find_state(content: Any, path: Path, entry: str = "") -> State:
    """Find the arrays in what a checkpoint holds; see `read_state`.

    Args:
      content: what was saved; tensors may be NumPy arrays as well.
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
            f"{path} holds no state_dict; expected what torch.save made of a state_dict, or of a"
            f" dictionary with one of the keys {', '.join(_ENTRIES)}. --entry names another."
        )
    wrong = [str(name) for name, value in state.items() if not hasattr(value, "shape")]
    if wrong:
        raise UsageError(
            f"{entry or 'the state_dict'} of {path} holds values that are no tensors:"
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
        data = io.BytesIO(read_file(path, _MOST_BYTES))  # torch moves about in it, not so in a pipe
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        # A schedule computed in NumPy leaves its scalars among the optimiser's settings.
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(data, map_location="cpu", weights_only=True)
    # torch raises whatever damage leads to. Its own words are not passed on: some advise to load
    # the file in a way that runs whatever code is in it.
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UsageError(
                f"{path} holds Python objects beside tensors and numbers, which could run code:"
                f" {found[1]}. It is not loaded. Whoever made it can save its tensors alone:"
                " torch.save({'state_dict': model.state_dict()}, PATH)."
            ) from None
        raise UsageError(
            f"{path} is no PyTorch checkpoint, or damaged ({type(error).__name__})."
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
