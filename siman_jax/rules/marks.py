"""Marks in a trace: computations that `program.trace` takes as a whole instead of recognizing them.

While `marking` is on, a marked computation is one equation of the jaxpr. The equation holds what it
is called, its settings, and the computation itself.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive

# Names of the marks.
SIGNS = "signs"
BINARY_CONV = "binary_conv"
BINARY_DENSE = "binary_dense"

# Part of the key of JAX's caches, so that functions traced with marks are not used without them.
_MARKING = jax.make_user_context(default_value=False)


def marking() -> AbstractContextManager[Any]:
    """Mark computations that are traced in this context."""
    return _MARKING(True)


def is_marking() -> bool:
    """Tell whether marks are wanted."""
    return bool(_MARKING.value)


def mark(name: str, function: Callable[..., Array], *arrays: Array, **settings: Any) -> Array:
    """Compute `function(*arrays)`, with a mark if wanted.

    Args:
      name: one of the names above.
      function: the computation.
      *arrays: its operands.
      **settings: what else describes it; hashable.
    """
    if not is_marking():
        return function(*arrays)
    jaxpr = jax.make_jaxpr(function)(*arrays)
    (result,) = MARK.bind(*arrays, name=name, jaxpr=jaxpr, settings=tuple(settings.items()))
    return result


MARK = Primitive("siman_mark")
MARK.multiple_results = True


@MARK.def_abstract_eval
def _(*_: Any, jaxpr: Any, **__: Any) -> Any:
    return jaxpr.out_avals
