"""From a Flax module and its variables to a program.

The network is traced: its jaxpr has every operation that `__call__` asks for, with the module and
the line of the source. The equations are then read in order. What depends on the variables alone is
computed. Each equation on activations becomes an operation, or is refused. Binary layers mark their
own equations, see `rules.marks`, so their arithmetic is not recognized.

The batch is always the first axis, and no operation may touch it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr

import siman_jax.program.interpret  # noqa: F401  makes programs pytrees
from siman_jax.errors import UsageError, first_line
from siman_jax.native.dispatch import native
from siman_jax.program.equations import READERS
from siman_jax.program.operations import Program
from siman_jax.program.passes import Pass, simplify
from siman_jax.program.reader import Reader, Result, Untraceable
from siman_jax.program.walk import name_module
from siman_jax.rules.marks import marking

# Images in the batch that is traced.
_BATCH = 2


def trace(
    model: nn.Module,
    variables: Mapping,
    image_shape: tuple[int, int, int],
    then: Pass = simplify,
) -> Program:
    """Read the program that a network computes in evaluation.

    Args:
      model: called as `model(images, train=False)`, with logits `[batch, classes]` as its result.
      variables: all collections that it needs.
      image_shape: height, width and channels.
      then: function that is applied to the program as read, which follows the source.

    Returns:
      The program, with NumPy arrays as weights.

    Raises:
      Untraceable: it cannot be called so, or computes what is not among the operations.
    """
    # Compiled, so that weights round as in evaluation.
    program = jax.jit(tracer(model, variables, image_shape, then))(dict(variables))
    return jax.tree.map(np.asarray, program)


def tracer(
    model: nn.Module,
    variables: Mapping,
    image_shape: tuple[int, int, int],
    then: Pass = simplify,
) -> Callable[[Mapping], Program]:
    """Trace a network once; return the function from its variables to its program.

    Args:
      model: as for `trace`.
      variables: only their shapes matter.
      image_shape: height, width and channels.
      then: as for `trace`.

    Returns:
      A function that may be compiled; the weights are JAX arrays.

    Raises:
      Untraceable: as for `trace`; the function may raise it too.
    """
    jaxpr = traced_network(model, variables, image_shape, _BATCH)
    return lambda variables: then(read(jaxpr, jax.tree.leaves(dict(variables))))


def traced_network(
    model: nn.Module, variables: Mapping, image_shape: tuple[int, int, int], batch: int
) -> ClosedJaxpr:
    """Trace a network's evaluation with marks, for a batch of so many images.

    Returns:
      Its arguments are the leaves of the variables, then the images.

    Raises:
      Untraceable: it cannot be called so.
    """
    leaves, structure = jax.tree.flatten(dict(variables))

    def logits(leaves: list[Any], images: Array) -> Any:
        return model.apply(jax.tree.unflatten(structure, leaves), images, train=False)

    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    name = type(model).__name__
    try:
        with native(False), marking(), nn.intercept_methods(name_module):
            jaxpr = jax.make_jaxpr(logits)(leaves, images)
    except UsageError:
        raise
    except Exception as error:
        raise Untraceable(
            f"{name} cannot be traced as model(images, train=False) on images of {image_shape}:"
            f" {type(error).__name__}: {first_line(error)}"
        ) from error
    shapes = [(aval.shape, aval.dtype) for aval in jaxpr.out_avals]
    if len(shapes) != 1 or len(shapes[0][0]) != 2 or shapes[0][1] != jnp.float32:
        raise Untraceable(
            f"{name} gives {shapes} for {batch} images; expected float32 logits of shape"
            " [images, classes]. Networks are packed in float32, so build it with that dtype."
        )
    return jaxpr


def read(jaxpr: ClosedJaxpr, variables: Sequence[Any]) -> Program:
    """Read a traced network; the weights are JAX arrays. May itself be traced.

    Raises:
      Untraceable: an equation is not among the operations.
    """
    images = jaxpr.in_avals[-1].shape
    reader = Reader(images[0], READERS)
    first = reader.start(images[1:])
    (result,) = reader.walk(jaxpr.jaxpr, jaxpr.consts, [*variables, first])
    if not isinstance(result, Result):
        raise Untraceable("the logits do not depend on the images.")
    return Program(tuple(reader.operations), result.place)
