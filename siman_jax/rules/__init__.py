"""The rules by name: how kernels and activations become bits, and what a layer needs for it.

This is the table of contents; the mathematics is in the other files. A new rule is one entry here.
A network takes one rule for its weights and one for its activations, in any combination;
`WeightRule.activation` names the activation rule that a method was published with.

>>> WEIGHT_RULES["bnn"](jnp.float32([[0.5, -2.0]]), {}).tolist(), WEIGHT_RULES["bnn"].activation
([[1.0, -1.0]], 'ste_sign')
>>> ACTIVATION_RULES["ste_sign"](jnp.float32([[-0.1, 3.0]]), {}).tolist()
[[-1.0, 1.0]]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jax import Array

from siman_jax.errors import choose
from siman_jax.native.convolution import APPROX, STRAIGHT_THROUGH
from siman_jax.rules.estimators import approx_sign, ste_sign, swish_sign, tanh_sign
from siman_jax.rules.magnitude_bits import BIT_RULES
from siman_jax.rules.marks import SIGNS, mark
from siman_jax.rules.rbnn import rbnn_activation, rbnn_kernel
from siman_jax.rules.sign_kernels import (
    bi_real_kernel,
    dorefa_kernel,
    ir_net_kernel,
    recu_activation,
    recu_kernel,
    xnor_net_kernel,
)
from siman_jax.rules.siman import Chosen, project_and_choose, siman_activation, siman_kernel
from siman_jax.rules.standardize import filter_axes

# Names the rules that leave weights or activations real-valued.
REAL = "real"

# Leaves of a binary layer: one angle per filter, and a pair of rotations.
THETA = "theta"
LEFT = "left"
RIGHT = "right"

# Scalars that training schedules, with their values at the end of training. They affect gradients
# only, so evaluation may use any values; it uses these.
SHARPNESS = "sharpness"
TAU = "tau"
AT_THE_END = {SHARPNESS: 10.0, TAU: 0.99}

# In a config: the activation rule that the weight rule was published with.
DEFAULT = "default"


Prepare = Callable[[Sequence[Array], Array | float], tuple[list[Array], list[Chosen]]]


@dataclass(frozen=True)
class WeightRule:
    """Turns a binary layer's kernel into bits.

    Attributes:
      kernel: function from the latent kernel `[..., out]` and the `inputs` to the kernel that
        multiplies. All entries of one of its filters have the same magnitude.
      activation: key of `ACTIVATION_RULES` that the method was published with.
      inputs: names of the further arguments of `kernel`: leaves of the layer or scheduled scalars.
      alpha: initial value of the learned scale per filter: the mean magnitude of a default draw of
        the kernel, or uniform in [0, 1); None if no scale is learned.
      scaled: whether `kernel` may return magnitudes other than 1.
      projected: whether training centres and clips the latent kernel before each step.
      prepare: function from all latent kernels of a network and the projection's percentage to
        the projected kernels and their bits, for rules that compute these faster together;
        `kernel` then takes its own as the argument `bits`. None for other rules.
    """

    kernel: Callable[..., Array]
    activation: str
    inputs: tuple[str, ...] = ()
    alpha: Literal["mean magnitude", "uniform"] | None = None
    scaled: bool = False
    projected: bool = False
    prepare: Prepare | None = None

    def __call__(self, latent: Array, given: Mapping[str, Array | float]) -> Array:
        """Return the kernel that multiplies.

        Args:
          latent: the latent kernel `[..., out]`.
          given: values of `inputs` by name, and optionally `bits` from `prepare`; other entries
            are ignored.
        """
        chosen = {"bits": given["bits"]} if self.prepare and "bits" in given else {}
        return self.kernel(latent, *(given[name] for name in self.inputs), **chosen)

    @property
    def rotated(self) -> bool:
        """Whether a layer owns a pair of rotations, which training updates once per epoch."""
        return LEFT in self.inputs


@dataclass(frozen=True)
class ActivationRule:
    """Turns a binary layer's input into bits.

    Attributes:
      function: from `[batch, ..., channels]` and the `inputs` to the same shape.
      inputs: names of the further arguments of `function`: scheduled scalars.
      centred: whether signs are taken about each sample's mean instead of 0.
      widens: whether `function` computes in float32 by itself where x is narrower; other rules are
        given float32.
      estimator: what the native library calls the gradient, a constant of `native.convolution`;
        None for rules that it does not know, whose activations it receives already binarized.
    """

    function: Callable[..., Array]
    inputs: tuple[str, ...] = ()
    centred: bool = False
    widens: bool = False
    estimator: int | None = None

    def __call__(self, x: Array, given: Mapping[str, Array | float]) -> Array:
        """Return the activations that are multiplied; `given` is as for `WeightRule`."""
        further = [given[name] for name in self.inputs]
        if self.function is identity:
            return x
        return mark(SIGNS, lambda x: self.function(x, *further), x, centred=self.centred)


def identity(x: Array) -> Array:
    """Return `x`: the rule that leaves weights or activations real-valued."""
    return x


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
    "siman": ActivationRule(siman_activation, centred=True, widens=True, estimator=APPROX),
    "approx_sign": ActivationRule(approx_sign, estimator=APPROX),
    "ste_sign": ActivationRule(ste_sign, estimator=STRAIGHT_THROUGH),
    "swish_sign": ActivationRule(swish_sign),
    "tanh_sign": ActivationRule(tanh_sign, (SHARPNESS,)),
    "rbnn": ActivationRule(rbnn_activation, (SHARPNESS,), centred=True),
    "recu": ActivationRule(recu_activation),
    REAL: ActivationRule(identity),
}


def resolve_activation_rule(activation_rule: str, weight_rule: str) -> str:
    """Return the name of an activation rule; "default" means the weight rule's own.

    Raises:
      UsageError: one of the names is unknown.

    >>> resolve_activation_rule("default", "ir_net"), resolve_activation_rule("siman", "ir_net")
    ('tanh_sign', 'siman')
    """
    own = choose(WEIGHT_RULES, weight_rule, "weight rule").activation
    choose({**ACTIVATION_RULES, DEFAULT: None}, activation_rule, "activation rule")
    return own if activation_rule == DEFAULT else activation_rule


def filter_scales(kernel: Array) -> Array:
    """Return the magnitude of each filter, `[out]`, of a kernel `[..., out]` that a rule gave."""
    return jnp.max(jnp.abs(kernel), filter_axes(kernel))
