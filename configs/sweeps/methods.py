r"""Study 1, method against method: all weight rules, and Bop, on CIFAR-10 with ResNet-20.

    python -m siman_jax.sweep configs/sweeps/methods.py --set=data.root=ROOT \
        --workdir=runs/sweeps/methods

Protocol, written down before any run:

- Budget: that of configs/cifar10_short.py for every method, three seeds; 36 runs, on 2 cores about
  2.7 hours, calculated. `--set=epochs=100 --set=data.train_examples=0` is for a GPU.
- Tuning: none, of any method. All have SiMaN's learning rate, schedule, batch size, weight decay of
  5e-4 and augmentation. What a method schedules by itself is as published: sharpness from 1e-2
  for RBNN, from 1e-3 for IR-Net's ResNet-20, ReCU's tau, Bop's adaptivity and threshold.
- What is decayed goes by the method: SiMaN spares binary kernels and alphas; the others spare
  nothing, as one L2 for all parameters does. Bop decays no binary kernel, whose size means nothing.
- Each method has the activations that it was published with.
- ir_net_0.1 was added after ir_net's seed 0 had diverged: sharpness from 1e-1, as IR-Net has it for
  all networks but its ResNet-20. That one has hardtanh where this has PReLU, and an estimator that
  lets all gradients pass leaves it to the network to bound them.
- Reported are the last and the best epoch, mean and standard deviation of the seeds. The best
  epoch is chosen on the test split, as papers of this field do, and so is too good; compare the
  last.
"""

from typing import Any

from configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep

SPARING = ("half_half", "angle_optimal")
DECAYING = ("bnn", "xnor_net", "dorefa", "bi_real", "ir_net", "rbnn", "recu", "real")
PUBLISHED: dict[str, dict[str, Any]] = {
    "ir_net": {"estimator.first_sharpness": 1e-3},
    "rbnn": {"estimator.first_sharpness": 1e-2},
}


def get_sweep() -> Sweep:
    """The grid."""
    variants: dict[str, dict[str, Any]] = {
        rule: {"model.weight_rule": rule, **PUBLISHED.get(rule, {})}
        for rule in (*SPARING, *DECAYING)
    }
    variants["bop"] = {"model.weight_rule": "bnn", "optimizer.bop": True}
    variants["ir_net_0.1"] = {"model.weight_rule": "ir_net", "estimator.first_sharpness": 0.1}
    for name, fields in variants.items():
        if name not in SPARING:
            fields["optimizer.undecayed"] = ()
    return Sweep("methods", cifar10_short.get_config(), variants, seeds=(0, 1, 2))
