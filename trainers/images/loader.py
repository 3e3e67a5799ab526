"""Batches of images, decoded on the fly in worker processes or taken from cached pixels.

A batch depends only on (seed, epoch, number of the batch), not on the workers or on whether the
epoch was resumed there. An image that cannot be decoded is replaced by the next good one of its
class, in order of names and among the indices; a warning names it once.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nag.errors import UserError, counted
from trainers.images.crops import DRAWS, Crop, crop_squares, shift
from trainers.images.decode import CorruptImageError, decode, resize
from trainers.images.parallel import cores
from trainers.images.pixels import Pixels, open_pixels, pixel_file, write_pixels
from trainers.images.sets import Split

_log = logging.getLogger(__name__)

MAX_WORKERS = 8  # by default
TIMEOUT = 300  # seconds for a batch; after that, its worker is assumed to hang
PREFETCH = 2  # batches per worker

S = TypeVar("S")
T = TypeVar("T")


class LoaderError(RuntimeError):
    """A process that decodes images has died or hung."""


class _Key(NamedTuple):
    """Identifies a batch, or part of one."""

    epoch: int
    number: int
    rows: np.ndarray  # (B,) images of the split
    places: range  # positions of these B in the whole batch


class _Batch(NamedTuple):
    images: Tensor  # (B, 3, R, R) uint8
    skipped: list[str]  # names of images that were replaced


class Loader:
    """Batches of some images of a split, cropped to R x R."""

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        *,
        batch_size: int,
        resolution: int,
        crop: Crop,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        workers: int | None = None,
        cache: Path | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """Set up; decoding starts with the first epoch.

        shard: (i, n) gives every n-th image of each batch, from the i-th on, so that n processes
            share a batch, with the same crops as in one process.

        workers: processes that decode; 0 means this one, None one per core, at most 8.
        cache: None decodes every image in every epoch. A folder keeps decoded pixels, which are
            written now if needed, in the size the crop requires. A single file from such a folder
            (pixels-*.npy) may have any size. Random crops are then parts of central squares.

        Raises UserError, and OSError if the cache cannot be written.
        """
        if batch_size < 1 or resolution < 1 or len(indices) < (batch_size if drop_last else 1):
            raise UserError(
                f"cannot make batches of {counted(batch_size, 'image')} of {resolution} x "
                f"{resolution} pixels from {counted(len(indices), 'image')}"
            )
        self.split, self.indices = split, np.asarray(indices, dtype=np.int64)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        whole, rest = divmod(len(indices), batch_size)
        self.steps = whole + (rest > 0 and not drop_last)
        self.device, self.shard = torch.device(device), shard
        self.workers = min(cores(), MAX_WORKERS) if workers is None else workers
        self._skipped: set[str] = set()
        self._keys: list[_Key] = []
        self._running: DataLoader | None = None
        self._epoch: object = None
        arguments = (split, self.indices, crop, resolution, seed)
        if cache is None:
            count = min(self.steps, PREFETCH * self.workers + 1)  # decoded ahead, and in use
            share = len(range(shard[0], min(batch_size, len(indices)), shard[1]))
            shape = (count, share, resolution, resolution, 3)
            slots = torch.empty(shape, dtype=torch.uint8)
            if self.workers:
                slots.share_memory_()
            self._make: _Stream | _Cached = _Stream(*arguments, slots)
        else:
            pixels = _pixels(split, cache, crop.cached_size(resolution), self.workers)
            self._make = _Cached(*arguments, pixels, self.device)
            self.workers = 0

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches start, start + 1, ... of an epoch: images (B, 3, R, R) uint8 and labels (B,).

        Beginning an epoch ends the previous one. Raises LoaderError if a worker dies or hangs.
        """
        order = self.indices
        if self.shuffle:
            order = np.random.default_rng([self.seed, number, 0]).permutation(order)
        first, step = self.shard
        keys = []
        for i in range(start, self.steps):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            keys.append(_Key(number, i, rows[first::step], range(first, len(rows), step)))
        self._epoch = epoch = object()
        for key, batch in zip(keys, self._batches(keys), strict=True):
            for name in batch.skipped:
                if name not in self._skipped:
                    self._skipped.add(name)
                    _log.warning("cannot decode %s: another image of its class replaces it", name)
            labels = torch.from_numpy(self.split.labels[key.rows])
            yield (
                batch.images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )
            if self._epoch is not epoch:
                raise RuntimeError("another epoch of this loader has begun")

    def _batches(self, keys: list[_Key]) -> Iterator[_Batch]:
        if isinstance(self._make, _Cached):
            for key, squares in zip(keys, _one_ahead(self._make.read, keys), strict=True):
                yield self._make.batch(key, squares)
            return
        self._keys[:] = keys
        found = map(self._make.__getitem__, keys) if self.workers == 0 else self._in_workers()
        for key, skipped in zip(keys, found, strict=True):
            if isinstance(skipped, UserError):
                raise skipped
            images = self._make.slot(key)
            on_gpu = self.device.type == "cuda"
            yield _Batch(images.pin_memory() if on_gpu else images.clone(), skipped)

    def _in_workers(self) -> Iterator[list[str] | UserError]:
        """The results of `_Stream` for the keys."""
        if self._running is None:
            self._running = DataLoader(
                cast(Dataset, self._make),
                batch_size=None,
                sampler=cast(Any, self._keys),
                num_workers=self.workers,
                prefetch_factor=PREFETCH,
                persistent_workers=True,
                timeout=TIMEOUT,
            )
        try:
            yield from self._running
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            self._running = None
            reason = str(error).splitlines()[0].strip()
            raise LoaderError(
                "a process that loads images has died or hangs; if memory is short, fewer than "
                f"{self.workers} may help ({reason})"
            ) from None


