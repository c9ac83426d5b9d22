"""OvSW's scaled gradients, which move kernels that hardly change."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def gradient_floor(share: float) -> optax.GradientTransformation:
    """Scale up the gradient of each filter whose norm is small beside that of its weights.

        g <- g * share |w| / |g|   where |g| < share |w|, else g

    A filter is everything that makes one output: `w[..., c]` of a kernel. Its bits change only once
    weights cross a threshold, which small gradients beside large weights hardly ever do. As in the
    authors' program |w| counts as at least 1e-3 and |g| as at least 1e-6, so that gradients of
    rounding errors are not raised without bound.

    Args:
      share: the smallest |g| / |w|, above 0; 0.04 for ResNet-20 and 0.01 for ImageNet in the paper.

    Source: Xiang et al., "OvSW: Overcoming Silent Weights", arXiv 2407.05257 (2024).

    >>> optimizer = gradient_floor(0.5)
    >>> w, g = jnp.array([[4.0, 4.0], [3.0, 3.0]]), jnp.array([[0.6, 4.0], [0.8, 3.0]])
    >>> optimizer.update(g, optimizer.init(w), w)[0]
    Array([[1.5, 4. ],
           [2. , 3. ]], dtype=float32)
    """

    def raised(g: Array, w: Array) -> Array:
        norm, least = jnp.maximum(_norms(g), 1e-6), share * jnp.maximum(_norms(w), 1e-3)
        return jnp.where(norm < least, g * (least / norm), g)

    def update(gradients: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(raised, gradients, params)

    return optax.stateless(update)


def _norms(x: Array) -> Array:
    """Norm of each filter, `[1, ..., filters]`."""
    return jnp.sqrt(jnp.sum(x**2, tuple(range(x.ndim - 1)), keepdims=True))
