"""Networks outside this package, named by their function: PACKAGE.MODULE:FUNCTION."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from siman_jax.errors import UsageError
from siman_jax.models import NETWORKS, OPTIONS
from siman_jax.models.layers import BinaryConv, BinaryDense
from siman_jax.outside import call_function, describe, find_function, parameters_of
from siman_jax.rules import REAL

_log = logging.getLogger(__name__)

# Arguments that a function may lack as long as the config leaves them at these values.
_LEFT_OUT = {"norm_groups": 1, "dtype": jnp.float32, **OPTIONS}


def build_own(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Import a function by its name and build its network.

    The function is called with `num_classes`, and by keyword with those of `arguments` that its
    signature names. A function that does not name `width` or a rule chooses these itself; for
    `width` a warning is logged.

    Args:
      name: "PACKAGE.MODULE:FUNCTION". The module is imported from where Python finds modules, and
        from the working folder.
      num_classes: width of the classifier.
      **arguments: `width`, `weight_rule`, `activation_rule`, `norm_groups`, `dtype` and `OPTIONS`.

    Raises:
      UsageError: there is no such function, it cannot be called so or fails, it does not build a
        Flax module, or it lacks an argument that the config sets.
    """
    function = find_function(name, "model.name", NETWORKS)
    parameters = parameters_of(function, name)
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    taken = {key: x for key, x in arguments.items() if takes_all or key in parameters}
    for key, value in _LEFT_OUT.items():
        if key not in taken and arguments.get(key, value) != value:
            raise UsageError(
                f"{name} takes no argument {key}, which this config sets to {arguments[key]}. Add"
                " the argument to the function, and pass it on to its layers."
            )
    if "width" in arguments and "width" not in taken:
        _log.warning(
            "%s takes no width, so --config.model.width=%s has no effect", name, arguments["width"]
        )
    model = call_function(function, name, num_classes, **taken)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{name} returned {type(model).__name__}; expected a function from num_classes to a"
            " flax.linen.Module."
        )
    return model


def check_model(
    name: str,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    weight_rule: str,
    activation_rule: str,
    norm_groups: int = 1,
) -> None:
    """Check that a network can be trained, and that its binary layers have its config's rules.

    The config decides which kernels training projects and which scalars it schedules, so layers
    with other rules would be trained wrongly.

    Args:
      name: of the network, for messages.
      model: the network.
      image_shape: height, width, channels.
      num_classes: width of its logits.
      weight_rule: the config's.
      activation_rule: the config's, not "default".
      norm_groups: number of parts of the batch that batch norm normalizes separately.

    Raises:
      UsageError: a layer has another rule, or the network cannot be called on such images, in
        evaluation or in training, or returns something else than logits.
    """
    found: dict[str, tuple[str, str]] = {}

    def note(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if isinstance(layer, BinaryConv | BinaryDense):
            found["/".join(layer.path)] = layer.weight_rule, layer.activation_rule
        return call(*args, **kwargs)

    count = 2 * norm_groups
    images = jnp.zeros((count, *image_shape))

    def evaluate() -> Any:
        with nn.intercept_methods(note):
            return model.init_with_output(jax.random.key(0), images, train=False)

    def train(variables: Any) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    evaluated, variables = _traced(name, image_shape, False, evaluate)
    for logits in (evaluated, _traced(name, image_shape, True, train, variables)):
        if getattr(logits, "shape", None) != (count, num_classes):
            raise UsageError(
                f"{name} maps {count} images to {jax.tree.map(jnp.shape, logits)}; expected logits"
                f" of shape [images, classes], here ({count}, {num_classes})."
            )
    wanted = weight_rule, activation_rule
    for layer, rules in found.items():
        if rules[0] == REAL:
            continue
        for rule, own, expected in zip(("weight", "activation"), rules, wanted, strict=True):
            if own not in (expected, REAL):
                raise UsageError(
                    f"the layer {layer} of {name} has the {rule} rule {own!r}, but"
                    f" --config.model.{rule}_rule is {expected!r}. Set the field to {own!r}, or"
                    f" let the function take the argument {rule}_rule."
                )


def _traced(
    name: str, image_shape: tuple[int, int, int], train: bool, call: Callable, *args: Any
) -> Any:
    """Return the shapes that `call` gives; any error that it raises is one of the network."""
    try:
        return jax.eval_shape(call, *args)
    except UsageError:
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, InvalidRngError):
            hint = " Training gives layers no random numbers, so leave out layers like Dropout."
        raise UsageError(
            f"{name} cannot be called on images of shape {image_shape} as"
            f" model(images, train={train}): {describe(error, name)}.{hint}"
        ) from error
