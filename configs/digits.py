"""Handwritten digits: trains on a CPU in less than a minute.

    python -m siman_jax.main --config=configs/digits.py --workdir=runs/digits

ResNet-20 1w1a on scikit-learn's 8x8 digits; the CIFAR-10 recipe compressed to 12 epochs.
"""

from ml_collections import ConfigDict

from siman_jax.configs import cifar10
from siman_jax.data.defaults import images_in_memory


def get_config() -> ConfigDict:
    """Return the config of a run."""
    config = cifar10.get_config("resnet20")
    config.epochs = 12
    config.batch_size = 16
    config.eval_batch_size = 360

    config.data = images_in_memory()
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.num_classes = 10
    config.data.mean = (0.3054,)
    config.data.std = (0.3760,)
    config.data.crop_padding = 1
    config.data.flip = False

    config.optimizer.warmup_epochs = 0.0
    config.optimizer.staircase = False  # twelve epochs are too few for a staircase
    return config
