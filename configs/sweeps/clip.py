r"""Study 3, how much to clip: 0, 5, 15 and 25 percent of half-half's kernels, constant or decaying.

    python -m siman_jax.sweep configs/sweeps/clip.py --set=data.root=ROOT \
        --workdir=runs/sweeps/clip

Protocol, written down before any run: budget, learning rate and schedule of
configs/cifar10_short.py for all seven variants, three seeds, nothing tuned; 21 runs, on 2 cores
about 1.6 hours, calculated. "decaying" falls linearly to 0 with the epochs, as published from 15;
0 percent is the same either way. To compare: last epoch's accuracy, and the share of bits that
flip in an epoch, which the logs hold.
"""

from typing import Any

from configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """The grid."""
    variants: dict[str, dict[str, Any]] = {"none": {"optimizer.clip_percent": 0.0}}
    for percent in (5.0, 15.0, 25.0):
        for name, decays in (("constant", False), ("decaying", True)):
            variants[f"{name}_{percent:g}"] = {
                "optimizer.clip_percent": percent,
                "optimizer.clip_decays": decays,
            }
    return Sweep("clip", cifar10_short.get_config(), variants, seeds=(0, 1, 2))
