"""Where a computation is native and where it is XLA's own: decided here, and only here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from siman_jax.native.library import variants

Function = Callable[..., Any]


def available(*arrays: Array | None) -> bool:
    """Whether the library was built for this machine, and all `arrays` are float32."""
    return bool(variants()) and all(x is None or x.dtype == jnp.float32 for x in arrays)


def on_cpu(native: Function, reference: Function) -> Function:
    """Build a function of arrays that is `native` on a CPU, and has no derivative.

    On other platforms, and under `vmap` on all of them, it is `reference`.
    """
    native_or_vmap = custom_vmap(native)

    @native_or_vmap.def_vmap
    def _(size: int, batched: Any, *arrays: Array) -> tuple[Any, Any]:
        result = _mapped(reference, size, batched, *arrays)
        return result, jax.tree.map(lambda _: True, result)

    return partial(_choose, native_or_vmap, reference)


def differentiable(reference: Function, forward: Function, backward: Function) -> Function:
    """Build a function that is native on a CPU, in both directions.

    On other platforms, and under `vmap` on all of them, it is `reference`.

    Args:
      reference: function of arrays in `jax.numpy`, with its derivative.
      forward: native; from the same arrays to what `reference` gives, and what `backward` needs.
      backward: native; from the arrays, what `forward` left for it, and the cotangents of what
        `reference` gives, to the arrays' cotangents.

    Returns:
      Function of the arrays.
    """
    forward_or_vmap = custom_vmap(lambda *arrays: forward(*arrays))

    @forward_or_vmap.def_vmap
    def _(size: int, batched: Any, *arrays: Array) -> tuple[Any, Any]:
        result = _mapped(reference, size, batched, *arrays)
        one = [x[0] if is_batched else x for x, is_batched in zip(arrays, batched, strict=True)]
        _, kept = jax.eval_shape(forward, *one)
        # `backward_or_vmap` is mapped too then, and does not look at this.
        kept = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), kept)
        return (result, kept), jax.tree.map(lambda _: True, (result, kept))

    backward_or_vmap = custom_vmap(lambda arrays, kept, g: backward(arrays, kept, g))

    @backward_or_vmap.def_vmap
    def _(size: int, batched: Any, arrays: Any, kept: Any, g: Any) -> tuple[Any, Any]:
        del kept

        def one(arrays: Any, g: Any) -> Any:
            return jax.vjp(reference, *arrays)[1](g)

        result = _mapped(one, size, (batched[0], batched[2]), arrays, g)
        return result, jax.tree.map(lambda _: True, result)

    @jax.custom_vjp
    def native(*arrays: Array) -> Any:
        return forward_or_vmap(*arrays)[0]

    def native_fwd(*arrays: Array) -> tuple[Any, Any]:
        result, kept = forward_or_vmap(*arrays)
        return result, (arrays, kept)

    def native_bwd(residuals: Any, g: Any) -> Any:
        return backward_or_vmap(*residuals, g)

    native.defvjp(native_fwd, native_bwd)

    return partial(_choose, native, reference)


def _choose(native: Function, reference: Function, *arrays: Array) -> Any:
    return lax.platform_dependent(*arrays, cpu=native, default=reference)


def _mapped(function: Function, size: int, batched: Any, *trees: Any) -> Any:
    in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
    return jax.vmap(function, in_axes, axis_size=size)(*trees)
