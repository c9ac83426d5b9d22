"""Files of several images, such as animations: the first one is taken, which is said once."""

import io
import logging
import threading

from PIL import Image

from siman_jax.data.listing import FORMATS

_said = threading.Event()
_log = logging.getLogger(__name__)


def has_more_frames(data: bytes) -> bool:
    """Whether an image file that can be decoded holds more than one image."""
    if data.startswith(b"\xff\xd8"):  # a second image in a JPEG is a preview or a depth map
        return False
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # whatever is odd behind the first image
        return False


def say_first_frame(name: str) -> None:
    """Say of the first such file of this process that only its first image is taken."""
    if not _said.is_set():
        _said.set()
        _log.warning("%s holds several images; of it and others like it the first is taken", name)
