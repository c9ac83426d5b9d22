"""Flax layers that shift channels by learned numbers, as ReActNet does.

A shift before a sign is a learned threshold; ReActNet calls it RSign.

Source: Liu et al., "ReActNet", arXiv 2003.03488 (2020), section 4.2.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from siman_jax.models.batch_norm import per_channel
from siman_jax.models.norm_layer import PReLU


class Shift(nn.Module):
    """x + b, with one learned b per channel, which starts at 0.

    >>> import jax
    >>> variables = {"params": {"shift": jnp.float32([1, -1])}}
    >>> Shift().apply(variables, jnp.float32([[0, 5]])).tolist()
    [[1.0, 4.0]]
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        shift = self.param("shift", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return x + per_channel(shift, x)


class RPReLU(nn.Module):
    """PReLU(x + b) + c, with slope, b and c learned per channel; equation 4 of the source.

    >>> import jax
    >>> y, variables = RPReLU().init_with_output(jax.random.key(0), jnp.float32([[-2, 4]]))
    >>> y.tolist(), sorted(variables["params"])
    ([[-0.5, 4.0]], ['after', 'before', 'prelu'])
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        return Shift(name="after")(PReLU(name="prelu")(Shift(name="before")(x)))
