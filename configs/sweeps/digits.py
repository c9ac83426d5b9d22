"""Four methods on the digits, two seeds each: a first sweep, which takes some minutes on a CPU.

    python -m siman_jax.sweep configs/sweeps/digits.py --workdir=runs/sweeps/digits

Settings are those of configs/digits.py. One test image is 0.28 %, so small differences mean
nothing.
"""

from siman_jax.configs import digits
from siman_jax.runs.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """Return the grid."""
    rules = ("half_half", "bnn", "xnor_net", "real")
    variants = {rule: {"model.weight_rule": rule} for rule in rules}
    return Sweep("digits", digits.get_config(), variants, seeds=(0, 1))
