"""Maximum likelihood of symmetric distributions about zero, on as many weights as a layer has.

All are generalised Gaussians, so that their log-likelihoods compare:

    density(w) = shape / (2 scale Gamma(1 / shape)) exp(-(|w| / scale)^shape)

Shape 1 is the Laplacian and 2 the Gaussian, of variance scale^2 / 2.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

# Shapes looked through: from far peakier than the Laplacian to what nobody tells from uniform.
SHAPES = (0.2, 50.0)


class Fit(NamedTuple):
    """A distribution and how well it fits.

    Attributes:
      shape, scale: its parameters.
      log_likelihood: mean over the weights, in nats.
    """

    shape: float
    scale: float
    log_likelihood: float


def fit_scale(w: np.ndarray, shape: float) -> Fit:
    """Maximum likelihood at a known shape, which has a closed form.

        scale^shape = shape * mean(|w|^shape)

    Args:
      w: floats of any shape, not all of them zero.
      shape: of the distribution.
    """
    return _fit(*_in_units_of_the_largest(w), shape)


def fit_shape_and_scale(w: np.ndarray) -> Fit:
    """Maximum likelihood of both: the closed form for the scale, a search in one dimension.

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
    """Density of the fitted distribution at each `x`."""
    peak = fit.shape / (2 * fit.scale * math.gamma(1 / fit.shape))
    return peak * np.exp(-((np.abs(x) / fit.scale) ** fit.shape))


def _in_units_of_the_largest(w: np.ndarray) -> tuple[np.ndarray, float]:
    """|w| / max|w| in float64, flat, so that no power overflows; and max|w|."""
    magnitudes = np.abs(w, dtype=np.float64).ravel()
    largest = max(float(magnitudes.max()), np.finfo(np.float64).tiny)
    return magnitudes / largest, largest


def _fit(magnitudes: np.ndarray, unit: float, shape: float) -> Fit:
    power = max(float(np.mean(magnitudes**shape)), np.finfo(np.float64).tiny)
    log_scale = math.log(unit) + math.log(shape * power) / shape
    log_likelihood = math.log(shape / 2) - log_scale - float(gammaln(1 / shape)) - 1 / shape
    return Fit(shape, math.exp(log_scale), log_likelihood)
