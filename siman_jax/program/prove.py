"""Proving that a program computes what its network does, operation by operation.

The network runs as it is, and each operation of the program is given what the network has at that
point. So a difference is found where it arises, and a bit that rounding changes does not spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.sharding import Sharding

from siman_jax.errors import UsageError
from siman_jax.models.batch_norm import per_channel
from siman_jax.program import operations as op
from siman_jax.program.interpret import result_of
from siman_jax.program.operations import NAMES, Operation, Program
from siman_jax.program.passes import simplify
from siman_jax.program.trace import read, traced_network, tracer
from siman_jax.program.walk import Walker, evaluate

# Largest difference of real numbers, relative to the largest number of the result.
_TOLERANCE = 1e-5
# Signs may differ where an activation is this close to its threshold, in deviations of the sample.
_NEAR = 1e-5

# How many images to compare on.
COMPARED = 8


@dataclass(frozen=True)
class Proof:
    """The numbers of what was compared.

    Attributes:
      images: number of images.
      operations: number of operations that had a counterpart in the network.
      bits: number of signs.
      near: number of signs that differ, all within 1e-5 deviations of their threshold.
    """

    images: int
    operations: int
    bits: int
    near: int

    def __str__(self) -> str:
        """Describe the proof in one line."""
        text = f"{self.operations} operations compute the same on {self.images} images"
        if self.near:
            text += f"; {self.near} of {self.bits:,} bits differ, each next to its threshold"
        elif self.bits:
            text += f", with {self.bits:,} equal bits"
        return text


class Unequal(UsageError):  # noqa: N818
    """A program computes something else than its network; the message says where."""


def proven_program(
    model: nn.Module,
    variables: Mapping,
    image_shape: tuple[int, int, int],
    images: Array | None = None,
) -> tuple[Program, Proof]:
    """Trace a network, and prove the program on a few images.

    Args:
      model: the network, in float32.
      variables: all collections that it needs.
      image_shape: height, width and channels.
      images: normalized, float32 `[batch, height, width, channels]`; noise if None.

    Returns:
      The program, with NumPy arrays as weights, and what was compared.

    Raises:
      Untraceable: it computes what is not among the operations.
      Unequal: the program computes something else.
    """
    if images is None:
        images = jax.random.normal(jax.random.key(0), (COMPARED, *image_shape), jnp.float32)
    program, proof = Programs(model, variables, images)(variables, images)
    return jax.tree.map(np.asarray, program), proof


class Programs:
    """Makes programs of a network's variables, each proven; it traces and compiles once."""

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping,
        images: Array,
        sharding: Sharding | None = None,
    ) -> None:
        """Trace the network.

        Args:
          model: the network, in float32.
          variables: all collections that it needs; only their shapes matter.
          images: as for a call; only their shape matters.
          sharding: of the programs; as it comes if None.

        Raises:
          Untraceable: it computes what is not among the operations.
        """
        count, height, width, channels = images.shape
        shape = height, width, channels
        self._program = jax.jit(tracer(model, variables, shape), out_shardings=sharding)
        self._prove = Prover(model, variables, shape, count, sharding)

    def __call__(self, variables: Mapping, images: Array) -> tuple[Program, Proof]:
        """Return the program of some variables, proven on normalized images.

        Raises:
          Untraceable: it computes what is not among the operations.
          Unequal: the program computes something else.
        """
        program = self._program(dict(variables))
        return program, self._prove(program, variables, images)


def prove(program: Program, model: nn.Module, variables: Mapping, images: Array) -> Proof:
    """Compare every operation of a program with the network that it was traced from.

    Args:
      program: from `trace`, simplified.
      model: the network.
      variables: those that were traced.
      images: normalized, float32 `[batch, height, width, channels]`.

    Raises:
      Unequal: an operation computes something else.
    """
    return Prover(model, variables, program.image_shape, len(images))(program, variables, images)


