"""Measures the time of a run's real-valued twin for one image on the CPU.

The twin is the same network with nothing binarized, compiled by JAX. JAX fixes its number of
threads when it starts, so each number is measured in a process of its own, bound to as many cores:
`python -m benchmarks.twin_latency WORKDIR THREADS` prints one JSON object.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from siman_jax.cores import usable_cores

_CALLS = 200
_WARM_UP = 5


def measure_twin_apart(workdir: Path, threads: int) -> dict[str, float]:
    """Measure in a new process; returns `median_ms`, from pixels in NumPy to logits."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.twin_latency", str(workdir), str(threads)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(threads)},  # NPROC: read by XLA
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def _measure(workdir: Path) -> dict[str, float]:
    import jax  # late: JAX must start its threads after binding to cores
    import numpy as np

    from siman_jax.models.normalization import normalize
    from siman_jax.runs.workdir import read_config
    from siman_jax.training.task import image_shape, model_from_config

    config = read_config(workdir).copy_and_resolve_references()
    config.model.weight_rule = config.model.activation_rule = "real"
    model = model_from_config(config)
    shape = image_shape(config)
    variables = model.init(jax.random.key(0), np.zeros((1, *shape), np.float32), train=False)

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        return model.apply(
            variables, normalize(images, config.data.mean, config.data.std), train=False
        )

    image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
    seconds = []
    for _ in range(_WARM_UP + _CALLS):
        start = time.perf_counter()
        np.asarray(logits(image))
        seconds.append(time.perf_counter() - start)
    return {"median_ms": 1e3 * statistics.median(seconds[_WARM_UP:])}


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cores()[: int(sys.argv[2])])
    print(json.dumps(_measure(Path(sys.argv[1]))))
