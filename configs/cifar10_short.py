r"""CIFAR-10 cut to what a CPU can repeat many times: 10,000 of its images, 5 epochs, batch 64.

    python -m siman_jax.main --config=configs/cifar10_short.py --config.data.root=ROOT \
        --workdir=runs/short

The base of the studies in configs/sweeps/. ROOT/{train,test}/CLASS holds CIFAR-10's images, as for
configs/image_folder.py; every fifth of the training images is used, and all 10,000 test images.
One run takes about 4.5 minutes on 2 cores, calculated: 50,000 images at 250 a second, and
5 evaluations. Its accuracy compares methods at this budget and says little of the published one,
which is 400 times as much.
"""

from ml_collections import ConfigDict

from configs import image_folder


def get_config() -> ConfigDict:
    """Settings of the run."""
    config = image_folder.get_config("resnet20")
    config.epochs = 5
    config.batch_size = 64
    config.keep_checkpoints = 1  # beside the best; of many runs
    config.measure_kernels = True
    config.data.num_classes = 10
    config.data.train_examples = 10_000
    return config