@dataclass(frozen=True, eq=False)
class _Stream:
    """Decodes batches into slots: memory shared by all processes and used in turn.

    Sending batches through a pipe or in their own shared memory would cost a tenth of decoding.
    """

    split: Split
    indices: np.ndarray
    crop: Crop
    resolution: int
    seed: int
    slots: Tensor  # (n, B, R, R, 3) uint8

    def slot(self, key: _Key) -> Tensor:
        """(B, 3, R, R): memory of a batch, until later batches have used all other slots."""
        slot = self.slots[key.number % len(self.slots), : len(key.rows)]
        return slot.permute(0, 3, 1, 2)

    def __getitem__(self, key: _Key) -> list[str] | UserError:
        """Decode a batch; returns the names of replaced images.

        Errors are returned, because one raised in a worker would arrive as a traceback.
        """
        images, draws = self.slot(key), _draws(self.seed, key)
        shifts: list[tuple[int, int]] = []
        skipped: list[str] = []
        try:
            for i, row in enumerate(key.rows.tolist()):
                pixels = self._decode(row, skipped)
                box = self.crop.box(pixels.shape[1], pixels.shape[0], draws[i])
                images[i] = resize(pixels, box.part, self.resolution)
                shifts.append(box.shift)
        except UserError as error:
            return error
        images.copy_(shift(images, torch.tensor(shifts)))
        return skipped

    def _decode(self, row: int, skipped: list[str]) -> np.ndarray:
        for other in chain([row], _spares(self.split, self.indices, row)):
            try:
                return decode(self.split.read(other))
            except CorruptImageError:
                skipped.append(str(self.split.names[other]))
            except OSError as error:
                name, reason = self.split.names[other], error.strerror or error
                raise UserError(f"cannot read {name}: {reason}") from None
        raise _none_left(self.split, row)


@dataclass(frozen=True, eq=False)
class _Cached:
    """Cuts a batch out of cached squares."""

    split: Split
    indices: np.ndarray
    crop: Crop
    resolution: int
    seed: int
    pixels: Pixels
    device: torch.device
    instead: dict[int, int] = field(default_factory=dict, init=False)  # of corrupt images

    def __post_init__(self) -> None:
        side, size = self.pixels.squares.shape[-1], self.resolution
        if side > 2 * size:
            fit = self.crop.cached_size(size)
            raise UserError(
                f"cached pixels of {side} x {side} are too large for {size} x {size}: "
                f"cache {fit} x {fit}"
            )
        corrupt = self.pixels.corrupt
        for row in corrupt & set(self.indices.tolist()):
            spares = _spares(self.split, self.indices, row)
            spare = next((other for other in spares if other not in corrupt), None)
            if spare is None:
                raise _none_left(self.split, row)
            self.instead[row] = spare

    def read(self, key: _Key) -> Tensor:
        """(B, 3, S, S) uint8 squares of a batch, for a GPU in pinned memory."""
        used = [self.instead.get(row, row) for row in key.rows.tolist()]
        squares = torch.from_numpy(np.asarray(self.pixels.squares[used]))
        if self.device.type != "cuda":
            return squares
        with torch.cuda.device(self.device):  # a thread would default to the first GPU
            return squares.pin_memory()

    def batch(self, key: _Key, squares: Tensor) -> _Batch:
        """Cut a batch out of squares from `read`."""
        rows, side = key.rows.tolist(), squares.shape[-1]
        skipped = [str(self.split.names[row]) for row in rows if row in self.instead]
        boxes = [self.crop.box(side, side, draws) for draws in _draws(self.seed, key)]
        squares = squares.to(self.device, non_blocking=True)
        images = crop_squares(squares, torch.tensor([box.part for box in boxes]), self.resolution)
        images = shift(images, torch.tensor([box.shift for box in boxes]))
        return _Batch(images, skipped)


def _one_ahead(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield function(item) in turn; a thread computes the next one while one is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[T] | None = None
        for item in items:
            ready, coming = coming, thread.submit(function, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _spares(split: Split, indices: np.ndarray, row: int) -> Iterator[int]:
    """Other images of the same class among the indices, beginning with the next."""
    same = np.sort(indices[split.labels[indices] == split.labels[row]])
    after = int(np.searchsorted(same, row, side="right"))
    yield from (other for other in np.roll(same, -after).tolist() if other != row)


def _draws(seed: int, key: _Key) -> np.ndarray:
    """(B, DRAWS) uniform random numbers for crops, by position in the batch."""
    rng = np.random.default_rng([seed, key.epoch, 1 + key.number])
    return rng.random((key.places.stop, DRAWS))[key.places]


def _pixels(split: Split, cache: Path, size: int, workers: int) -> Pixels:
    if cache.suffix == ".npy":
        return open_pixels(cache, split)
    path = pixel_file(cache, split, size)
    if not path.exists():
        write_pixels(split, size, cache, max(1, workers))
    return open_pixels(path, split)


def _none_left(split: Split, row: int) -> UserError:
    name = split.classes[split.labels[row]]
    return UserError(f"no image of class {name} can be decoded")
