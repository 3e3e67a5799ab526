"""From encoded images to pixels, always RGB.

Greyscale, palette, CMYK and transparent images become RGB; the EXIF orientation is ignored, as in
torchvision. If simplejpeg is installed, it decodes JPEG faster, with the same pixels; Pillow
handles whatever simplejpeg rejects.
"""

from io import BytesIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

try:
    import simplejpeg
except ImportError:  # an extra
    simplejpeg = None

_JPEG = b"\xff\xd8"


class CorruptImageError(ValueError):
    """The bytes are not a complete image."""


def decode(data: bytes) -> np.ndarray:
    """(height, width, 3) uint8; raises CorruptImageError, also for a truncated image."""
    if not data:
        raise CorruptImageError("empty file")
    if simplejpeg is not None and data.startswith(_JPEG):
        try:
            return simplejpeg.decode_jpeg(data)  # raises for anything libjpeg warns about
        except ValueError:
            pass
    try:
        with Image.open(BytesIO(data)) as image:
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its message has an address in memory
        raise CorruptImageError("cannot identify the image format") from None
    except Exception as error:  # Pillow's decoders raise errors of all kinds
        raise CorruptImageError(str(error) or type(error).__name__) from None


def resize(pixels: np.ndarray, box: tuple[int, int, int, int], size: int) -> Tensor:
    """The box (left, top, width, height) of an image as (3, size, size) uint8.

    Bilinear and antialiased, like Pillow; identical except for the last bit.
    """
    left, top, width, height = box
    part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    images = torch.from_numpy(part)[None].permute(0, 3, 1, 2)  # channels last: twice as fast
    if (width, height) != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images[0]
