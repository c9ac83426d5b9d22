"""Where a computation is native and where it is XLA's own: decided here, and only here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from siman_jax.native.library import variants

Function = Callable[..., Any]


_ALLOWED: ContextVar[bool] = ContextVar("allowed", default=True)
# Whether what is traced is compiled for a CPU alone, so that there is no choice left.
_FOR_CPU: ContextVar[bool] = ContextVar("for_cpu", default=False)


@contextmanager
def native(allowed: bool) -> Iterator[None]:
    """Whether what is traced in this context may use the library; elsewhere it may.

    What `jax.jit` has traced before stays as it is.

    >>> with native(False):
    ...     available()
    False
    """
    token = _ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def available(*arrays: Array | None) -> bool:
    """Whether to use the library: it was built for this machine, and all `arrays` are float32."""
    if not (_ALLOWED.get() and variants()):
        return False
    return all(x is None or x.dtype == jnp.float32 for x in arrays)


def on_cpu(function: Function, reference: Function) -> Function:
    """Build a function of arrays that is `function` on a CPU, and has no derivative.

    On other platforms, and under `vmap` on all of them, it is `reference`.
    """
    function_or_vmap = custom_vmap(function)

    @function_or_vmap.def_vmap
    def _(size: int, batched: Any, *arrays: Array) -> tuple[Any, Any]:
        result = _mapped(reference, size, batched, *arrays)
        return result, jax.tree.map(lambda _: True, result)

    return partial(_choose, function_or_vmap, reference)


def by_platform(cpu: Function, default: Function) -> Function:
    """Build a function of arrays that XLA compiles differently for a CPU and for the rest."""
    return partial(_choose, cpu, default)


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
    def on_library(*arrays: Array) -> Any:
        return forward_or_vmap(*arrays)[0]

    def on_library_fwd(*arrays: Array) -> tuple[Any, Any]:
        result, kept = forward_or_vmap(*arrays)
        return result, (arrays, kept)

    def on_library_bwd(residuals: Any, g: Any) -> Any:
        return backward_or_vmap(*residuals, g)

    on_library.defvjp(on_library_fwd, on_library_bwd)
    return partial(_choose, on_library, reference)


def _choose(on_library: Function, reference: Function, *arrays: Any) -> Any:
    if _FOR_CPU.get():
        return on_library(*arrays)

    def on_cpu(*arrays: Any) -> Any:
        token = _FOR_CPU.set(True)
        try:
            return on_library(*arrays)
        finally:
            _FOR_CPU.reset(token)

    return lax.platform_dependent(*arrays, cpu=on_cpu, default=reference)


def _mapped(function: Function, size: int, batched: Any, *trees: Any) -> Any:
    in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
    return jax.vmap(function, in_axes, axis_size=size)(*trees)
