"""A network and its input, and the type of a loaded network; this module runs on Python 3.10."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """A network and its input.

    Attributes:
      network: key of `siman_jax.models.MODELS`.
      image_size: height and width of the images.
      num_classes: width of the classifier.
      width: channels of the first stage.
    """

    network: str
    image_size: int
    num_classes: int
    width: int


# Function from normalized images to logits.
Run = Callable[[Any], Any]
