"""Checks every image of a data set: which are corrupt, and which are in both splits."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nag.errors import UserError, counted, one_line
from trainers.images.decode import CorruptImageError, decode
from trainers.images.index import Listing
from trainers.images.parallel import in_processes
from trainers.images.sources import Source, open_source

IMAGENET_CLASSES, IMAGENET_TRAIN, IMAGENET_VAL = 1000, 1_281_167, 50


@dataclass(frozen=True)
class Found:
    """The result of checking every image."""

    listing: Listing  # with the columns bytes, width, height and error
    leaks: list[tuple[str, str]]  # an image in val, and one in train with the same bytes


def look_at_all(
    listing: Listing,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda more: None,
) -> Found:
    """Read and decode every image; progress is called with the number newly done.

    Raises OSError if an image cannot be read at all.
    """
    n = len(listing.pictures)
    sizes = np.zeros((n, 3), dtype=np.int64)
    digests = np.zeros(n, dtype="V16")
    errors: list[str | None] = [None] * n
    source = open_source(listing, listing.pictures)
    for rows, looks in in_processes(partial(_look, source), n, workers):
        for row, (digest, size, error) in zip(rows.tolist(), looks, strict=True):
            sizes[row], digests[row], errors[row] = size, np.void(digest), error
        progress(len(rows))
    columns = {
        "bytes": pa.array(sizes[:, 0]),
        "width": pa.array(sizes[:, 1]),
        "height": pa.array(sizes[:, 2]),
        "error": pa.array(errors, pa.string()),
    }
    return Found(listing.with_columns(columns), _leaks(listing, digests, errors))


def _look(source: Source, rows: np.ndarray) -> list[tuple[bytes, tuple[int, int, int], str | None]]:
    """Digest, (bytes, width, height) and error of each image."""
    looks = []
    for row in rows.tolist():
        data = source.read(row)
        width = height = 0
        error = None
        try:
            height, width = decode(data).shape[:2]
        except CorruptImageError as corrupt:
            error = one_line(corrupt)
        looks.append((blake2b(data, digest_size=16).digest(), (len(data), width, height), error))
    return looks


def _leaks(
    listing: Listing, digests: np.ndarray, errors: list[str | None]
) -> list[tuple[str, str]]:
    names = listing.pictures["name"].to_pylist()
    splits = listing.pictures["split"].to_pylist()
    good = [i for i, error in enumerate(errors) if error is None]
    trained = {digests[i].tobytes(): names[i] for i in reversed(good) if splits[i] == "train"}
    return [
        (names[i], other)
        for i in good
        if splits[i] == "val" and (other := trained.get(digests[i].tobytes())) is not None
    ]


def check_imagenet(listing: Listing) -> None:
    """Raise UserError, in one line, unless these are the images of ImageNet-1K."""
    pictures, wrong = listing.pictures, []
    odd = [name for name in listing.classes if not re.fullmatch(r"n\d{8}", name)]
    if odd:
        wrong.append(
            f"{counted(len(odd), 'class folder is', 'class folders are')} not named n followed by "
            f"eight digits, such as {odd[0]}"
        )
    if len(listing.classes) != IMAGENET_CLASSES:
        found = counted(len(listing.classes), "class", "classes")
        wrong.append(f"{found} instead of {IMAGENET_CLASSES:,}")
    val = pictures.filter(pc.equal(pictures["split"], "val"))
    train = len(pictures) - len(val)
    if train != IMAGENET_TRAIN:
        wrong.append(f"{counted(train, 'image')} in train instead of {IMAGENET_TRAIN:,}")
    counts = dict.fromkeys(listing.classes, 0)
    counts |= {pair["values"]: pair["counts"] for pair in pc.value_counts(val["class"]).to_pylist()}
    uneven = [name for name, count in counts.items() if count != IMAGENET_VAL]
    if uneven:
        wrong.append(
            f"{counted(len(uneven), 'class does', 'classes do')} not have {IMAGENET_VAL} images "
            "in val, such as "
            f"{uneven[0]} with {counts[uneven[0]]}"
        )
    if wrong:
        raise UserError(f"{listing.root} is not ImageNet-1K: {'; '.join(wrong)}")
