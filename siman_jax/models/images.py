"""The images that a network is made for, which a checkpoint of its weights does not tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from siman_jax.errors import UsageError

Network = TypeVar("Network", bound=Callable[..., Any])


@dataclass(frozen=True)
class Images:
    """Size and normalization of a network's images.

    Attributes:
      size: height and width in pixels.
      mean: of each channel of pixels from 0 to 1.
      std: standard deviation, likewise.
      shorter_side: pixels that evaluation scales an image's shorter side to before it crops the
        centre; None where images have the network's size.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int | None = None

    def of_size(self, size: int) -> "Images":
        """The same, of another size; the shorter side grows with it.

        >>> IMAGENET.of_size(112).shorter_side
        128
        """
        side = self.shorter_side
        return replace(
            self, size=size, shorter_side=None if side is None else round(size * side / self.size)
        )


IMAGENET = Images(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), shorter_side=256)
CIFAR10 = Images(32, IMAGENET.mean, IMAGENET.std)  # the authors normalize both alike
CIFAR100 = Images(32, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276))


def made_for(
    images: Images, others: Mapping[int, Images] | None = None
) -> Callable[[Network], Network]:
    """Tell which images a network is made for, as a decorator of the function that builds it.

    Args:
      images: those that it takes by default.
      others: by the number of classes, where that makes a difference.

    >>> @made_for(Images(size=64, mean=(0.5,), std=(0.25,)))
    ... def small(num_classes): ...
    >>> default_images(small, 10).size
    64
    """

    def mark(network: Network) -> Network:
        network.made_for = lambda classes: (others or {}).get(classes, images)  # type: ignore[attr-defined]
        return network

    return mark


def default_images(network: Callable[..., Any], num_classes: int) -> Images:
    """Images that a network is made for, where it has so many classes.

    Args:
      network: the function that builds it, such as a value of `models.MODELS`.
      num_classes: width of its classifier.

    Raises:
      UsageError: the function does not tell, see `made_for`.
    """
    if not hasattr(network, "made_for"):
        raise UsageError(
            f"{network.__name__} does not tell the size and normalization of its images. Give them"
            " here, or decorate the function with siman_jax.models.images.made_for."
        )
    return network.made_for(num_classes)
