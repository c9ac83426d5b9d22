"""Measures single binary convolutions, and the machine's speed of xor and population count.

The convolutions are calls of `program.kernels.binary_conv`, from bools to integers; times include
packing, padding and dispatch. The ceilings are those of simple loops over words that are already
packed: in XLA, the best of several shapes, and in C, for a tile that fits the first cache. A kernel
that keeps more sums in registers per loaded word can exceed them.
"""

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from threading import Thread

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from siman_jax.program.kernels import binary_conv, pack_kernel

# Image size, input channels, output channels and stride of all 3x3 convolutions in ImageNet's
# ResNet-18.
LAYERS = (
    (56, 64, 64, 1),
    (56, 64, 128, 2),
    (28, 128, 128, 1),
    (28, 128, 256, 2),
    (14, 256, 256, 1),
    (14, 256, 512, 2),
    (7, 512, 512, 1),
)
PADDING = ((1, 1), (1, 1))

# Rows, words and columns of XLA's products; `program.kernels` sums 16 words in one loop.
PRODUCTS = ((49, 16, 512), (196, 16, 256), (784, 16, 128), (3136, 18, 64), (784, 36, 128))

# Sizes in popcount.c.
ROWS, COLUMNS, WORDS, CALL = 4, 32, 32, 20_000


def measure(seconds: float, batches: list[int], threads: int, *, quick: bool) -> dict:
    """Time every layer at every batch size, and the ceilings.

    Args:
      seconds: time for each.
      batches: numbers of images per call.
      threads: for the loop in C; XLA uses all cores of this process.
      quick: measure only one layer.
    """
    layers = LAYERS[-1:] if quick else LAYERS
    empty = jax.jit(lambda x: x + 1)
    return {
        "layers": [_layer(seconds, batch, *layer) for batch in batches for layer in layers],
        "empty_call_ms": 1e3 * median(_times(lambda: empty(jnp.float32(0)), seconds)),
        "ceilings_gmacs": {
            "XLA": _xla_ceiling(seconds, PRODUCTS[:1] if quick else PRODUCTS),
            "C": _c_ceiling(seconds, threads),
        },
    }


def _times(function: Callable[[], object], seconds: float) -> list[float]:
    jax.block_until_ready(function())
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - before)
    return times


def _layer(
    seconds: float, batch: int, size: int, channels: int, features: int, strides: int
) -> dict:
    rng = np.random.default_rng(0)
    kernel = pack_kernel(jnp.asarray(rng.random((3, 3, channels, features)) < 0.5))
    bits = jnp.asarray(rng.random((batch, size, size, channels)) < 0.5)
    times = _times(lambda: binary_conv(bits, kernel, strides=strides, padding=PADDING), seconds)
    places = batch * -(-size // strides) * -(-size // strides)
    macs = places * 9 * channels * features
    return {
        "batch": batch,
        "size": size,
        "channels": channels,
        "features": features,
        "strides": strides,
        "median_ms": 1e3 * median(times),
        "best_ms": 1e3 * min(times),
        "n": len(times),
        "gmacs": macs / median(times) / 1e9,
    }


@jax.jit
def _xla_products(rows: Array, columns: Array) -> Array:
    unequal = jnp.zeros((), jnp.uint32)
    for word in range(rows.shape[1]):
        unequal = unequal + jax.lax.population_count(rows[:, word, None] ^ columns[None, word])
    return unequal


def _xla_ceiling(seconds: float, shapes: tuple[tuple[int, int, int], ...]) -> dict[str, float]:
    """Measure GMAC/s by shape, from the best call of each."""
    rng = np.random.default_rng(0)
    rates = {}
    for rows, words, columns in shapes:
        a, b = (
            jnp.asarray(rng.integers(2**32, size=shape, dtype=np.uint32))
            for shape in ((rows, words), (words, columns))
        )
        best = min(_times(partial(_xla_products, a, b), seconds))
        rates[f"{rows}x{words}x{columns}"] = 32 * rows * words * columns / best / 1e9
    return rates


def _c_ceiling(seconds: float, threads: int) -> float | None:
    """Measure GMAC/s of `popcount.c`, from its best call; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("popcount.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "popcount.so"
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library)]
        # By default compilers use half of AVX-512's width. Other targets do not have the option.
        for extra in (["-mprefer-vector-width=512"], []):
            tried = subprocess.run(
                [*command, *extra, str(source)], capture_output=True, check=False
            )
            if not tried.returncode:
                break
        else:
            return None
        products = ctypes.CDLL(str(library)).products
        calls = [_c_call(products) for _ in range(threads)]
        best = min(_in_threads(calls, seconds))
    return threads * CALL * 64 * ROWS * WORDS * COLUMNS / best / 1e9


def _c_call(products: Callable[..., None]) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    rows = rng.integers(2**63, size=(ROWS, WORDS), dtype=np.uint64)
    columns = rng.integers(2**63, size=(WORDS, COLUMNS), dtype=np.uint64)
    sums = np.zeros((ROWS, COLUMNS), np.uint64)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, columns, sums)]

    def call(keep: tuple[np.ndarray, ...] = (rows, columns, sums)) -> None:
        del keep
        products(*pointers, ctypes.c_long(WORDS), ctypes.c_long(CALL))

    return call


def _in_threads(calls: list[Callable[[], None]], seconds: float) -> Iterator[float]:
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        workers = [Thread(target=call) for call in calls]
        before = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        yield time.perf_counter() - before
