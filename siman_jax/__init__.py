"""1-bit convolutional networks by sign-to-magnitude binarization, in JAX and Flax."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siman_jax.packed.model import PackedModel


def load(path: str | Path) -> "PackedModel":
    """Read a model file, as `python -m siman_jax.export` writes it.

        model = siman_jax.load("model.safetensors")
        logits = model(images)  # uint8 [batch, height, width, channels]

    Raises:
      UsageError: it is no model file, damaged, or lacks what prediction needs.
    """
    from siman_jax.packed.model import load_model  # JAX is imported when it is needed

    return load_model(path)
