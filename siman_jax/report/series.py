"""The measures of kernels that the report draws over time."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from siman_jax.analysis.measures import Measures
from siman_jax.analysis.theory import GAUSSIAN, LAPLACIAN, optimum


class Series(NamedTuple):
    """A measure of binary kernels, to draw over time.

    Attributes:
      name: part of file names.
      title, note: title and explanation on the page.
      unit: label of the axis.
      value: function from the measures of a layer to the number.
      references: values of one or two ideal distributions, by name.
      scale: matplotlib's name of the axis scale.
    """

    name: str
    title: str
    note: str
    unit: str
    value: Callable[[Measures], float]
    references: Mapping[str, float]
    scale: str = "linear"


def kernel_series() -> list[Series]:
    """Return all measures that the report draws."""
    laplacian, gaussian = optimum(LAPLACIAN), optimum(GAUSSIAN)
    return [
        Series(
            "shape",
            "Shape",
            "1 is the Laplacian, 2 the Gaussian; 50 is the largest shape that is tried.",
            "fitted shape",
            lambda layer: layer.fitted_shape,
            {"ideal Laplacian": LAPLACIAN, "ideal Gaussian": GAUSSIAN},
            scale="log",
        ),
        Series(
            "fit",
            "Gaussian or Laplacian",
            "Mean log-likelihood of the fitted Gaussian minus that of the fitted Laplacian; above"
            " 0 the Gaussian fits better.",
            "Gaussian over Laplacian (nats)",
            lambda layer: layer.gaussian_fit - layer.laplacian_fit,
            {"equally good": 0.0},
        ),
        Series(
            "share",
            "Best share of ones",
            "Half-half is the optimum where it is 0.5.",
            "best share of ones",
            lambda layer: layer.best_share,
            {"ideal Laplacian": laplacian.share, "ideal Gaussian": gaussian.share},
        ),
        Series(
            "entropy",
            "Entropy",
            "Entropy of the bits that the angle-optimal rule would choose; half-half has 1.",
            "entropy of the best bits",
            lambda layer: layer.best_entropy,
            {"ideal Laplacian": laplacian.entropy},
        ),
        Series(
            "loss-of-cosine",
            "Loss of half-half",
            "The best cosine minus that of half-half.",
            "cosine lost by half-half",
            lambda layer: layer.best_cosine - layer.half_half_cosine,
            {"ideal Laplacian": laplacian.cosine - laplacian.half_half_cosine},
        ),
        Series(
            "sign-cosine",
            "Cosine of sign bits",
            "Cosine between the weights and their signs.",
            "cosine of sign bits",
            lambda layer: layer.sign_cosine,
            {
                "ideal Laplacian": laplacian.sign_cosine,
                "ideal Gaussian": gaussian.sign_cosine,
            },
        ),
    ]
