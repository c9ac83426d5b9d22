r"""Study 4, which part of the method counts: bits by magnitude or by sign, under three activations.

    python -m siman_jax.sweep configs/sweeps/parts.py --set=data.root=ROOT \
        --workdir=runs/sweeps/parts

Study 1 gives every method the activations that it was published with, so that kernels and
activations change together. Here each of two weight rules, SiMaN's half-half and BNN's plain sign,
meets each of three activation rules: SiMaN's, which standardises each sample and then is
`approx_sign`; `approx_sign` by itself; and BNN's `ste_sign`.

Protocol, written down before any run: budget, learning rate and schedule of
configs/cifar10_short.py for all six variants, three seeds, nothing tuned, no decay of binary
kernels with either rule; 18 runs, on 2 cores about 1.4 hours, calculated. half_half_siman is the
published method, and half_half of study 1. Batch norm follows every binary layer, so SiMaN's
learned scale gives half-half nothing that the plain sign lacks; centring and clipping the stored
kernel are part of its rule. To compare: last epoch's accuracy, along rows and along columns.
"""

from typing import Any

from configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """The grid."""
    variants: dict[str, dict[str, Any]] = {
        f"{weights}_{activations}": {
            "model.weight_rule": weights,
            "model.activation_rule": activations,
        }
        for activations in ("siman", "ste_sign", "approx_sign")
        for weights in ("half_half", "bnn")
    }
    return Sweep("parts", cifar10_short.get_config(), variants, seeds=(0, 1, 2))
