"""What a network costs, layer by layer: parameters, multiply-accumulates and bytes."""

from dataclasses import dataclass
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.table import Table

from siman_jax.models.layers import BINARY_KERNEL, BinaryConv, BinaryDense
from siman_jax.rules import LEFT, RIGHT, THETA
from siman_jax.rules.siman import REAL
from siman_jax.terminal import wide_console

_KERNELS = ("kernel", BINARY_KERNEL)


@dataclass(frozen=True)
class Layer:
    """One layer that owns parameters, for one image.

    Attributes:
      name: path in the network.
      kind: class of the module.
      shape: of the output, without the batch.
      binary_params, real_params: 1-bit and 32-bit parameters, running statistics included.
      binary_macs, real_macs: multiply-accumulates with both operands 1-bit, and all others.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    binary_params: int
    real_params: int
    binary_macs: int
    real_macs: int

    @property
    def packed_bytes(self) -> float:
        """Size with 1-bit parameters packed, 8 to a byte."""
        return self.binary_params / 8 + 4 * self.real_params

    @property
    def float_bytes(self) -> int:
        """Size with every parameter in float32."""
        return 4 * (self.binary_params + self.real_params)


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """Trace `model` on one image and count what each of its layers holds and does.

    Nothing is computed: shapes come from an abstract evaluation of the network itself.

    Args:
      model: a network of this project.
      image_shape: `(height, width, channels)`.
    """
    layers: dict[tuple[str, ...], Layer | None] = {}  # in the order in which they are called

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name not in ("__call__", "product"):
            return call(*args, **kwargs)
        layers.setdefault(module.path)
        result = call(*args, **kwargs)
        own = {
            name: leaf
            for collection in module.variables.values()
            for name, leaf in collection.items()
            if not isinstance(leaf, dict)
        }
        if own:
            layers[module.path] = _layer(module, own, result.shape[1:])
        return result

    def forward(images: jax.Array) -> None:
        with nn.intercept_methods(record):
            model.init(jax.random.key(0), images, train=False)

    jax.eval_shape(forward, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return [layer for layer in layers.values() if layer is not None]


def _layer(module: nn.Module, own: dict[str, Any], shape: tuple[int, ...]) -> Layer:
    # A running statistic has no name in common with a parameter of its layer. What only decides
    # bits is no part of the network once they are decided.
    sizes = {n: prod(leaf.shape) for n, leaf in own.items() if n not in (THETA, LEFT, RIGHT)}
    binary = sizes.get(BINARY_KERNEL, 0)
    # A kernel meets every position of the output once, whatever its kind.
    macs = prod(shape[:-1]) * sum(sizes.get(name, 0) for name in _KERNELS)
    one_bit = isinstance(module, BinaryConv | BinaryDense) and REAL not in (
        module.weight_rule,
        module.activation_rule,
    )
    return Layer(
        name="/".join(module.path),
        kind=type(module).__name__,
        shape=shape,
        binary_params=binary,
        real_params=sum(sizes.values()) - binary,
        binary_macs=macs if one_bit else 0,
        real_macs=0 if one_bit else macs,
    )


def print_summary(layers: list[Layer]) -> None:
    """Print a row per layer, and the totals."""
    table = Table()
    table.add_column("layer")
    table.add_column("kind")
    for heading in (
        "output",
        "1-bit\nparams",
        "32-bit\nparams",
        "1-bit\nM MACs",
        "32-bit\nM MACs",
        "kB\npacked",
        "kB\nfloat",
    ):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(layer.name, layer.kind, "x".join(map(str, layer.shape)), *_numbers([layer]))
    table.add_section()
    table.add_row("total", "", "", *_numbers(layers), style="bold")
    console = wide_console()
    console.print(table)

    packed = sum(layer.packed_bytes for layer in layers)
    full = sum(layer.float_bytes for layer in layers)
    binary = sum(layer.binary_macs for layer in layers)
    every = binary + sum(layer.real_macs for layer in layers)
    console.print(f"compression: {full / packed:.1f}x ({packed / 1e3:.1f} of {full / 1e3:.1f} kB)")
    console.print(f"binary MACs: {100 * binary / every:.1f} % of {every / 1e6:.1f} M")


def _numbers(layers: list[Layer]) -> list[str]:
    def total(name: str) -> float:
        return sum(getattr(layer, name) for layer in layers)

    return [
        *(f"{total(name):,}" for name in ("binary_params", "real_params")),
        *(f"{total(name) / 1e6:,.3f}" for name in ("binary_macs", "real_macs")),
        *(f"{total(name) / 1e3:,.2f}" for name in ("packed_bytes", "float_bytes")),
    ]
