r"""A folder of images by class: ROOT/{train,test}/CLASS/*.jpg, or png, bmp, gif, ppm, tif, webp.

    python -m siman_jax.main --config=configs/image_folder.py --config.data.root=ROOT \
        --workdir=runs/folder

ResNet-20 1w1a on 32x32 colour images; the CIFAR-10 recipe compressed to 10 epochs. For another
size set --config.data.image_size; if the images have different sizes, set
--config.data.resize=True.
"""

from ml_collections import ConfigDict

from siman_jax.configs import cifar10
from siman_jax.data.defaults import image_files


def get_config(network: str = "resnet20") -> ConfigDict:
    """Return the config of a run; `network` is one of `cifar10.get_config`."""
    config = cifar10.get_config(network)
    config.epochs = 10

    config.data = image_files()
    config.data.source = "image_folder"
    config.data.root = "data"
    config.data.cache_dir = "~/.cache/siman-jax"  # cache of decoded images; "": none
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 0  # 0: the number of folders in ROOT/train
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop_padding = 4
    config.data.flip = True

    config.optimizer.warmup_epochs = 1.0
    config.optimizer.staircase = False  # ten epochs are too few for a staircase
    return config
