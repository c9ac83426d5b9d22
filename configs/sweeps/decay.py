r"""Study 2, why SiMaN drops L2: weight decay of binary kernels on and off, by both bit rules.

    python -m siman_jax.sweep configs/sweeps/decay.py --set=data.root=ROOT \
        --workdir=runs/sweeps/decay

The paper's argument: L2 keeps kernels Laplacian, where the bits of the smallest angle are uneven
and waste entropy; without it, half-half bits come close to the smallest angle.

Protocol, written down before any run: budget, learning rate and schedule of
configs/cifar10_short.py for all four variants, three seeds, nothing tuned; 12 runs, on 2 cores
about an hour, calculated. Decay is 5e-4 where it is on; alphas are spared in all of them, so that
the kernels' decay is the only difference. Five epochs are few for 5e-4 to shape a distribution: on
a GPU use `--set=epochs=100 --set=data.train_examples=0`. To compare: last epoch's accuracy, and the
entropy of the bits and the shape of the kernels in the last checkpoint of each run.
"""

from configs import cifar10_short
from siman_jax.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """The grid."""
    undecayed = {"decayed": ("alpha",), "undecayed": ("binary_kernel", "alpha")}
    variants = {
        f"{rule}_{kernels}": {"model.weight_rule": rule, "optimizer.undecayed": names}
        for rule in ("half_half", "angle_optimal")
        for kernels, names in undecayed.items()
    }
    return Sweep("decay", cifar10_short.get_config(), variants, seeds=(0, 1, 2))
