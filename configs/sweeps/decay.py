r"""Study 2, why SiMaN drops L2: decay of binary kernels, none and two strengths, by two rules.

    python -m siman_jax.sweep configs/sweeps/decay.py --set=data.root=ROOT \
        --workdir=runs/sweeps/decay

The paper's argument: L2 keeps kernels Laplacian, where the bits of the smallest angle are uneven
and waste entropy; without it, half-half bits come close to the smallest angle.

Protocol, written down before any run: budget, learning rate and schedule of
configs/cifar10_short.py for all six variants, three seeds, nothing tuned; 18 runs, on 2 cores
about 1.3 hours, calculated. Binary kernels and alphas are spared by the common weight decay of 5e-4
in all variants, so that the kernels' own is the only difference. Kernels are not clipped: clipping
makes two humps of any distribution, and would hide what decay does to it.

- `no_l2`: none, as SiMaN has it;
- `l2`: 5e-4, as published for everything else;
- `l2_100`: 5e-2. What decay does to a kernel goes by decay times the sum of learning rates, and
  the published 400 epochs of 195 steps have 100 times the sum of these 5 epochs of 156. So this is
  the published strength, seen over the whole run.

To compare: last epoch's accuracy, and the entropy of the bits and the shape of the kernels in the
last checkpoint of each run.
"""

from configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep

DECAYS = {"no_l2": 0.0, "l2": 5e-4, "l2_100": 5e-2}


def get_sweep() -> Sweep:
    """The grid."""
    variants = {
        f"{rule}_{name}": {"model.weight_rule": rule, "optimizer.kernel_decay": decay}
        for rule in ("half_half", "angle_optimal")
        for name, decay in DECAYS.items()
    }
    base = cifar10_short.get_config()
    base.optimizer.clip_percent = 0.0
    return Sweep("decay", base, variants, seeds=(0, 1, 2))
