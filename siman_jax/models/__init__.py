"""The five networks by name; the paper calls two of them `resnet18_1w1a`.

>>> sorted(MODELS)[:3]
['cifar.resnet18_1w1a', 'cifar.resnet20_1w1a', 'cifar.vgg_small_1w1a']
"""

from collections.abc import Callable

import flax.linen as nn

from siman_jax.errors import choose
from siman_jax.models import cifar, imagenet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cifar.resnet20_1w1a": cifar.resnet20_1w1a,
    "cifar.resnet18_1w1a": cifar.resnet18_1w1a,
    "cifar.vgg_small_1w1a": cifar.vgg_small_1w1a,
    "imagenet.resnet18_1w1a": imagenet.resnet18_1w1a,
    "imagenet.resnet34_1w1a": imagenet.resnet34_1w1a,
}


def build_model(name: str, num_classes: int, **arguments: object) -> nn.Module:
    """Build a network from the name of its module and function, such as "cifar.resnet20_1w1a".

    Args:
      name: key of `MODELS`.
      num_classes: width of the classifier.
      **arguments: the function's: `width`, `weight_rule`, `activation_rule`, `norm_groups` and
        `dtype`.

    Raises:
      UsageError: no network has that name.

    >>> model = build_model("cifar.resnet20_1w1a", num_classes=10, width=8)
    >>> model.weight_rule
    'half_half'
    """
    return choose(MODELS, name, "model")(num_classes, **arguments)
