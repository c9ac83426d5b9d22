"""1-bit convolutional networks by sign-to-magnitude binarization, in JAX and Flax."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siman_jax.packed.model import PackedModel


def load(path: str | Path, *, exact: bool = False) -> "PackedModel":
    """Read a model file, as `python -m siman_jax.export` writes it.

        model = siman_jax.load("model.safetensors")
        logits = model(images)  # uint8 [batch, height, width, channels]

    JAX has threads, which a forked process would lack: start processes that share the work by
    `spawn` or `forkserver`, and load the file in each of them.

    Args:
      path: of the file.
      exact: compute layer by layer as evaluation on a CPU does, so that no rounding decides a bit
        or a prediction otherwise, where run and file are float32. Otherwise, and faster, the
        native library may add real numbers up in another order, and once in some hundred images a
        rounding decides a bit, seldom the class.

    Raises:
      UsageError: it is no model file, damaged, or lacks what prediction needs.
    """
    from siman_jax.packed.model import load_model  # JAX is imported when it is needed

    return load_model(path, exact=exact)
