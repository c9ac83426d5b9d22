"""Images to predict: find the files, and prepare their pixels as evaluation does."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from siman_jax.data.dataset import DamagedImage
from siman_jax.data.decode import WrongSize, evaluation_image, whole_image
from siman_jax.data.formats import EXTENSIONS
from siman_jax.data.frames import has_more_frames, say_first_frame
from siman_jax.data.listing import images_below, warn_of_left_out
from siman_jax.data.pixels import PixelRules
from siman_jax.errors import UsageError

STANDARD_INPUT = "-"


def list_images(names: Sequence[str]) -> list[str]:
    """List the image files that a user named.

    Args:
      names: files with any extension; folders, which stand for all images in them and their
        subfolders, sorted; or "-", one encoded image on standard input. A warning says what is
        left out of a folder.

    Raises:
      UsageError: a file or folder does not exist, a folder contains no image, or "-" occurs twice.
    """
    if list(names).count(STANDARD_INPUT) > 1:
        raise UsageError("- (standard input) is named more than once; it holds a single image.")
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT or (path.exists() and not path.is_dir()):
            found.append(name)  # a file, or a pipe
        elif path.is_dir():
            found.extend(_images_of(path))
        elif path.is_symlink():
            raise UsageError(f"{name} is a broken link.")
        else:
            raise UsageError(f"there is no file or folder {name}.")
    return found


def _images_of(folder: Path) -> list[str]:
    left_out: Counter[str] = Counter()
    images = sorted(images_below(folder, left_out), key=lambda name: Path(name).parts)
    warn_of_left_out(folder, left_out)
    if not images:
        raise UsageError(
            f"the folder {folder} holds no images; names of images end in {' '.join(EXTENSIONS)}."
        )
    return images


def read_pixels(
    name: str, rules: PixelRules, *, size: int, shorter_side: int | None, resize: bool
) -> np.ndarray:
    """Read one image and prepare it as evaluation does.

    Args:
      name: file, or "-" for standard input.
      rules: how to decode.
      size: height and width of the network's images.
      shorter_side: length of the shorter side after scaling, before the central crop; None to use
        whole images.
      resize: whether to scale and crop whole images of another size.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DamagedImage: it cannot be read or decoded, or has another size; the message says why.
    """
    try:
        data = _standard_input() if name == STANDARD_INPUT else Path(name).read_bytes()
        if shorter_side is not None:
            pixels = evaluation_image(data, rules=rules, size=size, resize=shorter_side)
        else:
            pixels = whole_image(data, rules=rules, size=size, resize=resize)
    except WrongSize as error:
        raise DamagedImage(f"{error}; --resize scales and crops to fit") from error
    except OSError as error:
        raise DamagedImage(f"cannot be read: {error}") from error
    if has_more_frames(data):
        say_first_frame(name)
    return pixels


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise DamagedImage("cannot be read: standard input is closed")
    return sys.stdin.buffer.read()
