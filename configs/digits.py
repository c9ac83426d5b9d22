"""Handwritten digits: trains on a CPU in well under a minute.

    python -m siman_jax.main --config=configs/digits.py --workdir=runs/digits

ResNet-20 1w1a on scikit-learn's 8x8 digits, the published CIFAR-10 recipe shortened to 12
epochs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 12
    config.batch_size = 64
    config.eval_batch_size = 360
    config.steps_per_dispatch = 0  # 0: one on the CPU, up to 100 elsewhere
    config.keep_checkpoints = 2  # beside the best

    config.model = ConfigDict()
    config.model.name = "cifar.resnet20_1w1a"
    config.model.width = 16
    config.model.weight_rule = "half_half"
    config.model.activation_rule = "siman"
    config.model.dtype = "float32"

    config.data = ConfigDict()
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.num_classes = 10
    config.data.mean = (0.3054,)
    config.data.std = (0.3760,)
    config.data.crop_padding = 1
    config.data.flip = False

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_epochs = 1
    config.optimizer.staircase = False
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4
    config.optimizer.undecayed = ("binary_kernel", "alpha")
    config.optimizer.clip_percent = 15.0
    return config
