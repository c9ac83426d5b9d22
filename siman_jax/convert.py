"""From the authors' PyTorch names and layouts to this project's variables.

| PyTorch                                | here                                  |
|----------------------------------------|---------------------------------------|
| `conv*.weight` `[out, in, kh, kw]`     | `kernel`, `binary_kernel`, HWIO       |
| `conv*.alpha` `[out, 1, 1]`            | `alpha` `[out]`                       |
| `conv*.B` `[out, (1,) in*kh*kw]`, 0/1  | `bits/.../binary_kernel`, HWIO        |
| `bn*.weight`, `bias`                   | `scale`, `bias`                       |
| `bn*.running_mean`, `running_var`      | `batch_stats/.../mean`, `var`         |
| `nonlinear*.weight`                    | `prelu*/slope`                        |
| `linear.*`, `fc.*` `[out, in]`         | `fc/kernel` `[in, out]`, `fc/bias`    |
| `layer1.0.`                            | `layer1_0/`                           |
| `shortcut.0`, `downsample.0`; `.1`     | `shortcut_conv`; `shortcut_bn`        |
| `percent`, `num_batches_tracked`       | left out: part of no computation here |
"""

import re
from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.layers import BINARY_KERNEL, BITS
from siman_jax.models import build_model

_UNUSED = ("percent", "num_batches_tracked")
_RENAMED = (
    (r"layer(\d)\.(\d)", r"layer\1_\2"),
    (r"nonlinear", r"prelu"),
    (r"(shortcut|downsample)\.0", r"shortcut_conv"),
    (r"(shortcut|downsample)\.1", r"shortcut_bn"),
    (r"^linear", r"fc"),
)


def variables_from_torch(model_name: str, arrays: Mapping[str, np.ndarray]) -> dict:
    """Rename and lay out the arrays of a PyTorch `state_dict` as variables of a network here.

    Args:
      model_name: key of `models.MODELS`.
      arrays: the state's arrays by their PyTorch names.

    Returns:
      `{"params": ..., "batch_stats": ..., "bits": ...}` with the arrays' own dtypes; `bits`,
      in {0, 1}, only where `arrays` hold some. Pass all of it to `apply` to evaluate with the
      stored bits; leave `bits` out to recompute them.

    Raises:
      UsageError: no network has that name.
      ValueError: a name is left over, is missing, or has another shape than the network's.
    """
    leaves = {}
    for name, array in arrays.items():
        module = name.rpartition(".")[0]
        path = flax_path(name, binary=f"{module}.alpha" in arrays)
        if path is not None:
            if f"{module}.weight" not in arrays:
                raise ValueError(f"{name} has no {module}.weight beside it.")
            kernel_shape = arrays[f"{module}.weight"].shape if path[0] == BITS else array.shape
            leaves[path] = _layout(np.asarray(array), path[-1], kernel_shape)
    _check(model_name, leaves)
    return unflatten_dict(leaves)


def flax_path(name: str, *, binary: bool) -> tuple[str, ...] | None:
    """Where a PyTorch array belongs: collection, modules, leaf; None if nowhere.

    Args:
      name: such as "layer1.0.conv1.weight".
      binary: whether its module is a binary convolution.

    >>> flax_path("layer1.0.conv1.weight", binary=True)
    ('params', 'layer1_0', 'conv1', 'binary_kernel')
    """
    module, _, leaf = name.rpartition(".")
    if leaf in _UNUSED:
        return None
    for pattern, replacement in _RENAMED:
        module = re.sub(pattern, replacement, module)
    path = tuple(module.split("."))
    if leaf == "B":
        return BITS, *path, BINARY_KERNEL
    if leaf.startswith("running_"):
        return "batch_stats", *path, leaf.removeprefix("running_")
    if leaf == "weight":
        if path[-1].startswith("prelu"):
            leaf = "slope"
        elif "bn" in path[-1]:
            leaf = "scale"
        else:
            leaf = BINARY_KERNEL if binary else "kernel"
    return "params", *path, leaf


def _layout(array: np.ndarray, leaf: str, kernel_shape: tuple[int, ...]) -> np.ndarray:
    if leaf == "alpha":
        return array.reshape(-1)
    if leaf in ("kernel", BINARY_KERNEL):
        array = array.reshape(kernel_shape)
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


def _check(model_name: str, leaves: dict[tuple[str, ...], np.ndarray]) -> None:
    """Compare names and shapes with the network that the arrays are meant for."""
    fc = leaves.get(("params", "fc", "kernel"))
    stem = leaves.get(("params", "conv1", "kernel"), leaves.get(("params", "conv0", "kernel")))
    if fc is None or stem is None:
        raise ValueError(f"These arrays hold no stem or no classifier of {model_name}.")
    size = 224 if model_name.startswith("imagenet") else 32
    images = jax.ShapeDtypeStruct((1, size, size, stem.shape[2]), "float32")
    model = build_model(model_name, fc.shape[1], width=stem.shape[3])
    init = partial(model.init, train=False)
    expected = flatten_dict(jax.eval_shape(init, jax.random.key(0), images))
    found = {path: leaf for path, leaf in leaves.items() if path[0] != BITS}
    for path in expected.keys() ^ found.keys():
        state = "is missing" if path in expected else "is left over"
        raise ValueError(f"{'/'.join(path)} {state}: these arrays are not a {model_name}.")
    for path, leaf in leaves.items():
        shape = expected[("params", *path[1:]) if path[0] == BITS else path].shape
        if leaf.shape != shape:
            raise ValueError(f"{'/'.join(path)} has shape {leaf.shape}, not {shape}.")
