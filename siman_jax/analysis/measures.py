"""Measures of the weights of each binary layer: their distribution, and how well bits fit them."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array

from siman_jax.analysis.distributions import Fit, fit_scale, fit_shape_and_scale
from siman_jax.analysis.theory import GAUSSIAN, LAPLACIAN, entropy
from siman_jax.models.leaves import BINARY_KERNEL
from siman_jax.rules.magnitude_bits import angle_optimal_bits, cosine, half_half_bits
from siman_jax.rules.standardize import standardize

# Edges of the histograms, in standard deviations of a filter.
EDGES = np.linspace(-4, 4, 49)


class Measures(NamedTuple):
    """The measures of one layer that a run logs.

    Attributes:
      fitted_shape: shape of the generalized Gaussian that fits best.
      generalised_fit, laplacian_fit, gaussian_fit: mean log-likelihoods, in nats.
      best_share, best_entropy, best_cosine: of the bits chosen by the angle-optimal rule.
      half_half_cosine, sign_cosine: of the bits chosen by half-half and by sign.
    """

    fitted_shape: float
    generalised_fit: float
    laplacian_fit: float
    gaussian_fit: float
    best_share: float
    best_entropy: float
    best_cosine: float
    half_half_cosine: float
    sign_cosine: float


class KernelMeasures(NamedTuple):
    """All measures of one binary kernel; means are over its filters, each standardized first.

    Attributes:
      name: path of the layer.
      weights, filters: how many there are.
      counts: how many weights lie between each pair of `EDGES`; those outside are not counted.
      laplacian, gaussian, generalised: fits to all standardized weights of the layer.
      share: mean share of ones chosen by the angle-optimal rule.
      entropy: mean entropy of these bits, in bits.
      cosine: mean cos(|u|, b) with these bits.
      half_half_cosine: mean cos(|u|, b) with ones for the larger half.
      sign_cosine: mean cos(u, sign u).
    """

    name: str
    weights: int
    filters: int
    counts: list[int]
    laplacian: Fit
    gaussian: Fit
    generalised: Fit
    share: float
    entropy: float
    cosine: float
    half_half_cosine: float
    sign_cosine: float

    def measures(self) -> Measures:
        """Return the measures that a run logs."""
        return Measures(
            fitted_shape=self.generalised.shape,
            generalised_fit=self.generalised.log_likelihood,
            laplacian_fit=self.laplacian.log_likelihood,
            gaussian_fit=self.gaussian.log_likelihood,
            best_share=self.share,
            best_entropy=self.entropy,
            best_cosine=self.cosine,
            half_half_cosine=self.half_half_cosine,
            sign_cosine=self.sign_cosine,
        )


def binary_kernels(params: Mapping) -> Iterator[tuple[str, Array]]:
    """Yield every binary kernel `[..., out]` with the path of its layer, in the network's order."""
    for path, leaf in flatten_dict(params).items():
        if path[-1] == BINARY_KERNEL:
            yield "/".join(path[:-1]), leaf


def can_be_measured(kernel: Array) -> bool:
    """Tell whether all weights of a kernel `[..., out]` are finite, and some filter's differ."""
    deviations = np.asarray(jnp.std(kernel, range(kernel.ndim - 1)))
    return bool(np.isfinite(deviations).all() and deviations.any())


def measure_layer(name: str, kernel: Array) -> KernelMeasures:
    """Measure one kernel.

    Args:
      name: path of the layer.
      kernel: `[..., out]`, the latent weights, for which `can_be_measured` is true.
    """
    u, share, *cosines = map(np.asarray, _by_filter(kernel))
    best, half_half, sign = (float(np.mean(values)) for values in cosines)
    return KernelMeasures(
        name=name,
        weights=u.size,
        filters=u.shape[-1],
        counts=np.histogram(u, EDGES)[0].tolist(),
        laplacian=fit_scale(u, LAPLACIAN),
        gaussian=fit_scale(u, GAUSSIAN),
        generalised=fit_shape_and_scale(u),
        share=float(np.mean(share)),
        entropy=float(np.mean(entropy(share))),
        cosine=best,
        half_half_cosine=half_half,
        sign_cosine=sign,
    )


def measure_kernels(params: Mapping) -> dict[str, dict[str, float]]:
    """Measure every binary kernel; return for each of `Measures` its values by layer path."""
    layers = {name: measure_layer(name, kernel) for name, kernel in binary_kernels(params)}
    measures = {name: layer.measures() for name, layer in layers.items()}
    return {
        measure: {name: getattr(own, measure) for name, own in measures.items()}
        for measure in Measures._fields
    }


@jax.jit
def _by_filter(kernel: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return standardized weights, and the best share and three cosines of each filter."""
    # Without the rule's epsilon, which is not small compared to the variance of decayed kernels.
    u = standardize(kernel, range(kernel.ndim - 1), epsilon=0)
    best = angle_optimal_bits(u)
    # cos(u, sign u) equals cos(|u|, 1).
    return u, best.share, best.cosine, cosine(u, half_half_bits(u)), cosine(u, jnp.ones_like(u))
