"""Train several seeds of one config as one program, with their states stacked on a first axis.

The step is one number for all seeds, so decisions that depend on it alone, such as when to update
rotations, are made once. A single seed is not stacked, and runs the usual program.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from siman_jax.data.feed import Labels
from siman_jax.native.dispatch import native
from siman_jax.training.epoch import Progress
from siman_jax.training.metrics import Sums
from siman_jax.training.step import Step, TrainState

Tree = TypeVar("Tree")


def stack_seeds(seeds: Sequence[Progress]) -> Progress:
    """Stack the progress of seeds that are at the same step.

    Returns:
      Progress with leaves `[seeds, ...]`, except the step; a single seed's progress unchanged.
    """
    if len(seeds) == 1:
        return seeds[0]
    return _with_one_step(_stack(seeds), seeds[0].state.step)


def make_splitter(like: Progress, count: int) -> Callable[[Progress], list[Progress]]:
    """Compile the inverse of `stack_seeds`.

    Args:
      like: progress of one seed; only its shapes and shardings matter.
      count: number of seeds.
    """
    if count == 1:
        return lambda progress: [progress]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    def split(progress: Progress) -> list[Progress]:
        step = progress.state.step
        stacked = _with_one_step(progress, jnp.broadcast_to(step, count))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)]

    return jax.jit(split, out_shardings=[shardings] * count)


def over_seeds(step: Step, state: TrainState, count: int) -> Step:
    """Map a training step over seeds; images are `[seeds, batch, ...]`, labels `[seeds, batch]`.

    All seeds have the same teacher, if there is one.

    Args:
      step: function of one seed's state, images and labels.
      state: state of one seed, or stacked; only its structure matters.
      count: number of seeds; for 1, `step` is returned unchanged.
    """
    if count == 1:
        return step
    axes = replace(jax.tree.map(lambda _: 0, state), step=None)

    def step_of_all(state: TrainState, images: Array, labels: Labels, *same: Any) -> Any:
        # Under `vmap` the C++ library is not used, but its backward pass would be computed twice.
        with native(False):
            mapped = jax.vmap(lambda *own: step(*own, *same), (axes, 0, 0), (axes, 0))
            return mapped(state, images, labels)

    return step_of_all


def no_sums_yet(sums: Sums, count: int) -> Sums:
    """Stack one seed's `sums` for `count` seeds."""
    return sums if count == 1 else _stack([sums] * count)


def join_keys(keys: Sequence[Array]) -> Array:
    """Stack the PRNG keys of the seeds, `[seeds]`; a single seed's key stays `[]`."""
    return keys[0] if len(keys) == 1 else jnp.stack(keys)


def _with_one_step(progress: Progress, step: Array) -> Progress:
    return replace(progress, state=replace(progress.state, step=step))


def _stack(trees: Sequence[Tree]) -> Tree:
    def sharding(leaf: Array) -> NamedSharding:
        own: Any = leaf.sharding
        return NamedSharding(own.mesh, PartitionSpec(None, *own.spec))

    def stack(*trees: Tree) -> Tree:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    return jax.jit(stack, out_shardings=jax.tree.map(sharding, trees[0]))(*trees)
