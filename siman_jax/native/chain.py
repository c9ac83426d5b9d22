"""Joins a native norm to the convolution after it, so that its results stay in the cache.

Within `chained`, norms keep what their results were computed from. A convolution whose input and
shortcut are such a result computes it again, one sample after the other, just before it reads it.
In the backward direction it also computes the sums that the norm's gradient needs, of the gradient
that it has just written. XLA leaves out the norm's own computations, which nobody uses then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from siman_jax.native.dispatch import differentiable, without_gradient
from siman_jax.native.norm import gradient_sums


class Source(NamedTuple):
    """What the results of a norm were computed from.

    The norm takes the gradient of `out` together with that of `sums`, and trusts that the latter
    are the sums for the former. So only `opened` and convolutions may use `out`: they return both.

    Attributes:
      out: the results.
      sums: zeros `[3, channels]`, whose cotangent are the sums of the norm's gradient.
      y: inputs of the norm `[samples, pixels, channels]`, float32 or int16.
      shortcut: of the same shape, or empty.
      rows: centre, gain, offset and slope `[4, channels]`.
      activation: of the norm.
    """

    out: Array
    sums: Array
    y: Array
    shortcut: Array
    rows: Array
    activation: int

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What `out` is computed from, and `sums`, for a native function."""
        return (*map(lax.stop_gradient, (self.y, self.shortcut, self.rows)), self.sums)


_SOURCES: ContextVar[dict[int, tuple[Array, Source]] | None] = ContextVar("sources", default=None)


@contextmanager
def chained() -> Iterator[None]:
    """Join norms and convolutions that are traced in this context."""
    token = _SOURCES.set({})
    try:
        yield
    finally:
        _SOURCES.reset(token)


def opened(source: Source) -> Array:
    """Return the results of a norm for any use, and remember their source."""

    def reference(out: Array, *arrays: Array) -> Array:
        del arrays
        return out

    def forward(out: Array, *arrays: Array) -> tuple[Array, tuple[()]]:
        del arrays
        return out, ()

    def backward(arrays: tuple[Array, ...], kept: tuple[()], g: Array) -> tuple[Array | None, ...]:
        del kept
        _, y, shortcut, rows, _ = arrays
        sums = gradient_sums(g, y, shortcut, rows, source.activation)
        return g, without_gradient(y), jnp.zeros_like(shortcut), jnp.zeros_like(rows), sums

    out = differentiable(reference, forward, backward)(source.out, *source.arrays)
    if (sources := _SOURCES.get()) is not None:
        sources[id(out)] = out, source  # it refers to `out`, whose id stays its own
    return out


def source_of(x: Array) -> Source | None:
    """Return what x was computed from, if it is the result of `opened` in this context."""
    _, source = (_SOURCES.get() or {}).get(id(x), (x, None))
    return source
