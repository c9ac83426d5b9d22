"""Converts the authors' PyTorch names and layouts to this project's variables.

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
| `percent`, `num_batches_tracked`       | not needed                            |
"""

import math
import re
from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from siman_jax.errors import UsageError, choose
from siman_jax.models import MODELS, build_model
from siman_jax.models.images import default_images
from siman_jax.models.leaves import BINARY_KERNEL, BITS

_UNUSED = ("percent", "num_batches_tracked")
_RENAMED = (
    (r"layer(\d)\.(\d)", r"layer\1_\2"),
    (r"nonlinear", r"prelu"),
    (r"(shortcut|downsample)\.0", r"shortcut_conv"),
    (r"(shortcut|downsample)\.1", r"shortcut_bn"),
    (r"^linear", r"fc"),
)
# PyTorch's order of an array's axes, by the number of axes.
_TRANSPOSED = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}

Path = tuple[str, ...]


def variables_from_torch(
    model_name: str, arrays: Mapping[str, np.ndarray], image_size: int | None = None
) -> dict:
    """Convert the arrays of a PyTorch `state_dict` to variables of a network here.

    Args:
      model_name: key of `models.MODELS`.
      arrays: the state's arrays by their PyTorch names.
      image_size: height and width of the network's images, on which VGG's classifier depends;
        None for the size that the network is made for.

    Returns:
      `{"params": ..., "batch_stats": ..., "bits": ...}` with the dtypes of the arrays. `bits`, in
      {0, 1}, are present only if `arrays` hold them. Pass all of it to `apply` to evaluate with
      the stored bits, or leave out `bits` to recompute them.

    Raises:
      UsageError: no network has that name; or arrays are unexpected, missing, or of a wrong shape;
        each is listed.
    """
    names: dict[Path, str] = {}
    problems = []
    for name in arrays:
        path = flax_path(name, binary=f"{name.rpartition('.')[0]}.alpha" in arrays)
        if path in names:
            problems.append(f"{name} and {names[path]} have the same place here")
        elif path is not None:
            names[path] = name
    expected = _shapes(model_name, arrays, names, image_size)
    required = {path for path in expected if path[0] != BITS}
    problems += [f"{names[path]} is left over" for path in names if path not in expected]
    missing = sorted("/".join(path[1:]) for path in required - names.keys())
    problems += [f"{name} (by its name here) is missing" for name in missing]
    leaves = {}
    for path in names.keys() & expected.keys():
        array = np.asarray(arrays[names[path]])
        wanted = _torch_shapes(path, expected[path])
        if array.shape in wanted:
            leaves[path] = _layout(array.reshape(wanted[0]))
        else:
            either = " or ".join(str(list(shape)) for shape in wanted)
            problems.append(f"{names[path]} has shape {list(array.shape)}, not {either}")
    if problems:
        raise UsageError(
            f"these arrays are not a {model_name}:\n  " + "\n  ".join(sorted(problems))
        )
    return unflatten_dict(leaves)


def variables_by_name(arrays: Mapping[str, np.ndarray]) -> dict:
    """Convert the arrays of a PyTorch `state_dict` by their names alone, for any network.

    Args:
      arrays: the state's arrays by their PyTorch names.

    Returns:
      `{"params": ..., "batch_stats": ...}`; stored bits are left out, since they follow from the
      kernels.

    Raises:
      UsageError: two arrays have the same place.
    """
    leaves: dict[Path, np.ndarray] = {}
    for name, array in arrays.items():
        path = flax_path(name, binary=f"{name.rpartition('.')[0]}.alpha" in arrays)
        if path is None or path[0] == BITS:
            continue
        if path in leaves:
            raise UsageError(f"{name} and another array have the same place, {'/'.join(path)}.")
        leaves[path] = array.reshape(-1) if path[-1] == "alpha" else _layout(array)
    return unflatten_dict(leaves)


def flax_path(name: str, *, binary: bool) -> Path | None:
    """Return the place of a PyTorch array: collection, modules, leaf; None if it is not needed.

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


def _shapes(
    model_name: str,
    arrays: Mapping[str, np.ndarray],
    names: Mapping[Path, str],
    image_size: int | None,
) -> dict[Path, tuple[int, ...]]:
    """Return the shapes of the network's leaves, with bits, for the arrays' classes and width."""
    fc = names.get(("params", "fc", "kernel"))
    stem = names.get(("params", "conv1", "kernel"), names.get(("params", "conv0", "kernel")))
    if fc is None or stem is None or np.ndim(arrays[stem]) != 4 or np.ndim(arrays[fc]) != 2:
        raise UsageError(f"these arrays hold no stem or no classifier of a {model_name}.")
    width, channels = arrays[stem].shape[:2]
    network, classes = choose(MODELS, model_name, "model"), arrays[fc].shape[0]
    size = image_size or default_images(network, classes).size
    images = jax.ShapeDtypeStruct((1, size, size, channels), "float32")
    model = build_model(model_name, classes, width=width)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(variables).items()}
    bits = {(BITS, *p[1:]): shape for p, shape in shapes.items() if p[-1] == BINARY_KERNEL}
    return shapes | bits


def _torch_shapes(path: Path, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that PyTorch may store an array of `shape` in; the first is the usual."""
    there = tuple(shape[axis] for axis in _TRANSPOSED[len(shape)])
    if path[-1] == "alpha":
        return [there, (*there, 1, 1)]
    if path[0] == BITS:
        out, terms = there[0], math.prod(there[1:])
        return [there, (out, 1, terms), (out, terms)]
    return [there]


def _layout(array: np.ndarray) -> np.ndarray:
    """Transpose OIHW to HWIO, and `[out, in]` to `[in, out]`."""
    return array.transpose({4: (2, 3, 1, 0)}.get(array.ndim))
