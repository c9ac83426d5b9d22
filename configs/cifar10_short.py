r"""CIFAR-10, short enough for many runs on a CPU: 10,000 training images, 5 epochs, batch 64.

    python -m siman_jax.main --config=configs/cifar10_short.py --config.data.root=ROOT \
        --workdir=runs/short

The studies in configs/sweeps/ build on it. ROOT/{train,test}/CLASS contains CIFAR-10's images, as
for configs/image_folder.py. Every fifth training image is used, and all 10,000 test images. A run
takes about 4.5 minutes on 2 cores, calculated: 50,000 images at 250 a second, and 5 evaluations.
The accuracy compares methods at this budget only; the published budget is 400 times as large.
"""

from ml_collections import ConfigDict

from siman_jax.configs import image_folder


def get_config() -> ConfigDict:
    """Return the config of a run."""
    config = image_folder.get_config("resnet20")
    config.epochs = 5
    config.batch_size = 64
    config.keep_checkpoints = 1  # to save space: there are many runs
    config.measure_kernels = True
    config.data.num_classes = 10
    config.data.train_examples = 10_000
    return config
