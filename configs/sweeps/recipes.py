r"""Study 6, which part of a recipe brings what: ReActNet's training and network, part by part.

    python -m siman_jax.sweep configs/sweeps/recipes.py --set=data.root=ROOT \
        --workdir=runs/sweeps/recipes

All train ResNet-20 with half-half weights on 20,000 evenly chosen images of CIFAR-10 (JPEG) for
20 epochs, batch 256:

- `published`: the recipe of configs/cifar10.py without its warm-up, which would take 5 of the 20
  epochs.
- `adam`: Adam in place of SGD, as in configs/cifar10_strong.py.
- `distilled`: the labels replaced by the answers of `teacher`, the same network with real weights
  and activations, trained by the published recipe.
- `shifts`: learned thresholds before signs, and shifted PReLUs.
- `averaged`: the average of the weights is evaluated, decay 0.98, about half an epoch.
- `two_steps`: ten epochs with real weights (`first_step`), then ten with both binary.
- `together`: all of these, with pooled shortcuts, no last batch norm and `approx_sign`, ten epochs
  after ten of `together_first`.

Protocol, written before any run: two seeds; each learning rate as published for its optimizer (0.1
for SGD; 1.25e-3 for Adam, ReActNet's 2.5e-3 at batch 512 halved), falling to 0 as published for it;
nothing tuned; no decay of binary kernels. Compared is the test accuracy of the last epoch with
that of `published`, seed by seed; the two steps have as many epochs together. The teacher and
the steps with real weights are not compared. The test set is looked at for nothing else. 20 runs,
about two hours on 2 cores, calculated at 1,100 images a second.
"""

from typing import Any

from siman_jax.configs import image_folder
from siman_jax.runs.sweep_plan import Sweep

ADAM: dict[str, Any] = {
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1.25e-3,
    "optimizer.schedule": "linear",
    "optimizer.weight_decay": 0.0,
}
REAL_WEIGHTS = {"model.weight_rule": "real"}


def get_sweep() -> Sweep:
    """Return the grid."""
    base = image_folder.get_config("resnet20")
    base.epochs = 20
    base.batch_size = 256
    base.keep_checkpoints = 1  # to save space: there are many runs
    base.data.num_classes = 10
    base.data.train_examples = 20_000
    base.optimizer.warmup_epochs = 0.0
    base.optimizer.staircase = True

    distilled = {"distillation.teacher": "teacher"}
    averaged = {"average_decay": 0.98}
    half = {"epochs": 10}
    all_parts = {
        **ADAM,
        **distilled,
        **half,
        "model.name": "cifar.react20_1w1a",
        "model.activation_rule": "approx_sign",
    }
    variants: dict[str, dict[str, Any]] = {
        "published": {},
        "adam": ADAM,
        "teacher": REAL_WEIGHTS,  # whose activations are real, too
        "distilled": distilled,
        "shifts": {"model.shifts": True},
        "averaged": averaged,
        "first_step": {**half, **REAL_WEIGHTS, "model.activation_rule": "siman"},
        "two_steps": {**half, "init_from": "first_step"},
        "together_first": {**all_parts, **REAL_WEIGHTS},
        "together": {**all_parts, **averaged, "init_from": "together_first"},
    }
    return Sweep("recipes", base, variants, seeds=(0, 1))
