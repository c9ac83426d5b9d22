"""Bop, an optimizer that flips the signs of binary kernels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class BopState(NamedTuple):
    """State of Bop.

    Attributes:
      average: exponential moving average of the gradients, in the shapes of the parameters.
    """

    average: optax.Params


def bop(adaptivity: float, threshold: float) -> optax.GradientTransformation:
    """Flip the sign of a weight after the gradient has pushed against it for long enough.

        m <- (1 - gamma) m + gamma g
        w <- -w where |m| > tau and sign(m) = sign(w), else w

    Only the signs of the weights matter. Their initial magnitude may be anything, but not above 1
    if the backward pass of the rule is 1[|w| <= 1], as for BNN. There is no learning rate. A
    weight of 0 stays 0.

    Args:
      adaptivity: gamma in (0, 1]; 1e-4 in the paper.
      threshold: tau >= 0; 1e-8 in the paper.

    Source: Helwegen et al., "Latent Weights Do Not Exist", arXiv 1906.02107 (2019).

    >>> optimizer = bop(adaptivity=0.5, threshold=0.1)
    >>> w = jnp.array([0.5, 0.5, -0.5])
    >>> updates, _ = optimizer.update(jnp.array([1.0, 0.1, 1.0]), optimizer.init(w), w)
    >>> w + updates
    Array([-0.5,  0.5, -0.5], dtype=float32)
    """

    def init(params: optax.Params) -> BopState:
        return BopState(jax.tree.map(jnp.zeros_like, params))

    def update(
        gradients: optax.Updates, state: BopState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, BopState]:
        def average(m: Array, g: Array) -> Array:
            return (1 - adaptivity) * m + adaptivity * g

        def flip(m: Array, w: Array) -> Array:
            return jnp.where((jnp.abs(m) > threshold) & (jnp.sign(m) == jnp.sign(w)), -2 * w, 0)

        averages = jax.tree.map(average, state.average, gradients)
        return jax.tree.map(flip, averages, params), BopState(averages)

    return optax.GradientTransformation(init, update)
