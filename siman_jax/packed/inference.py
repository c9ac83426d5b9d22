"""A packed network as one function from images to logits, to call or to export."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.models.normalization import normalize
from siman_jax.native import library
from siman_jax.native.network_call import network_call
from siman_jax.packed.notes import Notes
from siman_jax.packed.program_file import PackedProgram
from siman_jax.program.interpret import interpret
from siman_jax.program.native import native_network
from siman_jax.program.operations import Program


def inference(
    network: PackedProgram, notes: Notes, *, exact: bool = False, portable: bool = False
) -> Callable[[Array], Array]:
    """Build a pure function from images to logits that contains the weights.

    Images are `[batch, height, width, channels]`, uint8 from 0 to 255 or floating from 0 to 1;
    logits are float32 `[batch, classes]`.

    Args:
      network: the packed network.
      notes: its notes, for the normalization.
      exact: run it by JAX as evaluation does, instead of as one native call.
      portable: use no native library at all, for a program that runs on other machines.
    """
    apply = _logits_of(network.program, exact=exact, portable=portable)

    def logits(images: Array) -> Array:
        if jnp.issubdtype(images.dtype, jnp.floating):
            images = images.astype(jnp.float32) * 255
        return apply(normalize(images, notes.mean, notes.std))

    return logits


def _logits_of(program: Program, *, exact: bool, portable: bool) -> Callable[[Array], Array]:
    """Return the function from normalized images to logits."""
    by_jax = partial(interpret, program, native=not portable)
    if exact or portable or not library.variants():
        return by_jax
    on_cpu = partial(network_call, native_network(program))
    return partial(jax.lax.platform_dependent, cpu=on_cpu, default=by_jax)


def export_program(network: PackedProgram, notes: Notes) -> bytes:
    """Serialize the network as one StableHLO program, with its weights and normalization.

    The program maps uint8 `[batch, height, width, channels]` to float32 `[batch, classes]`, for
    any batch size, on a CPU, CUDA or TPU: `jax.export.deserialize(program).call(images)`. Equal
    networks give equal bytes on every machine and in every folder.
    """
    logits = jax.jit(inference(network, notes, portable=True))
    batch = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((*batch, *network.image_shape), jnp.uint8)
    with _without_source_lines(), jax.disable_jit(False):
        program = jax.export.export(logits, platforms=("cpu", "cuda", "tpu"))(images)
    return bytes(program.serialize())


@contextmanager
def _without_source_lines() -> Iterator[None]:
    """Leave the paths of source files out of programs."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
