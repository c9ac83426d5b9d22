r"""Study 1, comparison of methods: all weight rules, and Bop, on CIFAR-10 with ResNet-20.

    python -m siman_jax.sweep configs/sweeps/methods.py --set=data.root=ROOT \
        --workdir=runs/sweeps/methods

Protocol, written before any run:

- Budget: that of configs/cifar10_short.py for every method, three seeds. 36 runs, about 2.7 hours
  on 2 cores, calculated. On a GPU, use `--set=epochs=100 --set=data.train_examples=0`.
- Tuning: none. All methods have SiMaN's learning rate, schedule, batch size, weight decay of 5e-4
  and augmentation. Settings of single methods are the published ones: sharpness from 1e-2 for RBNN
  and from 1e-3 for IR-Net's ResNet-20, ReCU's tau, Bop's adaptivity and threshold.
- Weight decay: SiMaN leaves out binary kernels and alphas. Other methods decay all parameters,
  except that Bop does not decay binary kernels, whose magnitude has no meaning.
- Each method has the activations that it was published with.
- ir_net_0.1 was added after seed 0 of ir_net had diverged. Its sharpness starts at 1e-1, as in
  IR-Net for all networks except ResNet-20. IR-Net's ResNet-20 has hardtanh, and this one PReLU, so
  nothing bounds the gradients here, which the estimator lets pass.
- Reported are mean and standard deviation over the seeds, for the last and the best epoch. The best
  epoch is chosen on the test split, as is usual in this field, and so is biased; compare the last.
"""

from typing import Any

from siman_jax.configs import cifar10_short
from siman_jax.runs.sweep_plan import Sweep

SPARING = ("half_half", "angle_optimal")
DECAYING = ("bnn", "xnor_net", "dorefa", "bi_real", "ir_net", "rbnn", "recu", "real")
PUBLISHED: dict[str, dict[str, Any]] = {
    "ir_net": {"estimator.first_sharpness": 1e-3},
    "rbnn": {"estimator.first_sharpness": 1e-2},
}


def get_sweep() -> Sweep:
    """Return the grid."""
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
