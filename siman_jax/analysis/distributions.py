"""Maximum likelihood fits of distributions symmetric about zero, for the weights of a layer.

All are generalized Gaussians, so their log-likelihoods can be compared:

    density(w) = shape / (2 scale Gamma(1 / shape)) exp(-(|w| / scale)^shape)

Shape 1 is the Laplacian and 2 the Gaussian, of variance scale^2 / 2.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

# Range of shapes that is searched: from much peakier than the Laplacian to almost uniform.
SHAPES = (0.2, 50.0)


class Fit(NamedTuple):
    """A fitted distribution.

    Attributes:
      shape, scale: its parameters.
      log_likelihood: mean over the weights, in nats.
    """

    shape: float
    scale: float
    log_likelihood: float


def fit_scale(w: np.ndarray, shape: float) -> Fit:
    """Fit the scale for a given shape, in closed form.

        scale^shape = shape * mean(|w|^shape)

    Args:
      w: floats of any shape, not all of them zero.
      shape: of the distribution.
    """
    return _fit(*_in_units_of_the_largest(w), shape)


def fit_shape_and_scale(w: np.ndarray) -> Fit:
    """Fit shape and scale: a one-dimensional search, with the closed form for the scale.

    Args:
      w: floats of any shape, not all of them zero.

    Returns:
      The best `Fit` with a shape within `SHAPES`.
    """
    magnitudes, largest = _in_units_of_the_largest(w)
    low, high = np.log(SHAPES)
    found = minimize_scalar(
        lambda log_shape: -_fit(magnitudes, largest, math.exp(log_shape)).log_likelihood,
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return _fit(magnitudes, largest, math.exp(found.x))


def density(fit: Fit, x: np.ndarray) -> np.ndarray:
    """Evaluate the density of the fitted distribution at each `x`."""
    peak = fit.shape / (2 * fit.scale * math.gamma(1 / fit.shape))
    return peak * np.exp(-((np.abs(x) / fit.scale) ** fit.shape))


def _in_units_of_the_largest(w: np.ndarray) -> tuple[np.ndarray, float]:
    """Return |w| / max|w|, flat and in float64, so that no power overflows; and max|w|."""
    magnitudes = np.abs(w, dtype=np.float64).ravel()
    largest = max(float(magnitudes.max()), np.finfo(np.float64).tiny)
    return magnitudes / largest, largest


def _fit(magnitudes: np.ndarray, unit: float, shape: float) -> Fit:
    power = max(float(np.mean(magnitudes**shape)), np.finfo(np.float64).tiny)
    log_scale = math.log(unit) + math.log(shape * power) / shape
    log_likelihood = math.log(shape / 2) - log_scale - float(gammaln(1 / shape)) - 1 / shape
    return Fit(shape, math.exp(log_scale), log_likelihood)
