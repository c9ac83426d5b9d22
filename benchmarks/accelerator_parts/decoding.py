"""Measures how many photographs per second this host decodes, crops and scales for training.

One process per core makes 224x224 crops of the JPEG files in FOLDER/photographs, from memory, as
training does (see `siman_jax.data.decode`). Passing batches to the device is not included.
"""

import itertools
import multiprocessing
import time
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from benchmarks.accelerator_parts.part import Part, run
from benchmarks.origin import describe
from siman_jax.cores import usable_cores
from siman_jax.data.decode import training_image
from siman_jax.data.pixels import PixelRules

PHOTOGRAPHS = "photographs"
MOST_FILES = 100


def main(part: Part) -> None:
    """Decode on one core, and on all cores at once."""
    folder = part.data / PHOTOGRAPHS if part.data else None
    files = read_files(folder) if folder else []
    if not files:
        reason = f"there are no JPEG files in {folder or 'a folder of data'}"
        return part.leave_out("decoding", reason)
    seconds = 0.2 if part.quick else 3.0
    part.write(
        cpu=describe()["cpu"], files=len(files), mean_kilobytes=np.mean([*map(len, files)]) / 1e3
    )
    for processes in sorted({1, len(usable_cores())}):
        row = {"images_per_second": images_per_second(files, processes, seconds)}
        part.add("processes", str(processes), row)


def read_files(folder: Path) -> list[bytes]:
    """Read at most `MOST_FILES` JPEG files in a folder and below, in sorted order."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    return [path.read_bytes() for path in paths[:MOST_FILES]]


def images_per_second(files: list[bytes], processes: int, seconds: float) -> float:
    """Decode in several processes at the same time; return their total images per second."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _wait_for_all, (barrier,)) as pool:
        rates = pool.map(partial(decode, files, seconds), range(processes), chunksize=1)
    return sum(rates)


def decode(files: list[bytes], seconds: float, seed: int) -> float:
    """Decode one file after the other for some seconds; return images per second."""
    rng, count, start = np.random.default_rng(seed), 0, time.perf_counter()
    endless, rules = itertools.cycle(files), PixelRules(channels=3)
    while (elapsed := time.perf_counter() - start) < seconds:
        data = next(endless)
        training_image(data, rng, rules=rules, size=224, min_area=0.08, max_area=1.25, flip=True)
        count += 1
    return count / elapsed


def _wait_for_all(barrier: Barrier) -> None:
    """Wait until all processes have started and imported their modules."""
    barrier.wait()


if __name__ == "__main__":
    run(main)
