"""Settings that hold for every test: eight virtual devices, strict dtypes and ranks."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit JAX for one test."""
    with jax.enable_x64(True):
        yield
