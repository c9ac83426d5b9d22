"""The floating dtype to compute sums and statistics in."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype to accumulate in: float64 for float64, otherwise float32."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)
