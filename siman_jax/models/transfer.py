"""Start a network from the variables of another: take what fits, and refuse the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from siman_jax.errors import UsageError
from siman_jax.models.initializers import mean_magnitude
from siman_jax.models.leaves import BINARY_KERNEL
from siman_jax.rules import LEFT, RIGHT, THETA, WEIGHT_RULES

ALPHA = "alpha"
# Leaves that a rule adds to a binary layer. Where the source has none, they start as by the rule.
_OF_RULES = (ALPHA, THETA, LEFT, RIGHT)

Path = tuple[str, ...]


@dataclass(frozen=True)
class Transfer:
    """The variables that a network starts from, and where they come from.

    Attributes:
      variables: collections by name.
      taken: number of leaves from the source.
      made_binary: layers whose real kernel became a latent kernel.
      new: leaves that start as without a source.
    """

    variables: dict[str, Any]
    taken: int
    made_binary: tuple[str, ...]
    new: tuple[str, ...]


def transfer(
    initial: Mapping[str, Any],
    source: Mapping[str, Any],
    weight_rule: str,
    class_axes: Callable[[], Mapping[Path, tuple[int, ...]]],
) -> Transfer:
    """Replace the initial variables of a network by those of another, leaf by leaf.

    - A leaf of the same place and shape is taken.
    - A real `kernel` becomes the `binary_kernel` of the same layer.
    - A leaf of the classifier starts anew if only the number of classes differs.
    - `alpha`, `theta` and rotations that the source lacks start as by the rule: alpha is the mean
      magnitude of each filter of the kernel that was taken, if the rule starts it from magnitudes.

    Args:
      initial: `params`, `batch_stats` and maybe `rotations`, as for training without a source.
      source: the same collections of the other network.
      weight_rule: key of `rules.WEIGHT_RULES` of the network.
      class_axes: function to the axes of each leaf whose length is the number of classes, by its
        path with the collection; called only if shapes differ.

    Raises:
      UsageError: there are other leaves that differ, are missing or are left over; each is listed.
    """
    here, there = flatten_dict(initial), flatten_dict(source)
    axes_of_classes = cache(class_axes)
    taken: dict[Path, Array] = {}
    made_binary, new, used, problems = [], [], set(), []
    for path, leaf in here.items():
        origin = path
        if path not in there and path[-1] == BINARY_KERNEL:
            origin = (*path[:-1], "kernel")
        if origin not in there:
            kernel = ("params", *path[1:-1], BINARY_KERNEL)
            if not (path[-1] in _OF_RULES and kernel in here):
                problems.append(f"{_name(path)} is missing there")
            continue
        used.add(origin)
        other = there[origin]
        if other.shape == leaf.shape:
            taken[path] = jnp.asarray(other, leaf.dtype)
            if origin != path:
                made_binary.append("/".join(path[1:-1]))
        elif not _only_classes_differ(leaf.shape, other.shape, axes_of_classes().get(path, ())):
            problems.append(
                f"{_name(origin)} has shape {list(other.shape)} there, {list(leaf.shape)} here"
            )
    problems += [f"{_name(path)} of there has no place here" for path in there.keys() - used]
    if problems:
        raise UsageError("\n  ".join(["these leaves do not fit:", *sorted(problems)]))
    number = len(taken)
    for path in here.keys() - taken.keys():
        kernel = ("params", *path[1:-1], BINARY_KERNEL)
        from_kernel = path[-1] == ALPHA and WEIGHT_RULES[weight_rule].alpha == "mean magnitude"
        if from_kernel and kernel in taken:
            taken[path] = mean_magnitude(taken[kernel])
        else:
            new.append(_name(path))
    variables = unflatten_dict({**here, **taken})
    return Transfer(variables, number, tuple(sorted(made_binary)), tuple(sorted(new)))


def _only_classes_differ(
    here: tuple[int, ...], there: tuple[int, ...], axes: tuple[int, ...]
) -> bool:
    if not axes or len(here) != len(there):
        return False
    return all(axis in axes or a == b for axis, (a, b) in enumerate(zip(here, there, strict=True)))


def _name(path: Path) -> str:
    """A leaf's name without its collection, such as "layer1_0/conv1/alpha"."""
    return "/".join(path[1:])
