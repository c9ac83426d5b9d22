"""The rules by name: how kernels and activations become bits, and what a layer owns for it.

The mathematics is elsewhere, this is the table of contents. A network takes one rule for its
weights and one for its activations, and any two go together; `WeightRule.activation` names the one
that a method was published with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jax import Array

from siman_jax.errors import choose
from siman_jax.rules.estimators import ste_sign, swish_sign, tanh_sign
from siman_jax.rules.rbnn import rbnn_activation, rbnn_kernel
from siman_jax.rules.sign_kernels import (
    bi_real_kernel,
    dorefa_kernel,
    ir_net_kernel,
    recu_activation,
    recu_kernel,
    xnor_net_kernel,
)
from siman_jax.rules.siman import (
    BIT_RULES,
    REAL,
    Chosen,
    approx_sign,
    filter_axes,
    identity,
    project_and_choose,
    siman_activation,
    siman_kernel,
)

# Leaves of a binary layer: one angle per filter, and a pair of rotations.
THETA = "theta"
LEFT = "left"
RIGHT = "right"

# What training schedules. It shapes gradients only, so that evaluation may take any value: these.
SHARPNESS = "sharpness"
TAU = "tau"
AT_THE_END = {SHARPNESS: 10.0, TAU: 0.99}

# In a config: the activation rule that the weight rule was published with.
DEFAULT = "default"


Prepare = Callable[[Sequence[Array], Array | float], tuple[list[Array], list[Chosen]]]


@dataclass(frozen=True)
class WeightRule:
    """How a binary layer's kernel becomes bits.

    Attributes:
      kernel: function from the latent kernel `[..., out]`, and what `inputs` names, to the kernel
        that multiplies: in every filter one magnitude, and two signs.
      activation: key of `ACTIVATION_RULES` that the method was published with.
      inputs: names of `kernel`'s further arguments, leaves of the layer or scheduled scalars.
      alpha: how a learned scale per filter starts: at the mean magnitude of a default draw of the
        kernel, or uniformly in [0, 1); None where none is learned.
      scaled: whether the magnitudes that `kernel` gives may differ from 1.
      projected: whether training centres and clips the latent kernel before each step.
      prepare: function from all of a network's latent kernels and the projection's percentage to
        the projected kernels and their bits, where it costs less to compute these together;
        `kernel` then takes its own as the argument `bits`.
    """

    kernel: Callable[..., Array]
    activation: str
    inputs: tuple[str, ...] = ()
    alpha: Literal["mean magnitude", "uniform"] | None = None
    scaled: bool = False
    projected: bool = False
    prepare: Prepare | None = None

    def __call__(self, latent: Array, given: Mapping[str, Array | float]) -> Array:
        """Give the kernel that multiplies; `given` holds what `inputs` names, and may hold more.

        It may hold `bits` too, as `prepare` chose them.
        """
        chosen = {"bits": given["bits"]} if self.prepare and "bits" in given else {}
        return self.kernel(latent, *(given[name] for name in self.inputs), **chosen)

    @property
    def rotated(self) -> bool:
        """Whether a layer owns a pair of rotations, which training updates once an epoch."""
        return LEFT in self.inputs


@dataclass(frozen=True)
class ActivationRule:
    """How a binary layer's input becomes bits.

    Attributes:
      function: from `[batch, ..., channels]`, and what `inputs` names, to the same shape.
      inputs: names of scheduled scalars.
    """

    function: Callable[..., Array]
    inputs: tuple[str, ...] = ()

    def __call__(self, x: Array, given: Mapping[str, Array | float]) -> Array:
        """Give the activations that are multiplied; `given` as for `WeightRule`."""
        return self.function(x, *(given[name] for name in self.inputs))


WEIGHT_RULES: dict[str, WeightRule] = {
    **{
        rule: WeightRule(
            partial(siman_kernel, rule=rule),
            "siman",
            alpha="mean magnitude",
            projected=True,
            prepare=project_and_choose if rule == "half_half" else None,
        )
        for rule in BIT_RULES
    },
    "bnn": WeightRule(ste_sign, "ste_sign"),
    "xnor_net": WeightRule(xnor_net_kernel, "ste_sign", scaled=True),
    "dorefa": WeightRule(dorefa_kernel, "ste_sign", scaled=True),
    "bi_real": WeightRule(bi_real_kernel, "approx_sign", scaled=True),
    "ir_net": WeightRule(ir_net_kernel, "tanh_sign", (SHARPNESS,), scaled=True),
    "rbnn": WeightRule(
        rbnn_kernel, "rbnn", (THETA, LEFT, RIGHT, SHARPNESS), alpha="mean magnitude"
    ),
    "recu": WeightRule(recu_kernel, "recu", (TAU,), alpha="uniform"),
    REAL: WeightRule(identity, REAL),
}

ACTIVATION_RULES: dict[str, ActivationRule] = {
    "siman": ActivationRule(siman_activation),
    "approx_sign": ActivationRule(approx_sign),
    "ste_sign": ActivationRule(ste_sign),
    "swish_sign": ActivationRule(swish_sign),
    "tanh_sign": ActivationRule(tanh_sign, (SHARPNESS,)),
    "rbnn": ActivationRule(rbnn_activation, (SHARPNESS,)),
    "recu": ActivationRule(recu_activation),
    REAL: ActivationRule(identity),
}


def resolve_activation_rule(activation_rule: str, weight_rule: str) -> str:
    """Name an activation rule, where "default" stands for the weight rule's own.

    Raises:
      UsageError: either is unknown.

    >>> resolve_activation_rule("default", "ir_net"), resolve_activation_rule("siman", "ir_net")
    ('tanh_sign', 'siman')
    """
    own = choose(WEIGHT_RULES, weight_rule, "weight rule").activation
    choose({**ACTIVATION_RULES, DEFAULT: None}, activation_rule, "activation rule")
    return own if activation_rule == DEFAULT else activation_rule


def filter_scales(kernel: Array) -> Array:
    """The one magnitude of each filter of a rule's kernel `[..., out]`: `[out]`."""
    return jnp.max(jnp.abs(kernel), filter_axes(kernel))
