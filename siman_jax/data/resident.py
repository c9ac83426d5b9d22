"""Data sets that fit in device memory: uploaded once, then shuffled and batched there."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from siman_jax.data.augment import augment
from siman_jax.data.dataset import Split, steps_in_epoch
from siman_jax.data.feed import Batch
from siman_jax.data.further import FURTHER, Further, no_further
from siman_jax.devices.mesh import by_example, put_local_rows, put_replicated, replicated


class ResidentFeed:
    """Shuffles and augments inside the compiled program.

    One call takes many steps, so the host has little to do. The order of an epoch depends only on
    `order_key` and its number, the augmentation of a batch only on `augment_key` and its step. An
    epoch is the full batches of a permutation; the remaining examples are left out of it.

    Args:
      split: the training split; every device gets a copy.
      mesh: the devices.
      order_key, augment_key: PRNG keys, `[]`; or `[seeds]`, for a batch of each seed at once, equal
        to the batch with that seed's keys alone.
      batch_size: examples in a step, over all devices.
      crop_padding: pixels of padding before a random crop; 0: no crop.
      flip: whether to mirror images, each with probability 1/2.
      further: further augmentation, after crop and flip.
      steps_per_dispatch: number of steps in one call; 0: one on the CPU, up to 100 elsewhere.
    """

    def __init__(
        self,
        split: Split,
        mesh: Mesh,
        order_key: Array,
        augment_key: Array,
        *,
        batch_size: int,
        crop_padding: int = 0,
        flip: bool = False,
        further: Further = no_further,
        steps_per_dispatch: int = 0,
    ) -> None:
        self.steps_per_epoch = steps_in_epoch(split, batch_size)
        # XLA's CPU backend runs convolutions much slower inside a loop than outside.
        automatic = 1 if jax.default_backend() == "cpu" else 100
        self.steps_per_call = min(steps_per_dispatch or automatic, self.steps_per_epoch)
        self._batch_size = batch_size
        self._augment = partial(augment, crop_padding=crop_padding, flip=flip)
        self._further = further
        self._sharding = by_example(mesh)
        self._data = upload(split, mesh)
        draw: Callable[..., Array] = partial(epoch_order, n=len(split))
        self._take: Callable[..., Batch] = self._take_one
        if order_key.ndim:
            draw = jax.vmap(draw, in_axes=(0, None))
            self._take = jax.vmap(self._take_one, in_axes=(None, 0, 0, None))
        self._order_of = partial(jax.jit(draw, out_shardings=replicated(mesh)), order_key)
        # An argument of the compiled program, not a constant, so that all seeds can share it.
        self._augment_key = jax.jit(lambda key: key, out_shardings=replicated(mesh))(augment_key)
        self.abstract = (self._data, self._order_of(0), self._augment_key)

    def calls(self, step: int) -> Iterator[tuple[Any, int]]:
        """Yield the same arrays for every call; see `Feed.calls`."""
        epoch, first = divmod(step, self.steps_per_epoch)
        inputs = (self._data, self._order_of(epoch), self._augment_key)
        for start in range(first, self.steps_per_epoch, self.steps_per_call):
            yield inputs, min(self.steps_per_call, self.steps_per_epoch - start)

    def take(self, inputs: tuple[Batch, Array, Array], step: Array) -> Batch:
        """Gather the batch of `step` and augment it; see `Feed.take`."""
        return self._take(*inputs, step)

    def _take_one(self, data: Batch, order: Array, augment_key: Array, step: Array) -> Batch:
        batch = take_batch(data, order, step % self.steps_per_epoch, self._batch_size)
        images, labels = lax.with_sharding_constraint(tuple(batch), self._sharding)
        key = jax.random.fold_in(augment_key, step)
        images = self._augment(key, images)
        return self._further(jax.random.fold_in(key, FURTHER), images, labels)

    def close(self) -> None:
        """Do nothing: nothing is read ahead."""


def upload(split: Split, mesh: Mesh) -> Batch:
    """Copy a whole split to every device."""
    return Batch(*put_replicated(mesh, (split.images, split.labels)))


def epoch_order(key: Array, epoch: Array, n: int) -> Array:
    """Draw the order of the examples in an epoch: a permutation, int32 `[n]`."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


def take_batch(data: Batch, order: Array, index: Array, batch_size: int) -> Batch:
    """Gather batch number `index` of an epoch with the given order."""
    rows = lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
    return jax.tree.map(lambda x: x[rows], data)


def padded_batches(split: Split, mesh: Mesh, batch_size: int) -> list[Batch]:
    """Make batches of one shape with every example in order; the last is padded with label -1.

    Args:
      split: the examples, equal in all processes.
      mesh: the devices; each gets its share of every batch.
      batch_size: a multiple of the number of devices.
    """
    batches = []
    for start in range(0, len(split), batch_size):
        images = split.images[start : start + batch_size]
        labels = split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        labels = np.pad(labels, (0, missing), constant_values=-1)
        share = batch_size // jax.process_count()
        own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        batches.append(Batch(*put_local_rows(mesh, (images[own], labels[own]))))
    return batches
