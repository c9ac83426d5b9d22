"""Decides whether a computation runs natively or by XLA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.dtypes import float0

from siman_jax.native.library import variants

Function = Callable[..., Any]

_ALLOWED: ContextVar[bool] = ContextVar("allowed", default=True)
# Whether the code being traced will be compiled only for a CPU.
_FOR_CPU: ContextVar[bool] = ContextVar("for_cpu", default=False)


@contextmanager
def native(allowed: bool, *, for_cpu: bool = False) -> Iterator[None]:
    """Allow or forbid the library for code that is traced in this context; the default is True.

    Functions that `jax.jit` has traced before do not change.

    Args:
      allowed: whether the library may be used.
      for_cpu: whether the code will be compiled only for a CPU. Then what other platforms would
        run is not traced, which saves seconds.

    >>> with native(False):
    ...     available()
    False
    """
    tokens = _ALLOWED.set(allowed), _FOR_CPU.set(for_cpu or _FOR_CPU.get())
    try:
        yield
    finally:
        _ALLOWED.reset(tokens[0])
        _FOR_CPU.reset(tokens[1])


def available(*arrays: Array | None) -> bool:
    """Tell whether to use the library: allowed, built for this machine, and all arrays float32."""
    if not (_ALLOWED.get() and variants()):
        return False
    return all(x is None or x.dtype == jnp.float32 for x in arrays)


def on_cpu(function: Function, reference: Function) -> Function:
    """Build a function of arrays that runs `function` on a CPU, without a derivative.

    On other platforms, and under `vmap` everywhere, it runs `reference`.
    """
    function_or_vmap = custom_vmap(function)

    @function_or_vmap.def_vmap
    def _(size: int, batched: Any, *arrays: Array) -> tuple[Any, Any]:
        result = _mapped(reference, size, batched, *arrays)
        return result, jax.tree.map(lambda _: True, result)

    return partial(_choose, function_or_vmap, reference)


def by_platform(cpu: Function, default: Function) -> Function:
    """Build a function of arrays that runs `cpu` on a CPU, and `default` on other platforms."""
    return partial(_choose, cpu, default)


def differentiable(reference: Function, forward: Function, backward: Function) -> Function:
    """Build a function of arrays that is native on a CPU, in both directions.

    On other platforms, and under `vmap` everywhere, it runs `reference`.

    Args:
      reference: function of arrays in `jax.numpy`, with its derivative.
      forward: native; from the same arrays to the results of `reference`, and residuals for
        `backward`.
      backward: native; from the arrays, the residuals, and the cotangents of the results, to the
        arrays' cotangents. Integers have none: None stands for theirs.
    """
    forward_or_vmap = custom_vmap(lambda *arrays: forward(*arrays))

    @forward_or_vmap.def_vmap
    def _(size: int, batched: Any, *arrays: Array) -> tuple[Any, Any]:
        result = _mapped(reference, size, batched, *arrays)
        one = [x[0] if is_batched else x for x, is_batched in zip(arrays, batched, strict=True)]
        _, kept = jax.eval_shape(forward, *one)
        # Zeros will do: `backward_or_vmap` is mapped too then, and ignores them.
        kept = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), kept)
        return (result, kept), jax.tree.map(lambda _: True, (result, kept))

    backward_or_vmap = custom_vmap(lambda arrays, kept, g: backward(arrays, kept, g))

    @backward_or_vmap.def_vmap
    def _(size: int, batched: Any, arrays: Any, kept: Any, g: Any) -> tuple[Any, Any]:
        del kept

        def one(arrays: Any, g: Any) -> Any:
            results, pullback = jax.vjp(reference, *arrays)
            g = jax.tree.map(lambda y, dy: _zeros_of_nothing(y) if dy is None else dy, results, g)
            return _without_integers(pullback(g))

        result = _mapped(one, size, (batched[0], batched[2]), arrays, g)
        return result, jax.tree.map(lambda _: True, result)

    @jax.custom_vjp
    def on_library(*arrays: Array) -> Any:
        return forward_or_vmap(*arrays)[0]

    def on_library_fwd(*arrays: Array) -> tuple[Any, Any]:
        result, kept = forward_or_vmap(*arrays)
        return result, (arrays, kept)

    def on_library_bwd(residuals: Any, g: Any) -> Any:
        return backward_or_vmap(*residuals, _without_integers(g))

    on_library.defvjp(on_library_fwd, on_library_bwd)
    return partial(_choose, on_library, reference)


def without_gradient(x: Array) -> Array | None:
    """Return the cotangent of an array that the results do not depend on, for `differentiable`."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else None


def _without_integers(cotangents: Any) -> Any:
    """Replace the cotangents of integers by None."""
    return jax.tree.map(lambda g: None if g.dtype == float0 else g, cotangents)


def _zeros_of_nothing(x: Array) -> Any:
    return np.zeros(x.shape, float0)


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
