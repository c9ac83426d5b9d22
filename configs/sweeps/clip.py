r"""Study 3, how much to clip: 0, 5, 15 and 25 percent, constant or decaying, with half-half bits.

    python -m siman_jax.sweep configs/sweeps/clip.py --set=data.root=ROOT \
        --workdir=runs/sweeps/clip

Protocol, written before any run: budget, learning rate and schedule of configs/cifar10_short.py
for all seven variants; three seeds; no tuning. 21 runs, about 1.6 hours on 2 cores, calculated.
"decaying" decreases linearly to 0 over the epochs; the paper does this from 15 percent. 0 percent
is the same either way. Compared are the accuracy of the last epoch and the fraction of bits that
flip in an epoch, which is in the logs.
"""

from typing import Any

from siman_jax.configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """Return the grid."""
    variants: dict[str, dict[str, Any]] = {"none": {"optimizer.clip_percent": 0.0}}
    for percent in (5.0, 15.0, 25.0):
        for name, decays in (("constant", False), ("decaying", True)):
            variants[f"{name}_{percent:g}"] = {
                "optimizer.clip_percent": percent,
                "optimizer.clip_decays": decays,
            }
    return Sweep("clip", cifar10_short.get_config(), variants, seeds=(0, 1, 2))
