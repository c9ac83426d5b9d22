"""A fresh process that loads one engine's ResNet-20 for `loading`, and answers in JSON.

    python -m benchmarks.loading_worker ENGINE NETWORK IMAGE_SIZE CLASSES WIDTH FOLDER THREADS CALLS

It answers how long the first prediction took and what memory it needs, both since NumPy was
imported. With CALLS above 0 it then makes so many calls of 1 to 256 images, and answers the memory
after each tenth of them.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, Run
from benchmarks.engine_worker import memory, versions
from benchmarks.engines import (
    INT8_FILE,
    ONNX_FILE,
    OURS,
    PACKED_FILE,
    Setting,
    load_onnxruntime,
    load_openvino,
)
from benchmarks.worker_process import answering

LARGEST_BATCH = 256
REPORTS = 10


def load_ours(setting: Setting) -> Run:
    """Load the model file as users do."""
    import siman_jax

    model = siman_jax.load(setting.folder / PACKED_FILE)
    return lambda images: model(images, threads=setting.threads)


# By name: the function that loads it for any batch size, and whether it takes pixels.
LOADERS: dict[str, tuple[Callable[[Setting], Run], bool]] = {
    OURS: (load_ours, True),
    "ONNX Runtime float": (lambda setting: load_onnxruntime(setting, ONNX_FILE), False),
    "ONNX Runtime int8": (lambda setting: load_onnxruntime(setting, INT8_FILE), False),
    "OpenVINO float": (lambda setting: load_openvino(setting, ONNX_FILE), False),
    "OpenVINO int8": (lambda setting: load_openvino(setting, INT8_FILE), False),
}


def draw_images(case: Case, batch: int, *, pixels: bool) -> np.ndarray:
    """Draw pixels, uint8 with channels last, or normalized float32 images with channels first."""
    rng, size = np.random.default_rng(0), case.image_size
    if pixels:
        return rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return rng.standard_normal((batch, 3, size, size), np.float32)


def first_prediction(engine: str, setting: Setting) -> tuple[Run, dict[str, Any]]:
    """Load a network and predict one image; return it, and what that took."""
    load, pixels = LOADERS[engine]
    image = draw_images(setting.case, 1, pixels=pixels)
    imported, start = memory("VmRSS"), time.perf_counter()
    run = load(setting)
    logits = np.asarray(run(image))
    seconds = time.perf_counter() - start
    if logits.shape != (1, setting.case.num_classes) or not np.isfinite(logits).all():
        raise ValueError(f"the logits have shape {logits.shape} or are not finite")
    megabytes = memory("VmRSS") - imported
    return run, {"seconds": seconds, "megabytes": megabytes, "versions": versions()}


def memory_of_calls(run: Run, case: Case, calls: int, *, pixels: bool) -> list[float]:
    """Make calls of random batch sizes; return the memory in MB after each tenth of them."""
    images = draw_images(case, LARGEST_BATCH, pixels=pixels)
    draw = random.Random(0)
    found = []
    for call in range(1, calls + 1):
        run(images[: draw.randint(1, LARGEST_BATCH)])
        if call * REPORTS % calls < REPORTS:
            found.append(memory("VmRSS"))
    return found


def main() -> None:
    """Load, predict, and answer."""
    engine, network, *sizes, folder, threads, calls = sys.argv[1:]
    case = Case(network, *map(int, sizes))
    with answering() as answer:
        # Batches of any size: -1 is OpenVINO's sign for that.
        setting = Setting(case, Path(folder), -1, int(threads))
        run, found = first_prediction(engine, setting)
        if int(calls):
            pixels = LOADERS[engine][1]
            found["memory"] = memory_of_calls(run, case, int(calls), pixels=pixels)
        answer(**found)


if __name__ == "__main__":
    main()
