"""Decoded images in a memory-mapped file: the central square of each, S x S pixels."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nag.errors import UserError
from nag.files import aside, write_text
from trainers.images.crops import DRAWS, Crop
from trainers.images.decode import CorruptImageError, decode, resize
from trainers.images.parallel import in_processes
from trainers.images.sets import Images, Split

LOCK = "pixels.lock"
_SQUARE = Crop.center(1)


@dataclass(frozen=True)
class Pixels:
    """Squares of the images of a split."""

    squares: np.memmap  # (n, 3, S, S) uint8, read-only; black for corrupt images
    corrupt: frozenset[int]


def pixel_file(folder: Path, split: Split, size: int) -> Path:
    """Path of the squares of a split in a folder."""
    return folder / f"pixels-{size}-{split.digest[:12]}.npy"


def open_pixels(path: Path, split: Split) -> Pixels:
    """Squares from `write_pixels`; UserError if they are not of this split."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        squares = np.load(path, mmap_mode="r")
        digest, corrupt = about["names"], frozenset(about["corrupt"])
    except FileNotFoundError as error:
        raise UserError(f"no such pixel cache: {error.filename}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a pixel cache") from None
    if digest != split.digest or len(squares) != len(split):
        raise UserError(f"{path} holds the pixels of other images")
    return Pixels(squares, corrupt)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keep other processes from writing or removing pixel files of a folder; waits for them.

    Yields False at once on a filesystem without locks.
    """
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        try:
            yield alone
        finally:
            if alone:
                fcntl.flock(file, fcntl.LOCK_UN)  # else forked processes would keep the lock


def write_pixels(
    split: Split,
    size: int,
    folder: Path,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda more: None,
) -> Path:
    """Decode a split into its pixel file atomically, unless it exists.

    If several processes need it at the same time, one decodes and the others wait.

    progress: called with the number of images newly done. Raises OSError if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = pixel_file(folder, split, size)
    with locked(folder) as alone:
        if path.exists():
            return path
        for left in folder.glob(f"{path.name}.*.tmp") if alone else ():  # by a killed process
            left.unlink()
        _write(split, size, path, workers, progress)
    return path


def _write(
    split: Split, size: int, path: Path, workers: int | None, progress: Callable[[int], object]
) -> None:
    corrupt: list[int] = []
    with aside(path) as temporary:
        shape = (len(split), 3, size, size)
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(temporary)
        work = partial(_write_rows, split, size, temporary)
        for rows, bad in in_processes(work, len(split), workers):
            corrupt += bad
            progress(len(rows))
        about = {"names": split.digest, "corrupt": sorted(corrupt)}
        write_text(path.with_suffix(".json"), json.dumps(about))


def default_cache(
    images: Images, split: Split, crop: Crop, resolution: int, folder: Path | None = None
) -> Path | None:
    """The folder to cache a split's pixels in; None if it is better to decode every time.

    An existing cache is used. Otherwise pixels are cached if they take less than a quarter of the
    memory: in `folder`, or without one beside the data if that is writable.
    """
    size = crop.cached_size(resolution)
    for kept in (folder, images.prepared):
        if kept is not None and pixel_file(kept, split, size).exists():
            return kept
    if 4 * 3 * size**2 * len(split) >= _memory():
        return None
    beside = images.prepared if images.prepared.exists() else images.prepared.parent
    return folder or (images.prepared if os.access(beside, os.W_OK) else None)


def _write_rows(split: Split, size: int, path: Path, rows: np.ndarray) -> list[int]:
    """Decode some images into the file; returns the corrupt ones."""
    squares, corrupt = np.load(path, mmap_mode="r+"), []
    for row in rows.tolist():
        try:
            pixels = decode(split.read(row))
        except CorruptImageError:
            corrupt.append(row)
            continue
        box = _SQUARE.box(pixels.shape[1], pixels.shape[0], np.zeros(DRAWS))
        squares[row] = resize(pixels, box.part, size).numpy()
    return corrupt


def _reserve(path: Path) -> None:
    """Reserve disk space now: writing to a mapped file on a full disk kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path.parent)) from None


def _memory() -> float:
    """Memory of the machine or the container, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total
