r"""CIFAR-10 by the strong recipe: SiMaN's weights, and ReActNet's network and training around them.

    python -m siman_jax.main --config=configs/cifar10_strong.py \
        --steps=teacher,real_weights,binary --workdir=runs/strong

| step           | network              | epochs | weights | activations |
|----------------|----------------------|--------|---------|-------------|
| `teacher`      | ResNet-20            | 400    | real    | real        |
| `real_weights` | ResNet-20 (ReActNet) | 200    | real    | 1 bit       |
| `binary`       | ResNet-20 (ReActNet) | 200    | 1 bit   | 1 bit       |

The teacher has the published recipe of configs/cifar10.py. The other two have as many epochs
together; they learn the teacher's answers, by Adam with a learning rate that falls linearly to 0,
set per epoch. The last step starts from the one before, and has no weight decay. Thresholds and
PReLUs are shifted by channel; shortcuts that change the shape are pooled.

Expected accuracy: this combination has not been published. Others publish, for ResNet-20 with 1-bit
weights and activations: SiMaN 87.4 %, ReCU 87.5 %, and 88.0 % tuned on, IE-Net 88.5 %.

Cost, calculated as in configs/cifar10.py and not measured: 0.03 H100-hours for the teacher, and
0.04 for the other two steps, whose images the teacher sees too (8 operations instead of 6).

Sources: SiMaN, arXiv 2102.07981; ReActNet, arXiv 2003.03488, whose learning rate of 2.5e-3 at batch
512 is halved for batch 256, as in arXiv 2106.11309.
"""

from ml_collections import ConfigDict

from siman_jax.configs import cifar10
from siman_jax.errors import choose

NETWORK = "cifar.react20_1w1a"
# Rule of the weights in each step.
STEPS = {"teacher": "real", "real_weights": "real", "binary": "half_half"}


def get_config(step: str = "binary") -> ConfigDict:
    """Return the config of a step's run; `step` is a key of `STEPS`."""
    config = cifar10.get_config("resnet20")
    config.model.weight_rule = choose(STEPS, step, "step")
    if step == "teacher":
        return config
    config.epochs = 200
    config.model.name = NETWORK
    train_as_reactnet(config, step)
    return config


def train_as_reactnet(config: ConfigDict, step: str) -> None:
    """Set what ReActNet's two steps have in common; `step` is "real_weights" or "binary"."""
    config.init_from = "real_weights" if step == "binary" else ""
    config.model.activation_rule = "approx_sign"  # ReActNet's, after its thresholds
    config.distillation.teacher = "teacher"
    config.distillation.temperature = 1.0
    config.distillation.weight = 1.0  # the labels do not count

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2.5e-3 / 512 * config.batch_size
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0
    if step == "real_weights":
        config.optimizer.weight_decay = 1e-5
        config.optimizer.undecayed = ("bias", "scale", "slope", "shift")
