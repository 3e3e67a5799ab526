"""Sources of the bytes of images: any image can be read at any time, in any process."""

import os
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nag.errors import UserError
from trainers.images.index import Listing


class Source(Protocol):
    """Images by index; can be pickled and forked."""

    def read(self, i: int) -> bytes:
        """The bytes of image i; raises OSError."""
        ...


@dataclass(frozen=True)
class Files:
    """One file per image."""

    root: Path
    names: np.ndarray  # (n,) str, paths inside root

    def read(self, i: int) -> bytes:
        with open(f"{self.root}/{self.names[i]}", "rb", buffering=0) as file:
            return file.read()


@dataclass(frozen=True)
class TarMembers:
    """Members of tar archives."""

    archives: tuple[Path, ...]
    archive: np.ndarray  # (n,) index of the archive
    offset: np.ndarray  # (n,) bytes
    size: np.ndarray  # (n,) bytes

    def read(self, i: int) -> bytes:
        path, size = self.archives[self.archive[i]], int(self.size[i])
        data = os.pread(_opened(path).fileno(), size, int(self.offset[i]))
        if len(data) < size:
            raise OSError(None, "the archive is truncated", str(path))
        return data


@lru_cache(maxsize=64)
def _opened(path: Path) -> FileIO:
    """An archive, open for the life of the process; safe to fork, since pread keeps no position."""
    return open(path, "rb", buffering=0)


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a column in a parquet file, kept in memory."""

    column: pa.LargeBinaryArray

    def read(self, i: int) -> bytes:
        return self.column[i].as_py()


@dataclass(frozen=True)
class Some:
    """A subset of another source."""

    source: Source
    rows: np.ndarray  # (n,) indices into that source

    def read(self, i: int) -> bytes:
        return self.source.read(int(self.rows[i]))


def open_source(listing: Listing, pictures: pa.Table) -> Source:
    """The source of some of a listing's images; raises UserError."""
    root = listing.root
    if listing.kind == "folder":
        return Files(root, texts(pictures["name"]))
    if listing.kind == "parquet":
        try:
            column = pq.read_table(root, columns=["jpeg"])["jpeg"]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(f"cannot read {root}: {error}") from None
        try:
            jpegs = column.cast(pa.large_binary())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(f"{root}: column jpeg holds {column.type}, not bytes") from None
        return ParquetRows(jpegs.take(pictures["row"]).combine_chunks())
    archive = pc.index_in(pictures["archive"], pa.array(listing.watched)).to_numpy()
    offset, size = (pictures[name].to_numpy() for name in ("offset", "size"))
    return TarMembers(tuple(root / name for name in listing.watched), archive, offset, size)


def texts(column: pa.ChunkedArray) -> np.ndarray:
    """A column of strings as a compact array, without a Python object for each."""
    return np.array(column.to_pylist(), dtype=np.dtypes.StringDType())
