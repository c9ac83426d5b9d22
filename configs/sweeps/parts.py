r"""Study 4, which part of the method matters: bits by magnitude or sign, with three activations.

    python -m siman_jax.sweep configs/sweeps/parts.py --set=data.root=ROOT \
        --workdir=runs/sweeps/parts

In study 1 every method has the activations that it was published with, so kernels and activations
change together. Here each of two weight rules, SiMaN's half-half and BNN's sign, is combined with
each of three activation rules: SiMaN's, which standardizes each sample and then applies
`approx_sign`; `approx_sign` alone; and BNN's `ste_sign`.

Protocol, written before any run: budget, learning rate and schedule of configs/cifar10_short.py
for all six variants; three seeds; no tuning; no decay of binary kernels with either rule. 18 runs,
about 1.4 hours on 2 cores, calculated. half_half_siman is the published method, the half_half of
study 1. Batch norm follows every binary layer, so SiMaN's learned scale is no advantage over the
sign; centring and clipping of the stored kernel are part of half-half. Compared is the accuracy of
the last epoch, along rows and columns.
"""

from typing import Any

from siman_jax.configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """Return the grid."""
    variants: dict[str, dict[str, Any]] = {
        f"{weights}_{activations}": {
            "model.weight_rule": weights,
            "model.activation_rule": activations,
        }
        for activations in ("siman", "ste_sign", "approx_sign")
        for weights in ("half_half", "bnn")
    }
    return Sweep("parts", cifar10_short.get_config(), variants, seeds=(0, 1, 2))
