"""Parts of a split, by class and by name.

Images of a class are ranked by a hash of seed and name. So a part does not depend on the order
of files, other classes or the number of files, and a smaller part is a subset of a larger one.
"""

from hashlib import blake2b
from heapq import heappop, heappush

import numpy as np

from nag.errors import UserError, counted
from trainers.images.sets import Split


def hold_out(split: Split, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out images, the same fraction of each class: (rest, held out), sorted indices.

    Raises UserError if a class would be left without an image.
    """
    sizes = np.bincount(split.labels, minlength=len(split.classes))
    taken = _apportion(sizes, count)
    for name, size, some in zip(split.classes, sizes, taken, strict=True):
        if some >= size:
            raise UserError(
                f"cannot hold out {some} of the {counted(int(size), 'image')} of class {name}"
            )
    held = _first(split, np.arange(len(split)), taken, f"hold out {seed}")
    return np.setdiff1d(np.arange(len(split)), held, assume_unique=True), held


def fraction(split: Split, indices: np.ndarray, f: float, seed: int) -> np.ndarray:
    """A fraction of the images `indices` in each class, at least one; sorted indices.

    Smaller fractions with the same seed are subsets of larger ones.
    """
    if not 0 < f <= 1:
        raise UserError(f"a fraction must lie in (0, 1], not {f}")
    sizes = np.bincount(split.labels[indices], minlength=len(split.classes))
    taken = np.maximum(np.floor(f * sizes + 0.5).astype(np.int64), np.minimum(sizes, 1))
    return _first(split, indices, taken, f"fraction {seed}")


def _first(split: Split, indices: np.ndarray, taken: np.ndarray, salt: str) -> np.ndarray:
    """The first taken[c] images of each class c in the order of their hashes."""
    among = np.zeros(len(split), dtype=bool)
    among[indices] = True
    order = _order(split, salt)
    order = order[among[order]]
    labels = split.labels[order]
    within = np.arange(len(order)) - np.searchsorted(labels, np.arange(len(taken)))[labels]
    return np.sort(order[within < taken[labels]])


def _order(split: Split, salt: str) -> np.ndarray:
    """(n,) all images by class, then by hash; cached in the split."""
    if salt not in split.orders:
        key = salt.encode()
        hashes = [blake2b(n.encode(), digest_size=8, key=key).digest() for n in split.names]
        ranks = np.array(hashes, dtype="S8").view(">u8")
        split.orders[salt] = np.lexsort((ranks, split.labels))
    return split.orders[salt]


def _apportion(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many of `count` images come from each class: its share, rounded down or up.

    Places are assigned one by one, so that a smaller count is a prefix of a larger one. The k-th
    image of a class with share f of all images is due between places (k - 1) / f and k / f. Of
    the classes eligible for a place, the one with the earliest deadline gets it (Tijdeman, "The
    chairman assignment problem", 1980).
    """
    total = int(sizes.sum())
    if not 0 < count < total:
        raise UserError(f"cannot hold out {count} of {counted(total, 'image')}")
    taken = [0] * len(sizes)
    later = [(0, label, size) for label, size in enumerate(sizes.tolist()) if size]  # by release
    due: list[tuple[int, int, int]] = []  # by deadline
    for place in range(count):
        while later and later[0][0] <= place:
            _, label, size = heappop(later)
            heappush(due, (-(-(taken[label] + 1) * total // size), label, size))
        _, label, size = heappop(due)
        taken[label] += 1
        heappush(later, (taken[label] * total // size, label, size))
    return np.array(taken)
