r"""ImageNet (ILSVRC 2012) by the published recipe: 150 epochs, batch 512, 224 pixels.

    python -m siman_jax.main --config=configs/imagenet.py --workdir=runs/imagenet
    python -m siman_jax.main --config=configs/imagenet.py:resnet34 --workdir=runs/resnet34 \
        --config.data.source=image_folder --config.data.root=/data/imagenet \
        --config.data.test_split=val

| variant            | published top-1 / top-5 | device-hours, calculated (not measured)       |
|                    | (arXiv 2102.07981)      | A100  | H100  | TPU v5e chip                  |
|--------------------|-------------------------|-------|-------|-------------------------------|
| resnet18 (default) | 60.1 / 82.3 %           | 6.2   | 2.0   | 9.8                           |
| resnet34           | 63.9 / 84.8 %           | 12.5  | 4.0   | 19.9                          |
| react18            | not published           | 6.2   | 2.0   | 9.8                           |

react18 is resnet18 with what ReActNet (arXiv 2003.03488) has around its layers; ReActNet itself
reaches 65.9 % by a recipe of its own.

The hours are 1.81 (3.66) G multiply-accumulates x 6 operations (forward and both gradients)
x 1,281,167 images x 150 epochs at 30 % of the card's peak in bfloat16 (A100 312, H100 989, v5e
197 TFLOP/s; measure before you rely on it). A run in float32 takes several times as long. If the
host's CPU cores cannot decode images fast enough, they set the time; see
benchmarks/input_pipeline.py.

Data are the ArrayRecord files of `imagenet2012` of TensorFlow Datasets, whose own command prepares
them once from the two published archives; or, with `source=image_folder`, a folder
ROOT/{train,val}/CLASS/*.JPEG. The batch size counts the examples on all devices. For a larger batch
set `--config.optimizer.reference_batch_size=512`, which scales the learning rate.
"""

from ml_collections import ConfigDict

from siman_jax.configs import cifar10
from siman_jax.data.defaults import image_files
from siman_jax.errors import choose

NETWORKS = {
    "resnet18": "imagenet.resnet18_1w1a",
    "resnet34": "imagenet.resnet34_1w1a",
    "react18": "imagenet.react18_1w1a",
}


def get_config(network: str = "resnet18") -> ConfigDict:
    """Return the config of a run; `network` is a key of `NETWORKS`."""
    config = cifar10.get_config()
    config.epochs = 150
    config.batch_size = 512
    config.eval_batch_size = 512

    config.model.name = choose(NETWORKS, network, "variant")
    config.model.width = 64

    config.data = image_files()
    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.test_split = "validation"
    config.data.resident = False  # stream the data during training
    config.data.workers = 16  # reading processes for each training process; 0: a few threads
    config.data.image_size = 224
    config.data.channels = 3
    config.data.num_classes = 1000  # 0: the number of folders in ROOT's training split
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.min_area = 0.08  # of random crops, as a fraction of the image
    config.data.max_area = 1.25
    config.data.flip = True
    config.data.shorter_side = 256  # in evaluation: size before the central crop

    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 1e-4
    return config
