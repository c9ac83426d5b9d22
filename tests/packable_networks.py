"""Networks as users write them, with names of their own: which can be packed, and which cannot.

Each takes the number of classes, and a weight and an activation rule where it has binary layers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from siman_jax import ACTIVATION_RULES, BatchNorm, BinaryConv, BinaryDense, PReLU


class _Net(nn.Module):
    num_classes: int = 3
    weight_rule: str = "half_half"
    activation_rule: str = "siman"

    def binary(self, features, **arguments):
        rules = {"weight_rule": self.weight_rule, "activation_rule": self.activation_rule}
        return BinaryConv(features, **{**rules, **arguments})

    def dense(self, features, **arguments):
        return BinaryDense(features, self.weight_rule, self.activation_rule, **arguments)


class PlainCnn(_Net):
    """Convolutions and max pools, then binary dense layers."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name="entry_norm")(nn.Conv(6, (3, 3), name="entry")(x), train))
        x = nn.max_pool(self.binary(10, name="middle")(x), (2, 2), (2, 2))
        x = nn.hard_tanh(BatchNorm(name="middle_norm")(x, train))
        x = x.reshape(len(x), -1)
        x = BatchNorm(name="hidden_norm")(self.dense(12, name="hidden")(x), train)
        return self.dense(self.num_classes, name="classes")(PReLU(name="bend")(x))


class TwoBranches(_Net):
    """Two branches side by side, joined by their channels; one is subsampled by slicing."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu6(nn.Conv(8, (3, 3), use_bias=False)(x))
        left = BatchNorm()(self.binary(6, kernel_size=1, name="left")(x[:, ::2, ::2]), train)
        right = BatchNorm()(self.binary(7, strides=2, name="right")(x), train)
        x = jnp.concatenate([left, right], axis=-1)
        x = nn.leaky_relu(x).mean((1, 2))
        return nn.softmax(nn.Dense(self.num_classes)(x))


class SqueezeAndExcite(_Net):
    """Channels weighted by a small network that sees their means."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm()(nn.Conv(8, (3, 3))(x), train)
        y = BatchNorm()(self.binary(8, name="body")(x), train)
        weights = nn.relu(nn.Dense(4, name="squeeze")(y.mean((1, 2))))
        weights = nn.sigmoid(nn.Dense(8, name="excite")(weights))
        x = nn.silu(x + y * weights[:, None, None, :])
        return nn.Dense(self.num_classes)(jnp.max(x, (1, 2)))


class Separable(_Net):
    """Real depthwise and binary 1x1 convolutions by turns; one is dilated."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm()(nn.Conv(6, (3, 3), strides=2, padding=1)(x), train)
        for features, dilation in ((8, 1), (12, 2)):
            channels = x.shape[-1]
            x = nn.Conv(
                channels,
                (3, 3),
                feature_group_count=channels,
                kernel_dilation=dilation,
                use_bias=False,
            )(x)
            x = nn.relu(BatchNorm()(x, train))
            x = BatchNorm()(self.binary(features, kernel_size=1)(x), train)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


class AveragePoolShortcut(_Net):
    """Average pools as shortcuts, whose channels are repeated."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (3, 3))(x)
        with jax.numpy_dtype_promotion("standard"):  # Flax divides by an integer
            shortcut = nn.avg_pool(x, (2, 2), (2, 2))
        y = self.binary(12, strides=2, name="down")(x)
        x = jnp.concatenate([shortcut, shortcut], -1) + BatchNorm()(y, train)
        shortcut = nn.avg_pool(x, (3, 3), (1, 1), padding="SAME", count_include_pad=False)
        x = jnp.clip(shortcut - self.binary(12, name="same")(x) / 9, -2.0, 2.5)
        return nn.Dense(self.num_classes)(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


class LearnedThreshold(_Net):
    """Signs about learned thresholds: before a binary layer, and by a rule's function."""

    activation_rule: str = "approx_sign"

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm()(nn.Conv(6, (3, 3))(x), train)
        threshold = self.param("threshold", nn.initializers.normal(0.5), (1, 1, 1, 6))
        x = BatchNorm()(self.binary(9)(x - threshold), train)
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)))
        x = jnp.where(x > 0.25, 3.0, -1.0) + ACTIVATION_RULES["siman"](x, {})
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class NoNorm(_Net):
    """No normalization at all, and real activations in one binary layer."""

    @nn.compact
    def __call__(self, x, *, train):
        x = jnp.abs(nn.Conv(6, (3, 3))(x))
        x = nn.tanh(self.binary(8, activation_rule="real", name="weights_only")(x))
        first, second = jnp.split(self.binary(8, name="both")(x), 2, axis=-1)
        x = jnp.square(first) - second * 2
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


PACKABLE = {
    "plain CNN": PlainCnn,
    "two branches": TwoBranches,
    "squeeze and excite": SqueezeAndExcite,
    "separable": Separable,
    "average pools": AveragePoolShortcut,
    "learned threshold": LearnedThreshold,
    "no normalization": NoNorm,
}


class Refused(nn.Module):
    """A binary convolution, and something that cannot be packed between it and the classes."""

    between: object

    @nn.compact
    def __call__(self, x, *, train):
        x = BinaryConv(4, name="body")(x)
        x = self.between(x)
        return nn.Dense(3, name="classes")(x.reshape(len(x), -1))


# Each with what the message says.
REFUSED = {
    "gelu": (lambda x: nn.gelu(x), "integer_pow|raises activations"),
    "exp": (jnp.exp, "exp of activations other than for a softmax"),
    "layer norm": (lambda x: nn.LayerNorm(name="norm")(x), "rsqrt of activations"),
    "group norm": (lambda x: nn.GroupNorm(2, name="norm")(x), "rsqrt of activations"),
    "signs with zero": (jnp.sign, "sign of activations, which is 0 at 0"),
    "transposed convolution": (
        lambda x: nn.ConvTranspose(4, (2, 2), strides=(2, 2), name="up")(x),
        "transposed convolution",
    ),
    "attention": (lambda x: jnp.einsum("bhwc,bhwd->bcd", x, x), "matrix that depends on"),
    "sorting": (lambda x: jnp.sort(x, axis=-1), "sort of activations"),
    "batch statistics": (lambda x: x - x.mean(0, keepdims=True), "mixes the images of a batch"),
    "half precision": (lambda x: x.astype(jnp.bfloat16).astype(x.dtype), "in bfloat16"),
    "loop": (lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x * 2, x), "scan of activations"),
    "comparison": (lambda x: jnp.where(x > x[..., ::-1], x, 0.0), "rev of activations"),
    "two comparisons": (lambda x: x * ((x > 0) & (x < 1)).astype(x.dtype), "and of activations"),
    "selection": (
        lambda x: jnp.where(x > 0, 0.0, jnp.maximum(x, 2.0)),
        "selects between activations",
    ),
    "rounding": (jnp.round, "round of activations"),
    "division": (lambda x: 1 / (1 + x), "divides by activations"),
    "number of images": (lambda x: x / len(x), None),
}
