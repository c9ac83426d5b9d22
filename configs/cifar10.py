"""CIFAR-10 by the published recipe: 400 epochs, batch 256.

    python -m siman_jax.main --config=configs/cifar10.py:resnet20 --workdir=runs/resnet20

| variant            | published top-1    | H100-hours, calculated |
|                    | (arXiv 2102.07981) | (not measured)         |
|--------------------|--------------------|------------------------|
| resnet20 (default) | 87.4 %             | 0.03                   |
| resnet18           | 92.5 %             | 0.37                   |
| vgg_small          | 92.5 %             | 0.41                   |
| react20            | not published      | 0.03                   |

react20 is resnet20 with what ReActNet (arXiv 2003.03488) has around its layers: `shifts`,
`pooled_shortcuts` and no `last_norm`.

The hours are 41, 555, 608 and 41 M multiply-accumulates x 6 operations x 50,000 images x 400
epochs, at 5 % of the card's 989 TFLOP/s in bfloat16, since small images use little of the card.

Data come from TensorFlow Datasets; the first run prepares them, which needs the extra
`prepare`. To train the real-valued network, set `--config.model.weight_rule=real`.
"""

from ml_collections import ConfigDict

from siman_jax.data.defaults import image_files
from siman_jax.errors import choose

WIDTHS = {"resnet20": 16, "resnet18": 64, "vgg_small": 128, "react20": 16}


def get_config(network: str = "resnet20") -> ConfigDict:
    """Return the config of a run; `network` is a key of `WIDTHS`."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # a run's folder or a PyTorch checkpoint to start from
    config.init_checkpoint = "last"  # or best: which of that run's checkpoints
    config.epochs = 400
    config.batch_size = 256  # over all devices
    config.accumulation_steps = 1  # equal parts of a batch, computed one after the other
    config.eval_batch_size = 1000
    config.steps_per_dispatch = 0  # 0: one on the CPU, up to 100 elsewhere
    config.keep_checkpoints = 2  # the latest ones; the best is kept too
    config.average_decay = 0.0  # of averaged weights, which are then evaluated; 0: no average
    config.measure_kernels = False  # log each epoch's kernels: fitted shape, best bits, cosines
    config.batch_norm_devices = 0  # number of devices that share statistics; 0: all
    config.native = True  # use the C++ library on a CPU; False: XLA only
    config.shard_optimizer = False  # divide the optimizer state among the devices

    config.model = ConfigDict()
    config.model.name = f"cifar.{network}_1w1a"
    config.model.width = choose(WIDTHS, network, "variant")
    config.model.weight_rule = "half_half"
    config.model.activation_rule = "default"  # that of the weight rule
    config.model.dtype = "float32"
    # Options of the residual networks; react20 and react18 differ in all three, whatever is here.
    config.model.shifts = False  # learn thresholds before signs, and shifts around PReLUs
    config.model.pooled_shortcuts = False  # average pooling where a shortcut halves the image
    config.model.last_norm = True  # batch norm before the classifier

    config.data = image_files()  # siman_jax/data/defaults.py explains them
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop_padding = 4
    config.data.flip = True

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.0  # share of a target that all classes get

    config.distillation = ConfigDict()
    config.distillation.teacher = ""  # the folder of a run whose answers to learn; "": none
    config.distillation.temperature = 1.0  # by which both networks' logits are divided
    config.distillation.weight = 1.0  # of the teacher's answers; that of the labels is the rest

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or adam, or adamw
    config.optimizer.learning_rate = 0.1
    config.optimizer.reference_batch_size = 0  # n: scale learning_rate by batch_size / n; 0: no
    config.optimizer.schedule = "cosine"  # or linear, step, constant; after the warm-up
    config.optimizer.step_epochs = ()  # of the schedule step: when the rate changes
    config.optimizer.step_factor = 0.1  # of the schedule step: what the rate is multiplied by
    config.optimizer.warmup_epochs = 5.0  # may be a fraction above 1; 0 and 1: none
    config.optimizer.staircase = True  # schedules change at epochs; False: at every step
    config.optimizer.momentum = 0.9  # of SGD
    config.optimizer.beta1 = 0.9  # of Adam and AdamW, like the next two
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.nesterov = False
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0: do not clip
    config.optimizer.gradient_floor = 0.0  # smallest norm of a filter's gradient / weights; 0: off
    config.optimizer.weight_decay = 5e-4
    config.optimizer.undecayed = ("binary_kernel", "alpha")
    config.optimizer.kernel_decay = 0.0  # additional weight decay of binary kernels
    config.optimizer.clip_percent = 15.0
    config.optimizer.clip_decays = True  # linearly to 0; False: constant
    config.optimizer.bop = False  # update the kernels by Bop; needs the weight rule bnn
    config.optimizer.bop_adaptivity = 1e-4
    config.optimizer.bop_threshold = 1e-8

    # Schedules of gradient estimators: sharpness for rbnn and ir_net, tau for recu.
    config.estimator = ConfigDict()
    config.estimator.first_sharpness = 1e-2  # rbnn; ir_net: 1e-3 for ResNet-20, 1e-1 otherwise
    config.estimator.last_sharpness = 10.0
    config.estimator.first_tau = 0.85
    config.estimator.last_tau = 0.99
    return config
