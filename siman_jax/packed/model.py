"""A model file as a Python object, which maps images to logits or named classes."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from siman_jax.errors import UsageError
from siman_jax.models.summary import print_summary
from siman_jax.packed.file import PackedNetwork
from siman_jax.packed.inference import inference
from siman_jax.packed.notes import Notes, parse_notes
from siman_jax.packed.program_file import PackedProgram, read_model
from siman_jax.packed.summary import summarize_packed


class Prediction(NamedTuple):
    """Predictions for a batch of images.

    Attributes:
      classes: int64 `[batch]`, index of the most probable class of each image.
      probabilities: float32 `[batch, classes]`, softmax of the logits.
      names: names of `classes`, or their numbers if the file has no class names.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    names: list[str]


class PackedModel:
    """A packed network, ready to be called.

    The first call with each batch size compiles the network.

    Attributes:
      network: the content of the file.
      notes: the file's notes, checked.
    """

    def __init__(self, network: PackedNetwork | PackedProgram, *, exact: bool = False) -> None:
        self.network = network
        self.notes: Notes = parse_notes(network.notes, network.image_shape, network.num_classes)
        self._logits = jax.jit(inference(network, self.notes, exact=exact))

    def __call__(self, images: ArrayLike) -> Array:
        """Map images to logits.

        Args:
          images: `[batch, height, width, channels]`, uint8 from 0 to 255, or floating from 0 to 1;
            they are normalized here by the file's mean and std.

        Returns:
          float32 `[batch, classes]`.

        Raises:
          UsageError: the shape or dtype is wrong, or floats are outside of 0 to 1. A rounding
            error, one step of their dtype or of float32, is allowed. Inside `jax.jit` the range
            is not checked, since values are not known there.
        """
        return self._logits(self._checked(images))

    def predict(self, images: ArrayLike) -> Prediction:
        """Classify images; the argument and errors are those of a call."""
        logits = np.asarray(self(images))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        classes = probabilities.argmax(axis=1)
        return Prediction(classes, probabilities, [self.class_name(index) for index in classes])

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its number if the file has no class names."""
        return self.notes.class_names[index] if self.notes.class_names else str(index)

    def summary(self) -> None:
        """Print the parameters, multiply-accumulates and kB of every layer, and their totals."""
        print_summary(summarize_packed(self.network))

    def _checked(self, images: ArrayLike) -> Array | np.ndarray:
        array = images if isinstance(images, Array) else np.asarray(images)
        expected = "x".join(map(str, self.network.image_shape))
        if array.ndim != 4 or array.shape[1:] != self.network.image_shape or not array.shape[0]:
            raise UsageError(
                f"the images have shape {list(array.shape)}; expected [batch, height, width,"
                f" channels] with at least one image of {expected}."
                f"{self._hint(array.shape)}"
            )
        if array.dtype == np.uint8:
            return array
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UsageError(
                f"the images have dtype {array.dtype}; expected uint8 from 0 to 255, or floats"
                " from 0 to 1."
            )
        if isinstance(array, jax.core.Tracer):
            return array.astype(np.float32)
        least, most = float(array.min()), float(array.max())
        step = float(max(jnp.finfo(array.dtype).eps, jnp.finfo(jnp.float32).eps))
        if not -step <= least <= most <= 1 + step:
            raise UsageError(
                f"the images are floats from {least:g} to {most:g}; expected 0 to 1, not yet"
                " normalized. Pass pixels from 0 to 255 as uint8."
            )
        array = array.astype(np.float32)
        return array.clip(0, 1) if least < 0 or most > 1 else array

    def _hint(self, shape: tuple[int, ...]) -> str:
        """Suggest how to correct a wrong shape, for common mistakes."""
        height, width, channels = self.network.image_shape
        if shape[-3:] == (channels, height, width):
            return " The channels come first; numpy.moveaxis(images, -3, -1) moves them."
        if shape == self.network.image_shape:
            return " This is a single image; pass images[None]."
        return ""


def load_model(path: str | Path, *, exact: bool = False) -> PackedModel:
    """Read a model file.

    Args:
      path: of the file.
      exact: as for `siman_jax.load`.

    Raises:
      UsageError: the file is missing, damaged, of another kind or version, or lacks notes that
        prediction needs.
    """
    network = read_model(path)
    try:
        return PackedModel(network, exact=exact)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used to predict: {error}") from error
