"""Devices and hosts: one mesh with one axis, and what lies where on it.

Batches are sharded over the axis `data`, everything else is replicated, the optimiser's state
optionally sharded. Programs are written for the whole batch; the compiler divides them.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from siman_jax.errors import UsageError

AXIS = "data"


def join_hosts(
    coordinator: str | None, count: int | None, index: int | None, host_timeout: int
) -> None:
    """Make one run of the processes that were started for it, one or more on each host.

    Call it before any computation. What is None is found from the environment of SLURM, Open MPI,
    Kubernetes or a Cloud TPU.

    Args:
      coordinator: `HOST:PORT` of process 0.
      count: number of processes.
      index: which of them this is, from 0.
      host_timeout: seconds after which a silent process counts as dead; the others then end with
        JAX's message that another task died.

    Raises:
      UsageError: the environment does not say what was left out, or the processes do not meet.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            # Where all is said, no scheduler needs to be asked.
            cluster_detection_method=None if None in (coordinator, count, index) else "deactivate",
            heartbeat_timeout_seconds=host_timeout,
            shutdown_timeout_seconds=host_timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"the processes of this run could not join: {error}\nGive each of them"
            " --coordinator=HOST:PORT, --num_processes and --process_id, or start them by a"
            " scheduler that JAX knows (SLURM, Open MPI, Kubernetes, Cloud TPU)."
        ) from error


def is_first_process() -> bool:
    """Whether this process writes what one process writes for all of them."""
    return jax.process_index() == 0


def make_mesh(count: int = 0) -> Mesh:
    """Arrange devices along one axis, each process's own next to each other.

    Args:
      count: how many to use, all processes' together; 0 for all there are.

    Raises:
      UsageError: there are fewer than `count`, or `count` leaves out some while several processes
        take part, or these have different numbers of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    shares = Counter(device.process_index for device in devices)
    if len(set(shares.values())) > 1:
        raise UsageError(
            f"the processes have different numbers of devices, {dict(shares)}; give each as many."
        )
    if count > len(devices) or (0 < count < len(devices) and jax.process_count() > 1):
        raise UsageError(
            f"--devices is {count}, but this run has {len(devices)} devices in"
            f" {jax.process_count()} processes; leave --devices out to use them all."
        )
    return Mesh(np.array(devices[: count or None]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def largest_axis_sharded(mesh: Mesh, tree: Any) -> Any:
    """For each leaf, its longest axis that the devices divide evenly; replicated if none."""

    def sharding(leaf: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(sizes):
            return replicated(mesh)
        axis = sizes.index(max(sizes))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(sharding, tree)


def check_divides(mesh: Mesh, batch_size: int, what: str) -> None:
    """Refuse a batch that does not fall evenly on the devices.

    Args:
      mesh: of all devices.
      batch_size: examples in the global batch.
      what: how the message calls it, such as "--config.batch_size".

    Raises:
      UsageError: with the nearest sizes that do.
    """
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        sizes = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise UsageError(
            f"{what} is {batch_size}, which does not fall evenly on {mesh.size} devices in"
            f" {jax.process_count()} processes; set it to {sizes}."
        )


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Copy host arrays, the same in every process, whole to every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index]),
        jax.tree.map(np.asarray, tree),
    )


def put_local_rows(mesh: Mesh, tree: Any) -> Any:
    """Join each process's own rows to global arrays: process 0's rows first, then the next's."""
    return jax.tree.map(
        partial(jax.make_array_from_process_local_data, by_example(mesh)),
        jax.tree.map(np.asarray, tree),
    )


def make_replica_check(mesh: Mesh) -> Callable[[Any], bool]:
    """Compile a function that tells whether replicated arrays are bit for bit the same everywhere.

    Projection and bits are computed on every device from its own replica, so a device that
    rounds differently would leave the others for good.
    """

    @jax.jit
    def equal(tree: Any) -> Array:
        def on_one_device(tree: Any) -> Array:
            words = [_words(leaf) for leaf in jax.tree.leaves(tree)]
            same = [jnp.all(lax.pmax(w, AXIS) == lax.pmin(w, AXIS)) for w in words]
            return jnp.all(jnp.stack(same))

        return jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            check_vma=False,  # whether replicas agree is the question
        )(tree)

    return lambda tree: bool(equal(tree))


def all_agree(local: bool) -> bool:
    """Whether `local` is true in every process; each of them must ask."""
    if jax.process_count() == 1:
        return local
    return bool(np.all(multihost_utils.process_allgather(np.asarray(local))))


def _words(leaf: Array) -> Array:
    """The bits of an array, as unsigned integers."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    return lax.bitcast_convert_type(
        leaf, {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    )
