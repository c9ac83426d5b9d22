"""Flax layers for activations with learned numbers per channel: PReLU, and ReActNet's shifts.

A shift before a sign is a learned threshold, which ReActNet calls RSign.

Source: Liu et al., "ReActNet", arXiv 2003.03488 (2020), section 4.2.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from siman_jax.models.batch_norm import per_channel


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with one learned slope per channel.

    >>> import jax
    >>> y, _ = PReLU().init_with_output(jax.random.key(0), jnp.float32([[-2, 4]]))
    >>> y.tolist()
    [[-0.5, 4.0]]
    """

    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        return jnp.where(x > 0, x, per_channel(self.slopes(x.shape[-1]), x) * x)

    @nn.compact
    def slopes(self, channels: int) -> Array:
        """Return the learned slopes, float32 `[channels]`."""
        return self.param("slope", nn.initializers.constant(0.25, jnp.float32), (channels,))


class Shift(nn.Module):
    """x + b, with one learned b per channel, which starts at 0.

    >>> import jax
    >>> variables = {"params": {"shift": jnp.float32([1, -1])}}
    >>> Shift().apply(variables, jnp.float32([[0, 5]])).tolist()
    [[1.0, 4.0]]
    """

    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        return x + per_channel(self.shifts(x.shape[-1]), x)

    @nn.compact
    def shifts(self, channels: int) -> Array:
        """Return the learned shifts, float32 `[channels]`."""
        return self.param("shift", nn.initializers.zeros, (channels,), jnp.float32)


class RPReLU(nn.Module):
    """PReLU(x + b) + c, with slope, b and c learned per channel; equation 4 of the source.

    >>> import jax
    >>> y, variables = RPReLU().init_with_output(jax.random.key(0), jnp.float32([[-2, 4]]))
    >>> y.tolist(), sorted(variables["params"])
    ([[-0.5, 4.0]], ['after', 'before', 'prelu'])
    """

    def setup(self) -> None:
        """Create the three parts."""
        self.before = Shift()
        self.prelu = PReLU()
        self.after = Shift()

    def __call__(self, x: Array) -> Array:
        """Map `[..., channels]` to the same shape and dtype."""
        return self.after(self.prelu(self.before(x)))
