"""The list of images in a data set, which a scan finds and `trainers.prepare` keeps."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nag.errors import UserError
from nag.files import write_bytes

FILE = "pictures.parquet"
VERSION = 1
SPLITS = {"train": ("train",), "val": ("val", "validation", "test")}  # the first that exists


@dataclass(frozen=True)
class Listing:
    """Every image of a data set, sorted by name.

    pictures has the columns name (unique), split ("train" or "val"), class, and the location of the
    bytes: `row` in a parquet file; `archive` (a path inside root), `offset` and `size` in tars; for
    files, the name. Results of `trainers.prepare` are in the columns bytes, width, height and error
    (null for a good image).
    """

    kind: str  # folder, tar or parquet
    root: Path
    classes: tuple[str, ...]
    pictures: pa.Table
    watched: tuple[str, ...]  # folders and files in root whose modification times reveal changes
    newest: int  # latest of those times when the scan began, in ns

    @property
    def good(self) -> pa.Table:
        """The images not known to be corrupt."""
        if "error" not in self.pictures.column_names:
            return self.pictures
        return self.pictures.filter(self.pictures["error"].is_null())

    def with_columns(self, columns: Mapping[str, pa.Array]) -> "Listing":
        """The same with further columns."""
        pictures = self.pictures
        for name, column in columns.items():
            pictures = pictures.append_column(name, column)
        return replace(self, pictures=pictures)


def prepared_folder(data: Path) -> Path:
    """Folder of the index beside a data set."""
    return data / ".prepared" if data.is_dir() else data.with_name(f"{data.name}.prepared")


def used_splits(exists: Callable[[str], bool]) -> dict[str, str]:
    """The names by which a data set calls train and val, and which of the two each is."""
    found = {split: next(filter(exists, names), None) for split, names in SPLITS.items()}
    return {name: split for split, name in found.items() if name is not None}


def split_folders(root: Path) -> dict[str, str]:
    """`used_splits` of the folders in `root`."""
    return used_splits(lambda name: (root / name).is_dir())


def newest(root: Path, watched: tuple[str, ...]) -> int:
    """The latest modification time of anything watched, in ns."""
    return max(os.stat(root / name).st_mtime_ns for name in watched)


def save(listing: Listing, folder: Path) -> None:
    """Write a listing atomically, so that an index is never incomplete; raises OSError."""
    about = {
        "version": VERSION,
        "kind": listing.kind,
        "root": str(listing.root.resolve()),
        "classes": listing.classes,
        "watched": listing.watched,
        "newest": listing.newest,
    }
    table = listing.pictures.replace_schema_metadata({b"images": json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(folder / FILE, sink.getvalue().to_pybytes())


def load(folder: Path, root: Path | None = None) -> Listing:
    """The listing kept in a folder, for data at `root`, by default their original location.

    Raises UserError if it is not an index or the data have changed since.
    """
    path = folder / FILE
    try:
        table = pq.read_table(path)
        about: dict[str, Any] = json.loads((table.schema.metadata or {})[b"images"])
    except (KeyError, ValueError, OSError):
        raise UserError(f"{path} is not an index of images") from None
    data = root or Path(about["root"])
    again = f"run python -m trainers.prepare {data} again"
    if about["version"] != VERSION:
        raise UserError(f"{path} has another format version: {again}")
    watched = tuple(about["watched"])
    try:
        changed = newest(data, watched) > about["newest"]
    except OSError as error:
        raise UserError(
            f"{data} has changed since it was prepared: {error.filename}: {error.strerror}"
        ) from None
    if data.is_dir():
        now = {*split_folders(data)} or {path.name for path in data.glob("*.tar")}
        changed |= now != {name for name in watched if "/" not in name}
    if changed:
        raise UserError(f"{data} has changed since it was prepared: {again}")
    return Listing(
        about["kind"], data, tuple(about["classes"]), table, watched, int(about["newest"])
    )
