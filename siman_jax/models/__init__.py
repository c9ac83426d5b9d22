"""The networks by name: the five of the paper, which calls two of them alike, and variants.

>>> sorted(MODELS)[:3]
['cifar.resnet18_1w1a', 'cifar.resnet20_1w1a', 'cifar.vgg_small_1w1a']
"""

import inspect
from collections.abc import Callable

import flax.linen as nn

from siman_jax.errors import UsageError, choose
from siman_jax.models import cifar, imagenet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cifar.resnet20_1w1a": cifar.resnet20_1w1a,
    "cifar.resnet18_1w1a": cifar.resnet18_1w1a,
    "cifar.vgg_small_1w1a": cifar.vgg_small_1w1a,
    "imagenet.resnet18_1w1a": imagenet.resnet18_1w1a,
    "imagenet.resnet34_1w1a": imagenet.resnet34_1w1a,
}
# Of two of them, with what ReActNet has around its layers.
VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "cifar.react20_1w1a": cifar.react20_1w1a,
    "imagenet.react18_1w1a": imagenet.react18_1w1a,
}
NETWORKS = {**MODELS, **VARIANTS}
# Arguments that a network may lack as long as they have these values.
OPTIONS = {"shifts": False, "pooled_shortcuts": False, "last_norm": True}


def build_model(name: str, num_classes: int, **arguments: object) -> nn.Module:
    """Build a network from the name of its module and function, such as "cifar.resnet20_1w1a".

    Args:
      name: key of `NETWORKS`.
      num_classes: width of the classifier.
      **arguments: the function's: `width`, `weight_rule`, `activation_rule`, `norm_groups`,
        `dtype`; and the residual networks' `shifts`, `pooled_shortcuts` and `last_norm`.

    Raises:
      UsageError: no network has that name, or it has no such option.

    >>> model = build_model("cifar.resnet20_1w1a", num_classes=10, width=8)
    >>> model.weight_rule
    'half_half'
    """
    function = choose(NETWORKS, name, "model")
    return function(num_classes, **without_options(name, function, arguments))


def without_options(
    name: str, function: Callable[..., object], arguments: dict[str, object]
) -> dict[str, object]:
    """Leave out the `OPTIONS` that a function does not take.

    Raises:
      UsageError: one of them differs from its value there.
    """
    lacking = OPTIONS.keys() - inspect.signature(function).parameters.keys()
    for option in sorted(lacking & arguments.keys()):
        if arguments[option] != OPTIONS[option]:
            raise UsageError(
                f"the network {name} has no option {option}; leave --config.model.{option} at"
                f" {OPTIONS[option]}, or choose another network."
            )
    return {key: value for key, value in arguments.items() if key not in lacking}
