"""A packed network as one function from images to logits: here, and only here, it is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from siman_jax.models.normalization import normalize
from siman_jax.packed.file import PackedNetwork
from siman_jax.packed.network import packed_logits, packed_twin
from siman_jax.packed.notes import Notes


def inference(
    network: PackedNetwork, notes: Notes, *, exact: bool = False, portable: bool = False
) -> Callable[[Array], Array]:
    """Build the function from images to logits, weights included.

    The images are `[batch, height, width, channels]`, uint8 from 0 to 255 or floating from 0 to 1;
    the logits float32 `[batch, classes]`. It is pure, to be compiled or exported.

    Args:
      network: with its variables.
      notes: of normalization.
      exact: round as evaluation does; see `network.packed_logits`.
      portable: leave out what is for this machine, the native library and the pieces of a batch.
    """
    model = network.model()
    apply: Callable[..., Any] = partial(packed_logits, model, exact=exact)
    if portable:
        apply = partial(packed_twin(model, native=False).apply, train=False)

    def logits(images: Array) -> Array:
        if jnp.issubdtype(images.dtype, jnp.floating):
            images = images.astype(jnp.float32) * 255
        return apply(network.variables, normalize(images, notes.mean, notes.std))

    return logits


def export_program(network: PackedNetwork, notes: Notes) -> bytes:
    """Serialize the network as one StableHLO program, weights and normalization included.

    The program maps uint8 `[batch, height, width, channels]` to float32 `[batch, classes]`, for
    any batch, on a CPU, CUDA or TPU: `jax.export.deserialize(program).call(images)`. Equal networks
    give equal bytes, whatever machine and folder they are made in.
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
