"""Make operations of the equations of a network's jaxpr: the reader, and its values meanwhile."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from siman_jax.errors import UsageError
from siman_jax.program import operations as op
from siman_jax.program.operations import Operation, Shape
from siman_jax.program.walk import Walker, evaluate


class Untraceable(UsageError):  # noqa: N818
    """A network computes what no program can; the message says what, where, and what to do."""


# Values while reading. Values of other types are arrays that do not depend on the images.


@dataclass(frozen=True)
class Result:
    """The result of the operation at `place`."""

    place: int


@dataclass(frozen=True)
class Test:
    """The comparison of a result with numbers, such as x >= 0.

    Attributes:
      place: of the result x.
      than: the numbers.
      above: True for x > and x >=, False for x < and x <=.
      strict: True for x > and x <, which equal numbers fail.
    """

    place: int
    than: Any
    above: bool
    strict: bool


@dataclass(frozen=True)
class Exponential:
    """exp of the result at `place`; `total` if summed along the last axis. Only for a softmax."""

    place: int
    total: bool = False


def depends(x: Any) -> bool:
    """Tell whether a value depends on the images."""
    return isinstance(x, Result | Test | Exponential)


def scalar(x: Any) -> float | None:
    """Return the one number that an array holds everywhere; None if it is not known or differs."""
    if depends(x) or isinstance(x, jax.core.Tracer):
        return None
    array = np.asarray(x)
    if not array.size or (array != array.flat[0]).any():
        return None
    return float(array.flat[0])


Function = Callable[["Reader", JaxprEqn, list[Any]], Any]


# Advice for some operations that are not known.
_HINTS = {
    "sign": ", which is 0 at 0; use a rule of siman_jax.ACTIVATION_RULES",
    "erf": "; of the smooth activations, sigmoid and tanh are known",
    "rsqrt": "; batch norm by running statistics is known, other norms are not",
    "sqrt": "; batch norm by running statistics is known, other norms are not",
}


class Reader(Walker):
    """Reads equations one by one, and makes operations of them.

    Attributes:
      batch: how many images the jaxpr is for.
      readers: how equations are read, by the names of their primitives.
      operations: those made so far.
      shapes: of their results.
    """

    def __init__(self, batch: int, readers: Mapping[str, Function]) -> None:
        super().__init__()
        self.batch = batch
        self.readers = readers
        self.operations: list[Operation] = []
        self.shapes: list[Shape] = []

    def start(self, shape: Shape) -> Result:
        """Make the first operation, the images."""
        return self.add(op.Images, shape=tuple(shape))

    def add(self, kind: type[Operation], *inputs: Result, **settings: Any) -> Result:
        """Append an operation of the current equation."""
        operation = kind(
            inputs=tuple(x.place for x in inputs),
            path=self.path,
            line=self.line,
            **{name: _plain(value) for name, value in settings.items()},
        )
        try:
            shape = operation.shape_of(*(self.shapes[x.place] for x in inputs))
        except ValueError as error:
            raise self.refusal(f"it has {error}") from error
        self.operations.append(operation)
        self.shapes.append(shape)
        return Result(len(self.operations) - 1)

    def refusal(self, reason: str) -> Untraceable:
        """Make the error for the current equation."""
        where = f"the module {self.path}" if self.path else "the network"
        if self.line:
            where += f" ({self.line})"
        return Untraceable(
            f"{where} cannot be packed: {reason}. Write it with the operations that are listed on"
            " the page about the model file. Training and evaluation work as it is."
        )

    def equation(self, equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """Return the results of an equation, and make its operations."""
        if not any(map(depends, inputs)):
            return evaluate(equation, inputs)
        name = equation.primitive.name
        function = self.readers.get(name)
        if function is None:
            raise self.refusal(f"it computes {name} of activations{_HINTS.get(name, '')}")
        for variable in equation.outvars:
            self._check_result(equation, variable.aval)
        before = len(self.operations)
        results = function(self, equation, inputs)
        results = results if isinstance(results, list) else [results]
        self._note_origin(results, before)
        return results

    def _check_result(self, equation: JaxprEqn, aval: Any) -> None:
        name = equation.primitive.name
        whole = aval.dtype == jnp.int32 and name != "div"  # such as 2 * bits - 1
        if aval.dtype not in (jnp.float32, jnp.bool_) and not whole:
            raise self.refusal(
                f"it computes {name} in {aval.dtype}, and packed networks compute in float32"
            )
        if not aval.shape or aval.shape[0] != self.batch:
            raise self.refusal(f"its {name} mixes the images of a batch, or moves them")

    def _note_origin(self, results: Sequence[Any], before: int) -> None:
        for which, result in enumerate(results):
            if isinstance(result, Result) and result.place >= before:
                made = self.operations[result.place]
                self.operations[result.place] = replace(made, origin=(self.count, which))

    # Shared by the readers of equations

    def shape(self, x: Result) -> Shape:
        """Return the shape of a result, without the batch."""
        return self.shapes[x.place]

    def alone(self, x: Any) -> Any:
        """Return an array as it is for each image: without its first axis."""
        numbers: Any = jnp if isinstance(x, jax.core.Tracer) else np
        x = numbers.asarray(x, np.float32)
        if x.shape[0] > 1 and isinstance(x, np.ndarray) and (x != x[:1]).any():
            raise self.refusal("it uses an array that differs between the images of a batch")
        return x[0]

    def per_channel(self, x: Any, shape: Shape) -> Any:
        """Return an array as `[channels]`, for a result of `shape`; None if that cannot hold it."""
        if np.ndim(x) == 0:
            numbers: Any = jnp if isinstance(x, jax.core.Tracer) else np
            return numbers.full(shape[-1:], x, np.float32)
        x = self.alone(x)
        if not shape or not x.shape:
            return None
        if isinstance(x, np.ndarray) and x.size > x.shape[-1]:
            rows = x.reshape(-1, x.shape[-1])
            x = rows[:1].reshape((1,) * (x.ndim - 1) + (-1,)) if (rows == rows[:1]).all() else x
        if math.prod(x.shape[:-1]) != 1 or x.shape[-1] not in (1, shape[-1]):
            return None
        spread = jnp.broadcast_to if isinstance(x, jax.core.Tracer) else np.broadcast_to
        return spread(x.reshape(-1), shape[-1:])

    def result(self, x: Any, shape: Shape | None = None) -> Result:
        """Return `x` as a result; arrays become constants."""
        if isinstance(x, Result):
            return x
        if isinstance(x, Test):
            # True is 1: (signs + 1) / 2.
            signs = self.signs(x)
            half = self.per_channel(0.5, self.shape(signs))
            return self.add(op.Affine, signs, scale=half, shift=half)
        if isinstance(x, Exponential):
            raise self.refusal("it computes exp of activations other than for a softmax")
        if np.ndim(x) == 0:
            x = np.full((1,) * (len(shape or ()) + 1), x, np.float32)
        return self.add(op.Constant, value=self.alone(x))

    def signs(self, test: Test) -> Result:
        """Make +1 where a test holds, else -1."""
        x = Result(test.place)
        than = self.per_channel(test.than, self.shape(x))
        if than is None:
            raise self.refusal(
                "it compares activations with an array that does not have one number per channel"
            )
        if test.above == test.strict:
            # Signs compare by >=: x > t is x >= the next number above t, and x <= t the opposite.
            than = _next_after(than)
        signs = self.add(op.Signs, x, threshold=than)
        if test.above:
            return signs
        minus = np.full(self.shape(signs)[-1:], -1, np.float32)
        return self.add(op.Affine, signs, scale=minus)


def _plain(value: Any) -> Any:
    """Convert whole numbers of NumPy, which some equations hold, to those of Python, for files."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return int(value) if isinstance(value, np.integer) else value


def _next_after(x: Any) -> Any:
    """Return the next number above; above 0 the least that processors do not take for 0."""
    tiny = np.finfo(np.float32).tiny
    if isinstance(x, jax.core.Tracer):
        return jnp.where(x == 0, tiny, jnp.nextafter(x, jnp.full_like(x, jnp.inf)))
    return np.where(x == 0, tiny, np.nextafter(x, np.float32(np.inf)))
