"""Devices and hosts: one mesh with one axis, and the layout of arrays on it.

Batches are sharded over the axis `data`. Everything else is replicated, except that the optimizer
state may be sharded. Programs are written for the global batch, and the compiler partitions them.
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
    """Join the processes of one run, one or more on each host.

    Call it before any computation. Arguments that are None are read from the environment of SLURM,
    Open MPI, Kubernetes or a Cloud TPU.

    Args:
      coordinator: `HOST:PORT` of process 0.
      count: number of processes.
      index: number of this process, from 0.
      host_timeout: seconds after which a silent process counts as dead; the others then end with
        JAX's message that another task died.

    Raises:
      UsageError: an argument is missing and the environment does not give it, or the processes do
        not find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            # No need to look for a scheduler when everything is given.
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
    """Whether this is process 0, which writes files on behalf of all processes."""
    return jax.process_index() == 0


def make_mesh(count: int = 0) -> Mesh:
    """Make a mesh of one axis; the devices of each process are adjacent.

    Args:
      count: number of devices to use, over all processes; 0: all.

    Raises:
      UsageError: there are fewer than `count` devices, or `count` is not all devices of several
        processes, or the processes have different numbers of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    shares = Counter(device.process_index for device in devices)
    if len(set(shares.values())) > 1:
        raise UsageError(
            f"the processes have different numbers of devices: {dict(shares)}. Give each process"
            " the same number."
        )
    if count > len(devices) or (0 < count < len(devices) and jax.process_count() > 1):
        raise UsageError(
            f"--devices is {count}, and the number of devices in this run is {len(devices)},"
            f" over all processes ({jax.process_count()}); omit --devices to use all of them."
        )
    return Mesh(np.array(devices[: count or None]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Sharding that divides the first axis among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def largest_axis_sharded(mesh: Mesh, tree: Any) -> Any:
    """For each leaf, shard its longest axis that divides evenly; replicate it if there is none."""

    def sharding(leaf: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(sizes):
            return replicated(mesh)
        axis = sizes.index(max(sizes))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(sharding, tree)


def check_divides(mesh: Mesh, batch_size: int, what: str) -> None:
    """Check that a batch divides evenly among the devices.

    Args:
      mesh: the mesh of all devices.
      batch_size: examples in the global batch.
      what: name of the size for the message, such as "--config.batch_size".

    Raises:
      UsageError: it does not; the message gives the nearest sizes that do.
    """
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        sizes = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise UsageError(
            f"{what} is {batch_size}, which does not divide evenly among {mesh.size} devices in"
            f" {jax.process_count()} processes; set it to {sizes}."
        )


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Copy host arrays to every device; they must be equal in all processes."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index]),
        jax.tree.map(np.asarray, tree),
    )


def put_local_rows(mesh: Mesh, tree: Any) -> Any:
    """Make global arrays of the rows of each process, in the order of the processes."""
    return jax.tree.map(
        partial(jax.make_array_from_process_local_data, by_example(mesh)),
        jax.tree.map(np.asarray, tree),
    )


def on_cpus(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def make_replica_check(mesh: Mesh) -> Callable[[Any], bool]:
    """Compile a function that checks that replicated arrays are bitwise equal on all devices.

    Every device computes projection and bits from its own replica, so a device that rounds
    differently would diverge from the others. One device has nothing to be compared with.
    """
    if mesh.size == 1:
        return lambda tree: True

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
            check_vma=False,  # the replicas may differ; that is what is tested
        )(tree)

    return lambda tree: bool(equal(tree))


def all_agree(local: bool) -> bool:
    """Whether `local` is true in every process; all processes must call this."""
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
