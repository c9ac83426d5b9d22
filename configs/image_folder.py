"""A folder of images by class: ROOT/{train,test}/CLASS/*.{jpg,jpeg,png}.

    python -m siman_jax.main --config=configs/image_folder.py --config.data.root=ROOT \\
        --workdir=runs/folder

As it stands: 32x32 colour images, ResNet-20 1w1a, the published CIFAR-10 recipe compressed to
10 epochs. For other sizes set --config.data.image_size, and --config.data.resize=True if the
images have different ones.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 10
    config.batch_size = 256
    config.eval_batch_size = 1000
    config.steps_per_dispatch = 0  # 0: one on the CPU, up to 100 elsewhere
    config.keep_checkpoints = 2  # beside the best

    config.model = ConfigDict()
    config.model.name = "cifar.resnet20_1w1a"
    config.model.width = 16
    config.model.weight_rule = "half_half"
    config.model.activation_rule = "siman"
    config.model.dtype = "float32"

    config.data = ConfigDict()
    config.data.source = "image_folder"
    config.data.root = "data"
    config.data.cache_dir = "~/.cache/siman-jax"
    config.data.image_size = 32
    config.data.resize = False
    config.data.channels = 3
    config.data.num_classes = 0  # 0: as many as ROOT/train has folders
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop_padding = 4
    config.data.flip = True

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_epochs = 1
    config.optimizer.staircase = False  # by step: ten epochs are few for a staircase
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4
    config.optimizer.undecayed = ("binary_kernel", "alpha")
    config.optimizer.clip_percent = 15.0
    return config
