"""Image sets: opening, checking, splitting and loading them."""

from trainers.images.crops import Crop
from trainers.images.loader import Loader, LoaderError
from trainers.images.pixels import default_cache
from trainers.images.sets import Images, Split, open_images
from trainers.images.splits import fraction, hold_out

__all__ = [
    "Crop",
    "Images",
    "Loader",
    "LoaderError",
    "Split",
    "default_cache",
    "fraction",
    "hold_out",
    "open_images",
]
