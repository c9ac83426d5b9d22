"""Arrays of a PyTorch checkpoint, the only file that knows torch.

Tensors are read and nothing is run: `weights_only` refuses other Python objects.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from siman_jax.errors import UsageError

_PREFIX = "module."  # of every name, where several GPUs trained


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Read the `state_dict` of a file that `torch.save` wrote, in either of its formats.

    Args:
      path: of a dictionary that holds `state_dict`, or of a `state_dict` itself.

    Returns:
      Arrays by name, floats in float32; the prefix `module.` is taken off.

    Raises:
      UsageError: torch is not installed, or the file is no such checkpoint.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "reading PyTorch's files needs PyTorch:\n"
            "  pip install 'siman-jax[torch]'     (from a clone: pip install -e '.[torch]')"
        )
    return named_arrays(_load(path), path)


def named_arrays(content: Any, path: Path) -> dict[str, np.ndarray]:
    """Find the arrays in what a checkpoint holds; see `read_state`.

    Args:
      content: what was saved; tensors may be NumPy arrays as well.
      path: of the file, for messages.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise UsageError(
            f"{path} holds no state_dict; expected what torch.save made of a dictionary with the"
            " key 'state_dict', or of a state_dict."
        )
    wrong = [str(name) for name, value in state.items() if not hasattr(value, "shape")]
    if wrong:
        raise UsageError(
            f"the state_dict of {path} holds values that are no tensors: {', '.join(wrong)}."
        )
    arrays = {str(name): _array(value) for name, value in state.items()}
    if all(name.startswith(_PREFIX) for name in arrays):
        arrays = {name.removeprefix(_PREFIX): array for name, array in arrays.items()}
    return arrays


def _load(path: Path) -> Any:
    import torch

    try:
        # A schedule computed in NumPy leaves its scalars among the optimiser's settings.
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is no PyTorch checkpoint, is damaged, or holds Python objects beside tensors"
            f" and numbers, which could run code: {_first_line(error)}\nWhere you trust it, load it"
            " in PyTorch and save its tensors alone: torch.save({'state_dict': ...})."
        ) from error
    except Exception as error:  # torch raises whatever damage leads to
        raise UsageError(f"{path} is no PyTorch checkpoint, or damaged: {error!r}") from error


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
