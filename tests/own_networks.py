"""Networks as a user would write them, outside the package; `test_own_network` names them."""

import flax.linen as nn
import jax.numpy as jnp

from siman_jax import BatchNorm, BinaryConv, BinaryDense


class Branches(nn.Module):
    """A real stem, two binary branches side by side, a binary dense layer."""

    num_classes: int
    weight_rule: str

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name="first_norm")(nn.Conv(8, (3, 3), name="first")(x), train))
        left = BinaryConv(8, weight_rule=self.weight_rule, name="left")(x)
        right = BinaryConv(8, kernel_size=1, weight_rule=self.weight_rule, name="right")(x)
        x = nn.relu(jnp.concatenate([left, right], axis=-1)).mean((1, 2))
        x = BinaryDense(16, weight_rule=self.weight_rule, name="dense")(x)
        return nn.Dense(self.num_classes, name="classifier")(x)


def branches(num_classes, *, weight_rule):
    return Branches(num_classes, weight_rule)


class NamedAsInTorch(nn.Module):
    """Layers with the names that the authors' networks have."""

    num_classes: int
    weight_rule: str

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), use_bias=False, name="conv0")(x)
        x = BatchNorm(name="bn0")(x, train)
        x = BinaryConv(16, weight_rule=self.weight_rule, name="conv1")(x)
        x = BatchNorm(name="bn1")(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


def named_as_in_torch(num_classes, *, weight_rule):
    return NamedAsInTorch(num_classes, weight_rule)


def always_bnn(num_classes):
    return Branches(num_classes, "bnn")


class Plain(nn.Module):
    """Neither batch norm nor anything binary."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def plain(num_classes):
    return Plain(num_classes)


def nothing(num_classes):
    return num_classes


def no_classes():
    return Plain(10)


def fewer_classes(num_classes):
    return Plain(num_classes - 1)


class Drops(nn.Module):
    """Needs random numbers in training, which it is not given."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)


def drops(num_classes):
    return Drops(num_classes)


class Image(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x


def image(num_classes):
    return Image()
