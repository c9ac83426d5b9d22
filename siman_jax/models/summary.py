"""The cost of a network, layer by layer: parameters, multiply-accumulates and bytes."""

from dataclasses import dataclass
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.table import Table

from siman_jax.models.layers import BinaryConv, BinaryDense
from siman_jax.models.leaves import BINARY_KERNEL
from siman_jax.rules import LEFT, REAL, RIGHT, THETA
from siman_jax.terminal import wide_console

_KERNELS = ("kernel", BINARY_KERNEL)


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer that owns parameters, for one image.

    Attributes:
      name: path in the network.
      kind: class of the module.
      shape: of the output, without the batch.
      binary_params, real_params: how many 1-bit and 32-bit parameters, including running
        statistics.
      binary_macs, real_macs: how many multiply-accumulates have two 1-bit operands, and how many
        have not.
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
        """Size in bytes, with 8 1-bit parameters per byte."""
        return self.binary_params / 8 + 4 * self.real_params

    @property
    def float_bytes(self) -> int:
        """Size in bytes, with every parameter in float32."""
        return 4 * (self.binary_params + self.real_params)


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerCost]:
    """Count the parameters and multiply-accumulates of each layer of `model`, for one image.

    Nothing is computed; shapes come from tracing the network.

    Args:
      model: a network of this project.
      image_shape: `(height, width, channels)`.
    """
    layers: dict[tuple[str, ...], LayerCost | None] = {}  # in the order of their calls

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


def _layer(module: nn.Module, own: dict[str, Any], shape: tuple[int, ...]) -> LayerCost:
    # Parameters and running statistics of a layer never share a name. Leaves used only to choose
    # bits are not counted.
    sizes = {n: prod(leaf.shape) for n, leaf in own.items() if n not in (THETA, LEFT, RIGHT)}
    binary = sizes.get(BINARY_KERNEL, 0)
    # Every kind of kernel is applied once at each position of the output.
    macs = prod(shape[:-1]) * sum(sizes.get(name, 0) for name in _KERNELS)
    one_bit = isinstance(module, BinaryConv | BinaryDense) and REAL not in (
        module.weight_rule,
        module.activation_rule,
    )
    return LayerCost(
        name="/".join(module.path),
        kind=type(module).__name__,
        shape=shape,
        binary_params=binary,
        real_params=sum(sizes.values()) - binary,
        binary_macs=macs if one_bit else 0,
        real_macs=0 if one_bit else macs,
    )


def print_summary(layers: list[LayerCost]) -> None:
    """Print a table with a row per layer, and the totals."""
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


def _numbers(layers: list[LayerCost]) -> list[str]:
    def total(name: str) -> float:
        return sum(getattr(layer, name) for layer in layers)

    return [
        *(f"{total(name):,}" for name in ("binary_params", "real_params")),
        *(f"{total(name) / 1e6:,.3f}" for name in ("binary_macs", "real_macs")),
        *(f"{total(name) / 1e3:,.2f}" for name in ("packed_bytes", "float_bytes")),
    ]
