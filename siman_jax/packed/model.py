"""A model file as a Python object, which maps images to logits or named classes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from siman_jax.errors import UsageError
from siman_jax.native import shared
from siman_jax.native.network import Network
from siman_jax.packed.notes import Notes, parse_notes
from siman_jax.packed.program_file import PackedProgram, decode_model, read_model
from siman_jax.program.native import native_network
from siman_jax.trained import find_trained

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


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

    The native library runs it, with NumPy alone; it may be called from several threads and after a
    fork. With `exact`, where the library was not built, and inside `jax.jit`, JAX runs it, which
    compiles it at the first call with each batch size.

    Attributes:
      network: the content of the file.
      exact: whether JAX runs it, as evaluation does.
      notes: the file's notes, checked.
    """

    def __init__(self, network: PackedProgram, *, exact: bool = False) -> None:
        self.network = network
        self.exact = exact
        self.notes: Notes = parse_notes(network.notes, network.image_shape, network.num_classes)
        self._native = None if exact else _native(network)
        self._compiled: Any = None
        if self._native is None:
            self._compile()

    def __call__(self, images: "ArrayLike", *, threads: int | None = None) -> "Array | np.ndarray":
        """Map images to logits.

        Args:
          images: `[batch, height, width, channels]`, uint8 from 0 to 255, or floating from 0 to 1;
            they are normalized here by the file's mean and std.
          threads: how many threads the native library may use; all processors if None. JAX has
            threads of its own.

        Returns:
          float32 `[batch, classes]`: of NumPy where the library runs it, else of JAX.

        Raises:
          UsageError: the shape or dtype is wrong, or floats are outside of 0 to 1. A rounding
            error, one step of their dtype or of float32, is allowed. Inside `jax.jit` the range
            is not checked, since values are not known there.
        """
        array = self._checked(images)
        if self._native is None or _is_traced(array):
            return self._compile()(array)
        pixels = np.asarray(array)
        if pixels.dtype != np.uint8:
            pixels = pixels * np.float32(255)
        std = np.asarray(self.notes.std, np.float32)
        scale, shift = 1 / (255 * std), np.asarray(self.notes.mean, np.float32) / std
        return self._native(pixels.astype(np.float32) * scale - shift, threads=threads)

    def _compile(self) -> Any:
        if self._compiled is None:
            import jax  # late: the native library does without

            from siman_jax.packed.inference import inference

            self._compiled = jax.jit(inference(self.network, self.notes, exact=self.exact))
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        """Keep only what the file holds; `__setstate__` makes the rest."""
        return {"network": self.network, "exact": self.exact}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare the model again from what `__getstate__` kept."""
        self.__init__(state["network"], exact=state["exact"])  # type: ignore[misc]

    def __repr__(self) -> str:
        """Say which images it maps to how many logits, and how."""
        size = "x".join(map(str, self.network.image_shape))
        how = "by JAX" if self._native is None else "natively"
        return f"<PackedModel: images of {size} to {self.network.num_classes} classes, {how}>"

    def predict(self, images: "ArrayLike", *, threads: int | None = None) -> Prediction:
        """Classify images; the arguments and errors are those of a call."""
        logits = np.asarray(self(images, threads=threads))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        classes = probabilities.argmax(axis=1)
        return Prediction(classes, probabilities, [self.class_name(index) for index in classes])

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its number if the file has no class names."""
        return self.notes.class_names[index] if self.notes.class_names else str(index)

    def summary(self) -> None:
        """Print the parameters, multiply-accumulates and kB of every layer, and their totals."""
        from siman_jax.models.summary import print_summary  # late: they need JAX
        from siman_jax.packed.summary import summarize_packed

        print_summary(summarize_packed(self.network.program))

    def _checked(self, images: Any) -> Any:
        array = images if _is_of_jax(images) else np.asarray(images)
        expected = "x".join(map(str, self.network.image_shape))
        if array.ndim != 4 or array.shape[1:] != self.network.image_shape or not array.shape[0]:
            raise UsageError(
                f"the images have shape {list(array.shape)}; expected [batch, height, width,"
                f" channels] with at least one image of {expected}."
                f"{self._hint(array.shape)}"
            )
        if array.dtype == np.uint8:
            return array
        if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
            raise UsageError(
                f"the images have dtype {array.dtype}; expected uint8 from 0 to 255, or floats"
                " from 0 to 1."
            )
        if _is_traced(array):
            return array.astype(np.float32)
        least, most = float(array.min()), float(array.max())
        half = array.dtype.name == "bfloat16"
        step = 2**-7 if half else max(np.finfo(array.dtype).eps, np.finfo(np.float32).eps)
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


def _native(network: PackedProgram) -> Network | None:
    """Prepare a network for the native library; None if that was not built."""
    if shared.load() is None:
        return None
    try:
        return native_network(network.program)
    except ValueError as error:  # it has limits that files do not have, such as 8 axes
        raise UsageError(
            f"the native library cannot run its program: {error}. Use exact=True to run it by JAX."
        ) from error


def _is_of_jax(x: Any) -> bool:
    return "jax" in sys.modules and isinstance(x, sys.modules["jax"].Array)


def _is_traced(x: Any) -> bool:
    return "jax" in sys.modules and isinstance(x, sys.modules["jax"].core.Tracer)


def load_model(
    source: str | Path | bytes | BinaryIO, *, exact: bool = False, sha256: str | None = None
) -> PackedModel:
    """Read a model file; arguments and errors are those of `siman_jax.load`."""
    if isinstance(source, str | Path):
        name, trained = str(source), find_trained(source)
        if trained is not None:
            source, sha256 = trained.path, sha256 or trained.sha256
        network = read_model(source, sha256)
    else:
        name = "the model"
        data = source if isinstance(source, bytes) else source.read()
        try:
            network = decode_model(data, sha256)
        except UsageError as error:
            raise UsageError(f"the bytes are not a usable model file: {error}") from error
    try:
        return PackedModel(network, exact=exact)
    except UsageError as error:
        raise UsageError(f"{name} cannot be used to predict: {error}") from error
