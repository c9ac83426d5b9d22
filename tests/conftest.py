"""Settings for all tests: eight virtual devices, strict dtypes and ranks."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

# All processes of the tests share one compilation cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A shell ignores SIGINT for background commands, and `nohup` SIGHUP. The programs that tests start
# would inherit that, so handlers are set, which are not inherited.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

import jax
import pytest

collect_ignore = ["torture"]  # test_torture.py runs it

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_compiled() -> Iterator[None]:
    """Compiled programs of one file of tests are not kept for the next: they fill the memory."""
    yield
    jax.clear_caches()
