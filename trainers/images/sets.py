"""Image sets: classes, and splits of labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nag.errors import UserError
from trainers.images.index import FILE, Listing, load, prepared_folder
from trainers.images.scan import scan
from trainers.images.sources import Some, Source, open_source, texts


@dataclass(frozen=True)
class Split:
    """Labelled images, sorted by name."""

    classes: tuple[str, ...]
    labels: np.ndarray  # (n,) int64, indices into classes
    names: np.ndarray  # (n,) str, unique, independent of the location of the data
    source: Source

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Digest of the names: equal for the same images."""
        return blake2b("\n".join(self.names.tolist()).encode(), digest_size=16).hexdigest()

    @cached_property
    def orders(self) -> dict[str, np.ndarray]:
        """Cache of `trainers.images.splits`: ranking a million names takes a second."""
        return {}

    def read(self, i: int) -> bytes:
        """The encoded image i; raises OSError."""
        return self.source.read(i)

    def part(self, rows: np.ndarray) -> "Split":
        """A subset of the images, in their order here."""
        rows = np.sort(rows)
        return Split(self.classes, self.labels[rows], self.names[rows], Some(self.source, rows))


@dataclass(frozen=True)
class Images:
    """A data set of images."""

    path: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Split]  # "train", "val", or one of them
    prepared: Path  # folder of its index and, by default, of pixel caches; may not exist

    def split(self, name: str) -> Split:
        """The split called `name`; raises UserError if there is none."""
        if name not in self.splits:
            raise UserError(f"{self.path} has no split {name}: it has {', '.join(self.splits)}")
        return self.splits[name]


def open_images(path: Path) -> Images:
    """Open a data set; raises UserError in one line.

    path: as for `scan`, or a folder made by `python -m trainers.prepare DATA --out`. If DATA was
        prepared, its index is read instead of scanning it, and images found to be corrupt are
        left out.
    """
    if (path / FILE).is_file():
        return build_images(load(path), path)
    beside = prepared_folder(path)
    if (beside / FILE).is_file():
        return build_images(load(beside, path), beside)
    return build_images(scan(path), beside)


def build_images(listing: Listing, prepared: Path) -> Images:
    """The data set of a listing; raises UserError if classes and splits do not fit."""
    good = listing.good
    if not len(good):
        raise UserError(f"{listing.root}: no image can be read")
    if len(listing.classes) < 2:
        raise UserError(
            f"{listing.root} has only one class, {listing.classes[0]}: at least two are needed"
        )
    splits = {}
    for name in ("train", "val"):
        pictures = good.filter(pc.equal(good["split"], name))
        if not pc.any(pc.equal(listing.pictures["split"], name)).as_py():
            continue
        missing = set(listing.classes) - set(pc.unique(pictures["class"]).to_pylist())
        if missing:
            raise UserError(_missing(listing, name, sorted(missing)))
        labels = pc.index_in(pictures["class"], pa.array(listing.classes)).to_numpy()
        splits[name] = Split(
            listing.classes,
            labels.astype(np.int64),
            texts(pictures["name"]),
            open_source(listing, pictures),
        )
    return Images(listing.root, listing.classes, splits, prepared)


def _missing(listing: Listing, split: str, classes: Sequence[str]) -> str:
    """Explain why a split has no image of some classes."""
    there = pc.equal(listing.pictures["split"], split)
    known = set(listing.pictures.filter(there)["class"].to_pylist())
    if corrupt := [name for name in classes if name in known]:
        return f"{listing.root}: every image in {split} of class {_some(corrupt)} is corrupt"
    other = "val" if split == "train" else "train"
    return f"{listing.root}: {split} lacks class {_some(classes)}, which {other} has"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