class Prover:
    """Compares programs with the network that they were traced from; it compiles once.

    Whole numbers have to be equal, and real numbers equal up to 1e-5 of the largest. A bit may
    differ if its activation is within 1e-5 deviations of its threshold.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping,
        image_shape: tuple[int, int, int],
        count: int,
        sharding: Sharding | None = None,
    ) -> None:
        """Trace the network.

        Args:
          model: the network.
          variables: only their shapes matter.
          image_shape: height, width and channels.
          count: how many images to compare on.
          sharding: of what was compared; as it comes if None.
        """
        jaxpr = traced_network(model, variables, image_shape, count)
        self._count = count
        leaves = jax.tree.leaves(dict(variables))
        again = jax.eval_shape(lambda leaves: simplify(read(jaxpr, leaves)), leaves)
        self._structure = jax.tree.structure(again)

        def compare(program: Program, variables: dict, images: Array) -> dict[int, _Finding]:
            return _compare(program, jaxpr, jax.tree.leaves(variables), images)

        # With so few images, compiling fast matters more than running fast.
        options = {"xla_backend_optimization_level": 0}
        self._compare = jax.jit(compare, compiler_options=options, out_shardings=sharding)

    def __call__(self, program: Program, variables: Mapping, images: Array) -> Proof:
        """Compare a program; the arguments are as for `prove`.

        Raises:
          Unequal: an operation computes something else.
        """
        structure: Any = jax.tree.structure(program)
        if structure != self._structure:
            raise Unequal(
                "the network computes something else for another number of images in a batch. Write"
                " it so that each image is treated alone."
            )
        with jax.default_matmul_precision("highest"):
            compared = self._compare(program, dict(variables), images)
        found: dict[int, _Finding] = jax.tree.map(np.asarray, compared)
        for place, finding in found.items():
            if not finding.passed:
                raise _unequal(program.operations[place], finding)
        bits = [found[place] for place in found if isinstance(program.operations[place], op.Signs)]
        return Proof(
            self._count,
            len(found),
            sum(int(finding.count) for finding in bits),
            sum(int(finding.different) for finding in bits),
        )


@dataclass(frozen=True)
class _Finding:
    """The comparison of one operation.

    Attributes:
      passed: whether it computes the same.
      count: how many numbers it gives.
      different: how many of these differ, for signs and whole numbers.
      difference: the largest, relative to the largest number, for real numbers.
    """

    passed: Any
    count: Any
    different: Any
    difference: Any


jax.tree_util.register_dataclass(_Finding, ["passed", "count", "different", "difference"], [])


def _unequal(operation: Operation, finding: _Finding) -> Unequal:
    where = f"the module {operation.path}" if operation.path else "the network"
    name = NAMES[type(operation)]
    how = f"numbers up to {float(finding.difference):.1g} of the largest"
    if isinstance(operation, op.Signs) or finding.different:
        how = f"{int(finding.different)} of {int(finding.count)} numbers"
    return Unequal(
        f"{where} cannot be packed: its {name} would differ from evaluation in {how}. If weights or"
        " activations are not finite, train again; otherwise please report this network."
    )


class _Recorder(Walker):
    """Computes a traced network and keeps the results of some equations."""

    def __init__(self, wanted: set[tuple[int, int]]) -> None:
        super().__init__()
        self.wanted = wanted
        self.found: dict[tuple[int, int], Array] = {}

    def equation(self, equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        results = evaluate(equation, inputs)
        for which, result in enumerate(results):
            if (self.count, which) in self.wanted:
                self.found[self.count, which] = result.astype(jnp.float32)
        return results


def _compare(
    program: Program, jaxpr: ClosedJaxpr, variables: list[Any], images: Array
) -> dict[int, _Finding]:
    origins = {operation.origin for operation in program.operations}
    recorder = _Recorder({origin for origin in origins if origin is not None})
    recorder.walk(jaxpr.jaxpr, jaxpr.consts, [*variables, images])
    results: list[Array] = []
    found: dict[int, _Finding] = {}
    for place, operation in enumerate(program.operations):
        result = result_of(program, place, results, images)
        if operation.origin is not None:
            expected = recorder.found[operation.origin]
            operands = [results[source] for source in operation.inputs]
            found[place] = _finding(program, operation, operands, result, expected)
            result = expected
        results.append(result)
    return found


def _finding(
    program: Program, operation: Operation, operands: list[Array], result: Array, expected: Array
) -> _Finding:
    if isinstance(operation, op.Signs):
        unequal = result != expected
        passed = jnp.all(~unequal | _is_near(operation, operands[0]))
    elif _is_whole(program, operation):
        unequal = result != expected
        passed = ~jnp.any(unequal)
    else:
        unequal = jnp.zeros((), bool)
        passed = None
    largest = jnp.max(jnp.abs(expected))
    if isinstance(operation, op.Affine) and operation.scale is not None:
        # What is subtracted may be much larger than the difference.
        (x,) = operands
        scaled = x * per_channel(operation.scale, x)
        largest = jnp.maximum(largest, jnp.max(jnp.abs(scaled)))
    difference = jnp.max(jnp.abs(result - expected))
    if passed is None:
        passed = difference <= _TOLERANCE * largest
    relative = difference / jnp.where(largest > 0, largest, 1)
    return _Finding(passed, jnp.int32(result.size), jnp.sum(unequal), relative)


def _is_near(operation: op.Signs, x: Array) -> Array:
    """Tell which activations are so close to their threshold that rounding may decide."""
    axes = tuple(range(1, x.ndim))
    threshold = jnp.mean(x, axes, keepdims=True)
    deviation = jnp.std(x, axes, keepdims=True)
    if operation.threshold is not None:
        threshold = per_channel(operation.threshold, x)
    return jnp.abs(x - threshold) <= _NEAR * deviation


def _is_whole(program: Program, operation: Operation) -> bool:
    """Tell whether an operation is a product of signs."""
    if not isinstance(operation, op.BinaryConv | op.BinaryDense):
        return False
    return isinstance(program.operations[operation.inputs[0]], op.Signs)
