"""Programs drawn at random: JAX and the native library compute the same, operation by operation."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import draw_program

from siman_jax.native import library
from siman_jax.packed.program_file import PackedProgram, decode_program, encode_program
from siman_jax.program import operations as op
from siman_jax.program.interpret import result_of
from siman_jax.program.native import native_network
from siman_jax.program.operations import OPERATIONS, Program


def near(operation, x):
    """Whether rounding may decide the sign of each number."""
    axes = tuple(range(1, x.ndim))
    threshold = operation.threshold
    if threshold is None:
        threshold = x.mean(axes, keepdims=True)
    return np.abs(x - threshold) <= 1e-5 * np.abs(x).max()


def test_the_draws_have_every_operation():
    kinds = {type(one) for seed in range(60) for one in draw_program(seed).operations}
    assert kinds == set(OPERATIONS.values())


@pytest.mark.skipif(not library.variants(), reason="the native library was not built")
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_the_library_computes_what_jax_does(seed):
    program = draw_program(seed)
    shapes = program.shapes()
    images = np.random.default_rng(seed).standard_normal((2, *shapes[0])).astype(np.float32)
    results = []
    for place, operation in enumerate(program.operations):
        expected = np.asarray(result_of(program, place, results, jnp.asarray(images)))
        results.append(jnp.asarray(expected))
        found = native_network(Program(program.operations, place))(images)
        found = found.reshape(expected.shape)
        if isinstance(operation, op.Signs):
            unequal = found != expected
            if unequal.any():
                assert near(operation, np.asarray(results[operation.inputs[0]]))[unequal].all()
                return  # what follows is of other bits
            continue
        whole = isinstance(operation, op.BinaryConv | op.BinaryDense) and isinstance(
            program.operations[operation.inputs[0]], op.Signs
        )
        largest = np.abs(expected).max()
        assert np.abs(found - expected).max() <= (0 if whole else 1e-4 * max(largest, 1)), place


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_files_keep_them(seed):
    program = draw_program(seed)
    *_, last = program.shapes()
    flat = op.Reshape(inputs=(program.result,), shape=(int(np.prod(last)),))
    program = Program((*program.operations, flat), program.result + 1)
    data = encode_program(PackedProgram(program))
    assert encode_program(decode_program(data)) == data
