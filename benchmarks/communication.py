"""Counts the communication between devices in a training step, and estimates its time.

    python -m benchmarks.communication --config=configs/imagenet.py

Compiles the training step for virtual CPU devices and counts its collective operations. Their time
is then calculated, not measured, for two machines: from the bandwidth and latency given below,
without overlap, compared with the step's arithmetic at 30 % of the peak.
"""

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from siman_jax.devices.communication import communication, describe
from siman_jax.devices.mesh import by_example, make_mesh, replicated
from siman_jax.models.summary import summarize
from siman_jax.native.dispatch import native
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import create_state, train_step
from siman_jax.training.task import image_shape, model_from_config

_CONFIG = config_flags.DEFINE_config_file("config", "configs/imagenet.py", "Config of the run.")
_DEVICES = flags.DEFINE_integer("virtual_devices", 8, "Number of devices to compile for.")

# Bytes/s that a device sends in an all-reduce (vendor's figure), seconds for an all-reduce of
# almost no data (assumed), peak operations/s in bfloat16 (vendor's figure), number of devices.
MACHINES = {
    "8 H100 over NVLink": (450e9, 20e-6, 989e12, 8),
    "TPU v5e-64 slice": (100e9, 20e-6, 197e12, 64),
}
SHARE_OF_PEAK = 0.3


def main(argv: list[str]) -> None:
    """Count and calculate."""
    del argv
    config = _CONFIG.value
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    mesh = make_mesh()
    shape = image_shape(config)
    macs = sum(
        layer.binary_macs + layer.real_macs for layer in summarize(model_from_config(config), shape)
    )
    optimizer = build_optimizer(config.optimizer, 0.1)
    for label, groups in (("all devices", 1), ("each device", mesh.size)):
        model = model_from_config(config, norm_groups=groups)
        create = partial(create_state, model, optimizer, image_shape=shape)
        step = partial(
            train_step, model=model, optimizer=optimizer, schedules={"clip_percent": lambda _: 10.0}
        )
        run = jax.jit(
            step,
            in_shardings=(replicated(mesh), by_example(mesh), by_example(mesh)),
            out_shardings=replicated(mesh),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        with native(False):  # as in training on several devices
            lowered = run.lower(
                jax.eval_shape(create, jax.random.key(0)),
                jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32),
                jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
            )
        compiled = lowered.compile()
        traffic = communication(compiled.as_text() or "")
        print(f"batch norm over {label}: {describe(traffic, mesh.size)}")
        operations = sum(t.operations for t in traffic.values())
        size = sum(t.bytes for t in traffic.values())
        for machine, (bandwidth, latency, peak, devices) in MACHINES.items():
            for per_device in (64, 256):
                # Each device sends and receives 2 (n - 1) / n times the size in a ring.
                exchange = 2 * (devices - 1) / devices * size / bandwidth + operations * latency
                arithmetic = 6 * macs * per_device / (SHARE_OF_PEAK * peak)
                efficiency = arithmetic / (arithmetic + exchange)
                print(
                    f"  calculated, {machine}, {per_device} images per device: arithmetic"
                    f" {1e3 * arithmetic:.1f} ms, exchange {1e3 * exchange:.1f} ms, so"
                    f" {100 * efficiency:.0f} % of linear scaling"
                )


if __name__ == "__main__":
    app.run(main)
