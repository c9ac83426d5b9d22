"""One process that runs one engine for `packed_inference`, as lines of JSON on its pipes ask.

    python -m benchmarks.engine_worker ENGINE NETWORK IMAGE_SIZE CLASSES WIDTH FOLDER THREADS

THREADS 0 writes the model file and ends. Otherwise the process keeps to as many cores before it
imports anything that counts them, and answers one line with another: `load` a batch size, `time`
some calls, `memory`, or `layers`.
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.engines import ENGINES, Setting, random_images


def keep_to_cores(count: int) -> None:
    """Run on `count` cores only: XLA's CPU backend starts a thread for each core it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def memory(field: str) -> float:
    """A figure of this process's memory in MB, `VmRSS` or its peak `VmHWM`; NaN if unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def forget_peak() -> None:
    """Give free memory back to the system, and let the peak start anew from what is left."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return


def versions() -> dict[str, str]:
    """Versions of what is imported and matters."""
    names = ("jax", "flax", "numpy", "torch", "onnxruntime", "openvino", "tensorflow")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    found["larq_compute_engine"] = None
    if "larq_compute_engine" in sys.modules:
        from importlib.metadata import version

        found["larq_compute_engine"] = version("larq-compute-engine")
    known = {name: str(version) for name, version in found.items() if version}
    return {"python": sys.version.split()[0], **known}


class Worker:
    """An engine and what it has loaded."""

    def __init__(self, name: str, case: Case, folder: Path, threads: int) -> None:
        self._engine = ENGINES[name]
        for module in self._engine.modules:
            importlib.import_module(module)
        forget_peak()
        self._imported = memory("VmRSS")
        self._case, self._folder, self._threads = case, folder, threads
        self._run: Any = None
        self._images: Any = None
        self._seconds = 0.0  # that a call takes, roughly

    def load(self, batch: int) -> dict:
        """Get ready for calls of `batch` images, in the place of what was loaded before."""
        self._run = None
        gc.collect()
        channels_first = self._engine.channels_first
        self._images = random_images(self._case, batch, channels_first=channels_first)
        start = time.perf_counter()
        self._run = self._engine.load(Setting(self._case, self._folder, batch, self._threads))
        logits = self._run(self._images)
        seconds = time.perf_counter() - start
        expected = (batch, self._case.num_classes)
        if logits.shape != expected or not abs(logits).max() < float("inf"):
            raise ValueError(f"Logits of shape {logits.shape}, not {expected}, or not finite.")
        start = time.perf_counter()
        for _ in range(3):  # TorchScript optimizes in its first calls
            self._run(self._images)
        self._seconds = (time.perf_counter() - start) / 3
        return {"seconds_to_load": seconds, "versions": versions()}

    def time(self, seconds: float) -> dict:
        """Time calls for about some seconds, at least one, after a first that fills caches."""
        if self._seconds < seconds:
            self._run(self._images)
        times = []
        start, cpu_start = time.perf_counter(), time.process_time()
        while True:
            before = time.perf_counter()
            self._run(self._images)
            after = time.perf_counter()
            times.append(after - before)
            if after - start > seconds:
                break
        cores = (time.process_time() - cpu_start) / (after - start)
        return {"milliseconds": [1e3 * t for t in times], "cores_used": cores}

    def memory(self) -> dict:
        """Memory in MB: after imports, at most while loading, loaded, and at most in calls."""
        loading = memory("VmHWM")
        forget_peak()
        loaded = memory("VmRSS")
        for _ in range(5):
            self._run(self._images)
        names = ("imported", "peak_loading", "loaded", "peak_in_calls")
        values = (self._imported, loading, loaded, memory("VmHWM"))
        return dict(zip(names, values, strict=True))

    def layers(self, seconds: float, batches: list[int], quick: bool) -> dict:
        """Time single binary convolutions; see `layer_speed`."""
        from benchmarks.layer_speed import measure

        return measure(seconds, batches, self._threads, quick=quick)


def main() -> None:
    """Prepare, or answer until the pipe closes."""
    name, network, *sizes, folder, threads = sys.argv[1:]
    case = Case(network, *map(int, sizes))
    # What libraries print goes to stderr; the pipe to the benchmark is this process's own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        if int(threads) == 0:
            file = Path(folder) / ENGINES[name].file
            if not file.exists():  # another engine may read the same
                ENGINES[name].prepare(case, Path(folder))
            return answer(kilobytes=file.stat().st_size / 1000)
        keep_to_cores(int(threads))
        worker = Worker(name, case, Path(folder), int(threads))
        answer(ready=True)
        for line in sys.stdin:
            request = json.loads(line)
            answer(**getattr(worker, request.pop("command"))(**request))
    except ModuleNotFoundError as error:
        answer(missing=str(error))
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
