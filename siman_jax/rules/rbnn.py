"""RBNN's rotated kernels: once per epoch, rotations turn the weights towards their signs.

A filter of n weights is treated as a p x q matrix, so that two small rotations replace one of
n x n.

Source: Lin et al., "Rotated Binary Neural Network", arXiv 2009.13055; as the authors' program
computes it.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from siman_jax.rules.estimators import triangle_sign
from siman_jax.rules.standardize import filter_axes, standardize

# Rounds of an update; each updates the codes and both rotations.
_ROUNDS = 3


class Rotations(NamedTuple):
    """The two rotations of a layer.

    Attributes:
      left: R1, orthogonal, `[p, p]`.
      right: R2, orthogonal, `[q, q]`.
    """

    left: Array
    right: Array


def matrix_shape(n: int) -> tuple[int, int]:
    """Return the shape p x q of a filter of n weights; p is the largest divisor up to sqrt(n).

    >>> matrix_shape(144), matrix_shape(72), matrix_shape(7)
    ((12, 12), (8, 9), (1, 7))
    """
    p = next(p for p in range(math.isqrt(n), 0, -1) if n % p == 0)
    return p, n // p


def update_rotations(kernel: Array, rotations: Rotations) -> Rotations:
    """Update the rotations of a layer so that its filters move closer to their signs.

        X_i = filter i of standardize(w) without epsilon, as [p, q]
        B_i = sign(R1' X_i R2)
        R1  = V U',   U S V' the SVD of sum_i B_i R2' X_i'
        R2  = U V',   U S V' the SVD of sum_i X_i' R1 B_i

    This is done in three rounds, and has no gradient.

    Args:
      kernel: latent, `[..., out]`.
      rotations: before the update, in the dtype of `kernel`.

    Returns:
      Rotations of the same shapes and dtype.
    """
    x = _matrices(standardize(kernel, filter_axes(kernel), epsilon=0))

    def one_round(_: Any, rotations: Rotations) -> Rotations:
        left, right = rotations
        codes = jnp.where(_rotate(x, left, right) >= 0, 1, -1).astype(x.dtype)
        u, _, vt = jnp.linalg.svd(_product("ipq,rq,isr->ps", codes, right, x))
        left = _product("kp,sk->ps", vt, u)
        u, _, vt = jnp.linalg.svd(_product("ipq,ps,isr->qr", x, left, codes))
        right = _product("qk,kr->qr", u, vt)
        return Rotations(left, right)

    return lax.fori_loop(0, _ROUNDS, one_round, rotations)


def rbnn_kernel(
    kernel: Array, theta: Array, left: Array, right: Array, sharpness: Array | float
) -> Array:
    """Binarize by the sign of weights that are moved towards their rotation by a learned angle.

        forward:   sign(v),   v = u + |sin(theta)| (R1' u R2 - u),
                   u = standardize(w) per filter, without epsilon
        backward:  dL/dv = g * k max(0, sqrt(2) t - t^2 |v|),   k = max(1/t, 1), then the true
                   derivative, with the rotated weights as a constant

    Args:
      kernel: latent, `[..., out]`, at least two weights per filter.
      theta: angle per filter, `[out]`.
      left: R1, `[p, p]`.
      right: R2, `[q, q]`.
      sharpness: t, a scalar.

    Returns:
      Array of the shape and dtype of `kernel`, in {-1, +1}; sign(0) = +1.
    """
    u = standardize(kernel, filter_axes(kernel), epsilon=0)
    rotated = _kernel(_rotate(_matrices(u), left.astype(u.dtype), right.astype(u.dtype)), u)
    share = lax.expand_dims(jnp.abs(jnp.sin(theta)).astype(u.dtype), filter_axes(u))
    v = u + share * (lax.stop_gradient(rotated) - u)
    t = jnp.asarray(sharpness, u.dtype)
    return triangle_sign(v, t, jnp.maximum(1 / t, 1))


def rbnn_activation(x: Array, sharpness: Array | float) -> Array:
    """Binarize activations by their sign about each sample's mean.

        forward:   sign(u),   u = (a - mean(a)) / std(a) per sample
        backward:  dL/du = g * max(0, sqrt(2) t' - t'^2 |u|),   t' = max(t, 1), then the true
                   derivative of standardize

    Args:
      x: `[batch, ..., channels]`; a sample whose activations are all equal gives +1.
      sharpness: t, a scalar.

    Returns:
      Array of the shape and dtype of `x`, in {-1, +1}.
    """
    t = jnp.maximum(jnp.asarray(sharpness, x.dtype), 1)
    return triangle_sign(standardize(x, range(1, x.ndim), epsilon=0), t, 1.0)


def _rotate(x: Array, left: Array, right: Array) -> Array:
    return _product("ps,ipq,qr->isr", left, x, right)


def _product(indices: str, *operands: Array) -> Array:
    # Signs and orthogonality need full precision.
    return jnp.einsum(indices, *operands, precision=lax.Precision.HIGHEST)


def _matrices(kernel: Array) -> Array:
    """Reshape `[..., in, out]` to `[out, p, q]`, input channels outermost, as the authors do."""
    p, q = matrix_shape(math.prod(kernel.shape[:-1]))
    return jnp.moveaxis(kernel, (-1, -2), (0, 1)).reshape(-1, p, q)


def _kernel(matrices: Array, like: Array) -> Array:
    """Invert `_matrices`."""
    *taps, inputs, outputs = like.shape
    return jnp.moveaxis(matrices.reshape(outputs, inputs, *taps), (0, 1), (-1, -2))
