"""Measures the time of a model for one image on the CPU, with a given number of threads.

JAX fixes its number of threads when it starts, so each number is measured in a process of its own:
`python -m siman_jax.packed.latency MODEL THREADS` prints one JSON object. On Linux the process is
bound to as many cores.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from siman_jax.cores import usable_cores
from siman_jax.errors import UsageError

_SECONDS = 3.0
_MOST_CALLS = 200
_WARM_UP = 5


def measure_apart(model: str, threads: int) -> dict[str, float]:
    """Measure in a new process with `threads` threads.

    Returns:
      `threads`, `calls`, `median_ms` and `best_ms`; times are from pixels in NumPy to logits.

    Raises:
      UsageError: the process failed; the message holds its errors.
    """
    result = subprocess.run(
        [sys.executable, "-m", "siman_jax.packed.latency", model, str(threads)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(threads)},  # NPROC: read by XLA
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise UsageError(f"the measurement with {threads} threads failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def _measure(path: str) -> dict[str, float]:
    import numpy as np  # late: NumPy and JAX must start their threads after binding to cores

    from siman_jax.packed.model import load_model

    model = load_model(path)
    shape = (1, *model.network.image_shape)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for _ in range(_WARM_UP):
        np.asarray(model(image))
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(seconds) < _MOST_CALLS and (time.perf_counter() < end or len(seconds) < 3):
        start = time.perf_counter()
        np.asarray(model(image))
        seconds.append(time.perf_counter() - start)
    return {
        "calls": len(seconds),
        "median_ms": 1e3 * statistics.median(seconds),
        "best_ms": 1e3 * min(seconds),
    }


if __name__ == "__main__":
    count = int(sys.argv[2])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cores()[:count])
    print(json.dumps({"threads": count, **_measure(sys.argv[1])}))
