"""The angle-optimal bits for weights of a known distribution.

The distributions are symmetric generalized Gaussians, with density proportional to exp(-|w|^shape).
Shape 1 is the Laplacian, 2 the Gaussian, and infinity the uniform distribution. No result depends
on the scale.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import entr, gammaincc, gammainccinv, gammaln

LAPLACIAN, GAUSSIAN, UNIFORM = 1.0, 2.0, math.inf

_LEAST_SHARE = 1e-9


class Optimum(NamedTuple):
    """The best bits b for infinitely many weights w.

    Attributes:
      share: share of ones that maximizes cos(|w|, b).
      entropy: entropy of such a bit, in bits.
      cosine: the maximum of cos(|w|, b).
      half_half_cosine: cos(|w|, b) with ones for the larger half of |w|.
      sign_cosine: cos(w, sign w).
    """

    share: float
    entropy: float
    cosine: float
    half_half_cosine: float
    sign_cosine: float


def optimum(shape: float) -> Optimum:
    """Compute the best share of ones for weights of a generalized Gaussian, and the cosines.

    With p(t) = P(|w| > t) and m(t) = E[|w|; |w| > t] the cosine with ones above t is

        m(t) / sqrt(p(t) E[w^2]),   largest where m(t) = 2 t p(t)

    Args:
      shape: above 0; `math.inf` for the uniform distribution.

    Source: arXiv 2102.07981; for the Laplacian the best share is 1/e.

    >>> [round(x, 3) for x in optimum(LAPLACIAN)]
    [0.368, 0.949, 0.858, 0.847, 0.707]
    """
    share = brentq(lambda p: _mean_above(p, shape) - 2 * p * _threshold(p, shape), _LEAST_SHARE, 1)
    rms = math.sqrt(_mean_square(shape))
    best, half, all_of_them = (
        _mean_above(p, shape) / (math.sqrt(p) * rms) for p in (share, 0.5, 1.0)
    )
    return Optimum(share, float(entropy(share)), best, half, all_of_them)


def entropy(share: ArrayLike) -> np.ndarray:
    """Compute the entropy, in bits, of a bit that is 1 with probability `share`, elementwise."""
    share = np.asarray(share, np.float64)
    return (entr(share) + entr(1 - share)) / math.log(2)


def _threshold(share: float, shape: float) -> float:
    """Return t with P(|w| > t) = share."""
    if shape == UNIFORM:
        return 1 - share
    return float(gammainccinv(1 / shape, share)) ** (1 / shape)


def _mean_above(share: float, shape: float) -> float:
    """Compute E[|w|; |w| > t] at the threshold t of `share`."""
    t = _threshold(share, shape)
    if shape == UNIFORM:
        return (1 - t * t) / 2
    return _moment(1, shape) * float(gammaincc(2 / shape, t**shape))


def _mean_square(shape: float) -> float:
    return 1 / 3 if shape == UNIFORM else _moment(2, shape)


def _moment(k: int, shape: float) -> float:
    """Compute E[|w|^k]."""
    return math.exp(gammaln((k + 1) / shape) - gammaln(1 / shape))
