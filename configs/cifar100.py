"""CIFAR-100: the CIFAR-10 recipe with the classes and normalization of CIFAR-100.

    python -m siman_jax.main --config=configs/cifar100.py:resnet20 --workdir=runs/cifar100

Other settings are those of configs/cifar10.py.
"""

from ml_collections import ConfigDict

from siman_jax.configs import cifar10


def get_config(network: str = "resnet20") -> ConfigDict:
    """Return the config of a run; `network` is one of `cifar10.get_config`."""
    config = cifar10.get_config(network)
    config.data.name = "cifar100"
    config.data.num_classes = 100
    config.data.mean = (0.507, 0.487, 0.441)
    config.data.std = (0.267, 0.256, 0.276)
    return config
