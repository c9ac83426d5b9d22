"""Files with several images, such as animations: the first image is used, with one warning."""

import io
import logging
import threading

from PIL import Image

from siman_jax.data.formats import FORMATS

_said = threading.Event()
_log = logging.getLogger(__name__)


def has_more_frames(data: bytes) -> bool:
    """Whether a file contains more than one image; it must be decodable."""
    if data.startswith(b"\xff\xd8"):  # further images in a JPEG are previews or depth maps
        return False
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damage behind the first image does not matter
        return False


def say_first_frame(name: str) -> None:
    """Warn, once per process, that only the first image of a file is used."""
    if not _said.is_set():
        _said.set()
        _log.warning("%s holds several images; the first is used, here and in other files", name)
