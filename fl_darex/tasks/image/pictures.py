"""One image: from bytes or a file to 8-bit RGB, and clear refusals."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_darex.errors import ConfigError
from fl_darex.tasks.sources import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

Encoded = Mapping[str, Any]
"""An image as ``datasets`` stores it: ``bytes``, or ``path`` where those are None."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def open_image(encoded: Encoded | None, origin: str) -> Image:
    """Return an image in mode RGB, turned as its camera says.

    Grey, palette and CMYK images are converted; transparency is dropped and the colour below it
    shows, as torchvision's loader does. 16-bit grey is scaled to 8 bits (Pillow alone would cut
    it off at 255). Of a film the first frame counts.

    Args:
        encoded: The image's bytes or path.
        origin: Where it comes from, for messages: a file or a row.

    Raises:
        ConfigError: If it is missing, is no image, is damaged, or has 32 bits per pixel.
    """
    from PIL import ImageOps

    opened = _open(encoded, origin)
    try:
        with opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in _SIXTEEN_BITS:
                image = _eight_bits(image)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert("RGB")
    except Exception as error:
        raise _unreadable(origin, error) from None


def check_images(images: Iterable[Encoded | None], origins: Iterable[str]) -> None:
    """Refuse what is no image, by its header; 30 microseconds each where it is in memory.

    Raises:
        ConfigError: For the first that is missing, is no image, or has 32 bits per pixel.
    """
    for encoded, origin in zip(images, origins, strict=True):
        _open(encoded, origin).close()


def _open(encoded: Encoded | None, origin: str) -> Image:
    from PIL import Image

    if not encoded or (encoded["bytes"] is None and not encoded["path"]):
        raise ConfigError(f"{origin}: there is no image; remove it")
    content = encoded["bytes"]
    try:
        opened = Image.open(encoded["path"] if content is None else io.BytesIO(content))
    except Exception as error:
        # Each of Pillow's formats fails in its own way.
        raise _unreadable(origin, error) from None
    if opened.mode in ("I", "F"):
        opened.close()
        raise ConfigError(
            f"{origin}: the image has 32 bits per pixel, whose range is not known; convert it to "
            "8 or 16 bits"
        )
    return opened


def _unreadable(origin: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or first_line(error)
    return ConfigError(f"{origin}: the image cannot be read: {reason}")


def _eight_bits(image: Image) -> Image:
    from PIL import Image as pillow

    grey = np.asarray(image).astype(np.float32) / 257
    return pillow.fromarray(grey.round().astype(np.uint8))
