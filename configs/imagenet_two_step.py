r"""ImageNet in two steps: SiMaN's weights, and ReActNet's network and training around them.

    python -m siman_jax.main --config=configs/imagenet_two_step.py \
        --steps=teacher,real_weights,binary --workdir=runs/two_step

    python -m siman_jax.main --config=configs/imagenet_two_step.py --steps=real_weights,binary \
        --workdir=runs/two_step --config.distillation.teacher=RUN

The second command has the teacher in RUN, the folder of a run of any network on the same classes
and images of the same size.

| step           | network              | epochs | weights | activations |
|----------------|----------------------|--------|---------|-------------|
| `teacher`      | ResNet-34            | 150    | real    | real        |
| `real_weights` | ResNet-18 (ReActNet) | 128    | real    | 1 bit       |
| `binary`       | ResNet-18 (ReActNet) | 128    | 1 bit   | 1 bit       |

The teacher has the published recipe of configs/imagenet.py. The other two are trained as in
ReActNet: Adam, batch 512, a learning rate of 2.5e-3 that falls linearly to 0, set per epoch; the
teacher's answers at temperature 1 and no labels; random crops of 8 to 100 % of the image, mirrored,
with lighting; weight decay 1e-5 and then none. Only kernels decay; in
ReActNet the classifier's does not either.

Expected accuracy: with SiMaN's weights it has not been published. Others publish, for ResNet-18
with 1-bit weights and activations, top-1: ReActNet 65.9 %, ReCU by this recipe 66.4 %, and 67.7 %
after the first step. One step of the published recipe: SiMaN 60.1 %.

| calculated, not measured | A100 | H100 | TPU v5e chip |
|--------------------------|------|------|--------------|
| `teacher`                | 12.5 | 4.0  | 19.9         |
| both other steps         | 17.7 | 5.6  | 28.0         |

These are device-hours by the rule of configs/imagenet.py. In the last two steps an image costs
1.81 G x 6 operations, and 3.66 G x 2 for the teacher's answers. Set
`--config.model.dtype=bfloat16`, for which this holds.

Sources: SiMaN, arXiv 2102.07981; ReActNet, arXiv 2003.03488, and its published program; ReCU, arXiv
2103.12369.
"""

from ml_collections import ConfigDict

from siman_jax.configs import imagenet
from siman_jax.configs.cifar10_strong import STEPS, train_as_reactnet
from siman_jax.errors import choose

NETWORK = "imagenet.react18_1w1a"


def get_config(step: str = "binary") -> ConfigDict:
    """Return the config of a step's run; `step` is a key of `STEPS`."""
    rule = choose(STEPS, step, "step")
    config = imagenet.get_config("resnet34" if step == "teacher" else "resnet18")
    config.model.weight_rule = rule
    if step == "teacher":
        return config
    config.epochs = 128
    config.model.name = NETWORK
    config.data.max_area = 1.0
    config.data.lighting = 0.1
    train_as_reactnet(config, step)
    return config
