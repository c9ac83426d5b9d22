"""A process that runs one engine for `packed_inference`, controlled by lines of JSON on its pipes.

    python -m benchmarks.engine_worker ENGINE NETWORK IMAGE_SIZE CLASSES WIDTH FOLDER THREADS

With THREADS 0 it writes the model file and ends. Otherwise the process binds itself to as many
cores before it imports anything that counts them, and answers requests: `load` a batch size, `time`
calls, `memory`, or `layers`.
"""

import ctypes
import gc
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.engines import ENGINES, Setting, random_images
from benchmarks.worker_process import answer_requests, answering


def keep_to_cores(count: int) -> None:
    """Bind this process to `count` cores: XLA's CPU backend starts one thread per usable core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def memory(field: str) -> float:
    """Return this process's memory in MB, `VmRSS` or its peak `VmHWM`; NaN if unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def forget_peak() -> None:
    """Return free memory to the system, and reset the peak to the memory that is left."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return


def versions() -> dict[str, str]:
    """Return the versions of imported libraries that matter."""
    names = ("jax", "flax", "numpy", "torch", "onnxruntime", "openvino", "MNN", "tensorflow")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    found["larq_compute_engine"] = None
    if "larq_compute_engine" in sys.modules:
        from importlib.metadata import version

        found["larq_compute_engine"] = version("larq-compute-engine")
    known = {name: str(version) for name, version in found.items() if version}
    return {"python": sys.version.split()[0], **known}


class EngineWorker:
    """An engine and the network that it has loaded."""

    def __init__(self, name: str, case: Case, folder: Path, threads: int) -> None:
        self._engine = ENGINES[name]
        for module in self._engine.modules:
            importlib.import_module(module)
        forget_peak()
        self._imported = memory("VmRSS")
        self._case, self._folder, self._threads = case, folder, threads
        self._run: Any = None
        self._images: Any = None
        self._seconds = 0.0  # of a call, roughly

    def load(self, batch: int) -> dict:
        """Prepare for calls with `batch` images, and drop what was loaded before."""
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
            raise ValueError(
                f"the logits have shape {logits.shape} or are not finite; expected {expected}."
            )
        start = time.perf_counter()
        for _ in range(3):  # TorchScript optimizes in its first calls
            self._run(self._images)
        self._seconds = (time.perf_counter() - start) / 3
        return {"seconds_to_load": seconds, "versions": versions()}

    def time(self, seconds: float) -> dict:
        """Time calls for about `seconds`, at least one, after a call that fills caches."""
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
        """Return memory in MB: after imports, peak while loading, loaded, and peak in calls."""
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
    """Write the model file, or answer requests until the pipe closes."""
    name, network, *sizes, folder, threads = sys.argv[1:]
    case = Case(network, *map(int, sizes))
    with answering() as answer:
        if int(threads) == 0:
            file = Path(folder) / ENGINES[name].file
            if not file.exists():  # another engine may read the same
                ENGINES[name].prepare(case, Path(folder))
            return answer(kilobytes=file.stat().st_size / 1000)
        keep_to_cores(int(threads))
        answer_requests(EngineWorker(name, case, Path(folder), int(threads)), answer)


if __name__ == "__main__":
    main()
