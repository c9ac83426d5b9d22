"""Images to predict: which files are meant, and their pixels as evaluation would have seen them."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from siman_jax.data.dataset import DamagedImage
from siman_jax.data.decode import evaluation_image
from siman_jax.data.image_folder import EXTENSIONS
from siman_jax.data.whole_image import WrongSize, whole_image
from siman_jax.errors import UsageError

STANDARD_INPUT = "-"


def list_images(names: Sequence[str]) -> list[str]:
    """Files that `names` stand for.

    Args:
      names: files, whatever their extension; folders, for all jpg, jpeg and png files in them and
        below, sorted; or "-", for one encoded image on standard input.

    Raises:
      UsageError: one is not there, a folder holds no image, or "-" occurs twice.
    """
    if list(names).count(STANDARD_INPUT) > 1:
        raise UsageError("standard input (-) holds one image; name it once.")
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT or path.is_file():
            found.append(name)
        elif path.is_dir():
            inside = [
                str(file)
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in EXTENSIONS and file.is_file()
            ]
            if not inside:
                raise UsageError(f"the folder {name} holds no jpg, jpeg or png files.")
            found.extend(inside)
        else:
            raise UsageError(f"there is no file or folder {name}.")
    return found


def read_pixels(
    name: str, image_shape: tuple[int, int, int], *, shorter_side: int | None, resize: bool
) -> np.ndarray:
    """Read one image the way that evaluation prepares it.

    Args:
      name: file, or "-" for standard input.
      image_shape: height, width and channels of the network's images; height and width are equal.
      shorter_side: what to scale the shorter side to, before the central crop; None for images
        that are taken whole.
      resize: of images taken whole, whether to scale and crop those of another size.

    Returns:
      uint8 `image_shape`.

    Raises:
      DamagedImage: it cannot be read or decoded, or has another size; the message says why.
    """
    size, _, channels = image_shape
    try:
        data = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
        if shorter_side is not None:
            return evaluation_image(data, size=size, resize=shorter_side, channels=channels)
        return whole_image(data, size=size, channels=channels, resize=resize)
    except DamagedImage:
        raise
    except WrongSize as error:
        raise DamagedImage(f"{error}; --resize scales and crops to fit") from error
    except UnidentifiedImageError as error:  # its text has an address of memory
        raise DamagedImage("cannot be decoded: it is no image that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedImage(f"cannot be read: {error}") from error
