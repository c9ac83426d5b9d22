r"""Study 2, why SiMaN drops L2: no decay and two strengths of decay of binary kernels, two rules.

    python -m siman_jax.sweep configs/sweeps/decay.py --set=data.root=ROOT \
        --workdir=runs/sweeps/decay

The paper's argument: with L2, kernels stay Laplacian, and then the bits with the smallest angle are
unbalanced and waste entropy. Without L2, half-half bits come close to the smallest angle.

Protocol, written before any run: budget, learning rate and schedule of configs/cifar10_short.py
for all six variants; three seeds; no tuning. 18 runs, about 1.3 hours on 2 cores, calculated. The
common weight decay of 5e-4 leaves out binary kernels and alphas in all variants, so the decay of
the kernels is the only difference. Kernels are not clipped, because clipping gives any distribution
two humps and would hide the effect of decay.

- `no_l2`: no decay, as in SiMaN;
- `l2`: 5e-4, the published decay of all other parameters;
- `l2_100`: 5e-2. The effect on a kernel is proportional to decay times the sum of learning rates,
  and this sum is 100 times larger in the published 400 epochs of 195 steps than in these 5 epochs
  of 156. So the effect over the whole run is that of the published strength.

Compared are the accuracy of the last epoch, and the entropy of the bits and the shape of the
kernels in the last checkpoint of each run.
"""

from siman_jax.configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep

DECAYS = {"no_l2": 0.0, "l2": 5e-4, "l2_100": 5e-2}


def get_sweep() -> Sweep:
    """Return the grid."""
    variants = {
        f"{rule}_{name}": {"model.weight_rule": rule, "optimizer.kernel_decay": decay}
        for rule in ("half_half", "angle_optimal")
        for name, decay in DECAYS.items()
    }
    base = cifar10_short.get_config()
    base.optimizer.clip_percent = 0.0
    return Sweep("decay", base, variants, seeds=(0, 1, 2))
