"""Going through a jaxpr, equation by equation, and into the functions that it calls."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from siman_jax.rules.marks import MARK

# A scope of its own for every module: the scopes of Flax follow the calls, not the owners.
_MODULE, _BETWEEN = "module:", "::"


def name_module(
    call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    """Give the equations of a method the path of its module; for `nn.intercept_methods`."""
    with jax.named_scope(_MODULE + _BETWEEN.join(context.module.path)):
        return call(*args, **kwargs)


class Walker:
    """Goes through a jaxpr in order, and into the functions that it calls.

    Attributes:
      count: how many equations were met that call nothing.
      path: of the module that the current equation belongs to.
      line: where in the source it stands.
    """

    def __init__(self) -> None:
        self.count = 0
        self.path = ""
        self.line = ""

    def walk(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Return the values of the results of `jaxpr`."""
        known: dict[Any, Any] = {}

        def value(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else known[variable]

        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        outer = self.path, self.line
        for equation in jaxpr.eqns:
            self.path = _module(equation) or outer[0]
            self.line = _line(equation) or outer[1]
            inputs = [value(variable) for variable in equation.invars]
            inner = _called(equation, inputs)
            if inner is None:
                results = self.equation(equation, inputs)
                self.count += 1
            else:
                function, inputs = inner
                results = self.walk(function.jaxpr, function.consts, inputs)
            known.update(zip(equation.outvars, results, strict=True))
        self.path, self.line = outer
        return [value(variable) for variable in jaxpr.outvars]

    def equation(self, equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """Return the results of an equation that calls nothing."""
        raise NotImplementedError


def evaluate(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Compute an equation on arrays; now, if none of them is traced."""
    if equation.primitive is MARK:
        inner = equation.params["jaxpr"]
        return jax.core.eval_jaxpr(inner.jaxpr, inner.consts, *inputs)
    settings = equation.primitive.get_bind_params(equation.params)
    if any(map(_is_traced, inputs)):
        results = equation.primitive.bind(*inputs, **settings)
    else:
        with jax.ensure_compile_time_eval():
            results = equation.primitive.bind(*inputs, **settings)
    return list(results) if equation.primitive.multiple_results else [results]


# Equations that call a function once with their inputs.
_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vmap_call",
}


def _called(equation: JaxprEqn, inputs: list[Any]) -> tuple[ClosedJaxpr, list[Any]] | None:
    """Return the function that an equation calls once, with its arguments; None if there is none.

    Loops are equations like others, and so are marks.
    """
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        which, *arguments = inputs
        if not isinstance(which, int | np.generic | np.ndarray | jax.Array) or _is_traced(which):
            return None
        branches = params["branches"]
        return branches[int(np.clip(which, 0, len(branches) - 1))], arguments
    if name not in _CALLS:
        return None
    inner = next(
        params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if key in params
    )
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), inputs


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _module(equation: JaxprEqn) -> str:
    """Return the path of the module whose method was running; empty for the network itself."""
    scopes = str(equation.source_info.name_stack).split("/")
    named = [scope for scope in scopes if scope.startswith(_MODULE)]
    return named[-1][len(_MODULE) :].replace(_BETWEEN, "/") if named else ""


# Packages whose lines are not the user's.
_FOLDERS = (Path(__file__).parents[1], *(Path(x.__file__ or "").parent for x in (jax, flax)))
_LIBRARIES = tuple(map(str, _FOLDERS))


def _line(equation: JaxprEqn) -> str:
    """Return the innermost line of the source outside of libraries, such as "net.py:12"."""
    traceback = equation.source_info.traceback
    frames: Sequence[Any] = traceback.frames if traceback is not None else ()
    for frame in frames:
        if not frame.file_name.startswith(_LIBRARIES):
            return f"{Path(frame.file_name).name}:{frame.line_num}"
    return ""
