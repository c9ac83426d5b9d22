"""One of several processes: trains the sharded case, or reads its checkpoint.

python tests/host_process.py {train,read} FOLDER PORT PROCESSES PROCESS DEVICES
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharded_case import STEPS, fresh_state, make_case, make_step, rows

from siman_jax.devices.mesh import (
    join_hosts,
    make_mesh,
    make_replica_check,
    put_local_rows,
    replicated,
)
from siman_jax.errors import UsageError
from siman_jax.runs.checkpoint import CheckpointWriter, restore_latest
from siman_jax.runs.checksums import array_checksum, leaf_checksums


def check_divided_sums(mesh, process, processes):
    """Arrays divided among processes have the checksum of the whole array."""
    whole = np.random.default_rng(0).standard_normal((mesh.size * 3, 5))
    own = np.split(whole, processes)[process]
    found = leaf_checksums({"x": put_local_rows(mesh, own), "y": jnp.ones(3)})
    assert found["x"] == f"{array_checksum(whole):016x}"
    assert found["y"] == f"{array_checksum(np.ones(3)):016x}"


def main(action, folder, port, processes, process, devices):
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    if processes > 1:
        join_hosts(f"127.0.0.1:{port}", processes, process, host_timeout=30)
    mesh = make_mesh()
    assert mesh.size == processes * devices
    check_divided_sums(mesh, process, processes)
    case = make_case()
    state = fresh_state(case, mesh)
    directory = Path(folder) / "checkpoints"
    if action == "train":
        step = make_step(case, state, mesh)
        for number in range(STEPS):
            state, _ = step(state, *put_local_rows(mesh, rows(number, process, processes)))
        writer = CheckpointWriter(directory, keep=2, step=0)
        writer.save(STEPS, state, top1=0.0)
        state, _ = step(state, *put_local_rows(mesh, rows(STEPS, process, processes)))
        writer.save(STEPS + 1, state, top1=0.0)
        writer.close()
    else:
        state = restore_latest(directory, state)
        with np.load(Path(folder) / "expected.npz") as expected:
            for number, leaf in enumerate(jax.tree.leaves(state)):
                one = expected[f"arr_{number}"]
                assert leaf.dtype == one.dtype
                for shard in leaf.addressable_shards:
                    np.testing.assert_allclose(shard.data, one, rtol=1e-10, atol=1e-10)
        wrong = {"params": jax.device_put(jnp.zeros(3), replicated(mesh))}
        with pytest.raises(UsageError, match="of another network: batch_stats/"):
            restore_latest(directory, wrong)
    assert make_replica_check(mesh)((state.params, state.batch_stats))
    print("well", process)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
