"""A classification task: a folder of images, split three ways, at one resolution."""

import hashlib
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from cyclopts import Parameter
from torch import nn

from nag.cli import WholeNumber, section
from nag.devices import resolve_device
from nag.errors import UserError
from nag.spaces import SearchSpace
from nag.spaces.nasbench201 import NASBENCH201
from trainers.cost import Task
from trainers.images import (
    Crop,
    Loader,
    Split,
    default_cache,
    fraction,
    hold_out,
    open_images,
)
from trainers.latency.timing import latency
from trainers.training import parallel
from trainers.training.augment import Normalisation
from trainers.training.loop import TrainingSet, accuracy
from trainers.training.recipe import Precision, Recipe

Fidelity = Literal["epochs", "images", "resolution"]

LEAST_RESOLUTION = 8
_MOST_HELD_OUT = 10_000
_FOR_STATISTICS = 2_000  # images
_statistics: dict[tuple[Path, str, int, Crop], Normalisation] = {}  # found in this process
_SPLIT_SEED = 0  # of every run: no supernet is ever searched on images that it was trained on


@Parameter(name="*", group=section("Where it runs"))
@dataclass(frozen=True)
class Machine:
    """Where the work is done; this does not affect results, except for the last bits.

    Parameters
    ----------
    device
        Device of networks: cpu, cuda, cuda:N, or auto, a GPU if this process sees one. With auto
        and cuda, processes that train together each get their own GPU.
    workers
        Processes that decode images; by default one per core, at most 8.
    cache
        Folder for decoded images; used if all images, or those that networks are measured on, are
        already there or fit into a quarter of the memory. By default next to the data.
    """

    device: str = "auto"
    workers: Annotated[WholeNumber | None, Parameter(name="--image-workers")] = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UserError("--image-workers must not be negative")


@Parameter(name="*", group=section("Where it runs"))
@dataclass(frozen=True)
class Place(Machine):
    """Where networks of a search are trained and measured.

    Parameters
    ----------
    checkpoints
        Folder that keeps trainings, so that interrupted ones can be continued. By default none are
        kept, but by trainers.finalize in OUT/checkpoints.
    """

    checkpoints: Path | None = None


@Parameter(name="*", group=section("Images and networks"))
@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What networks are trained and measured on.

    Parameters
    ----------
    data
        Images: a folder with train/CLASS/ and val/CLASS/, tar files of one, or a parquet file.
    resolution
        Side of the images as networks see them, in pixels; by default 224, or 32 for nasbench201.
    held_out
        Number of training images, the same share of each class, held out to measure the objective;
        by default a fifth, at most 10,000. Accuracy on val is only reported.
    train_fraction
        Fraction of the other training images to use.
    """

    data: Path | None = None
    resolution: WholeNumber | None = None
    held_out: WholeNumber | None = None
    train_fraction: float = 1.0


@Parameter(name="*", group=section("Images and networks"))
@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ImageOptions):
    """How networks are trained or get weights, for the evaluators supernet and train.

    Parameters
    ----------
    weights
        Supernet: an official once-for-all checkpoint (ofa_mbv3_d234_e346_k357_w1.0, or w1.2), or
        one made by trainers.train_supernet, whose resolution is then the default.
    width
        Multiplier of the channels of mobilenetv3 networks that are trained from scratch, by default
        1.0; with weights it is that of the supernet.
    recipe
        Training recipe: nasbench201, transfer, imagenet or small; by default nasbench201 for that
        space, else transfer with weights and imagenet without.
    epochs
        Epochs of a full training, instead of the recipe's.
    precision
        Precision of matrix products in training, instead of the recipe's: auto means bfloat16 on a
        GPU that has it (Ampere or newer). On CPUs that support it, bfloat16 also makes nasbench201
        convolutions twice as fast.
    fidelity
        What short trainings, in methods that use them, reduce. A training with fewer epochs
        continues if it is among the best; one with fewer images or a lower resolution starts over.
    calibration
        Number of training images for calibrating the batch norms of a subnet.
    latency_batch
        Also measure the latency of every network, in ms, where it is evaluated, for batches of
        this many images; by default it is not measured.
    """

    weights: Path | None = None
    width: float | None = None
    recipe: str | None = None
    epochs: WholeNumber | None = None
    precision: Precision | None = None
    fidelity: Fidelity = "epochs"
    calibration: WholeNumber = 2_000
    latency_batch: WholeNumber | None = None


class Known(NamedTuple):
    """What is known about images once they are opened: their digest and number of classes."""

    digest: str
    classes: int


@cache
def known_of_images(data: Path) -> Known:
    """`Known` for images, which are opened once per process; raises UserError."""
    images = open_images(data)
    return Known(_digest(images.splits), len(images.classes))


def digest_of_images(data: Path) -> str:
    """Equal for the same images in the same classes; raises UserError."""
    return known_of_images(data).digest


def _digest(splits: Mapping[str, Split]) -> str:
    digest = hashlib.sha256()
    for name, split in sorted(splits.items()):
        digest.update(f"{name} {split.classes}".encode())
        digest.update("\n".join(split.names).encode() + split.labels.tobytes())
    return digest.hexdigest()


def task_of(options: ImageOptions, space: SearchSpace, width: float = 1.0) -> Task:
    """The `Task` of networks for an `ImageTask`, without one; raises UserError."""
    return Task(known_of_images(_data(options)).classes, _resolution(options, space), width)


def _data(options: ImageOptions) -> Path:
    if options.data is None:
        raise UserError("images are required: --data, a folder with train/ and val/")
    return options.data


def _resolution(options: ImageOptions, space: SearchSpace) -> int:
    by_default = 32 if space.name == NASBENCH201.name else 224
    resolution = by_default if options.resolution is None else options.resolution
    if resolution < LEAST_RESOLUTION:
        raise UserError(f"--resolution must be at least {LEAST_RESOLUTION}")
    return resolution


class ImageTask:
    """The images of a task; raises UserError if they are unsuitable.

    classes: names, in the order of the labels.
    train, held_out: indices into the training images.
    """

    def __init__(self, options: ImageOptions, space: SearchSpace, place: Machine) -> None:
        self.path = _data(options)
        if options.held_out is not None and options.held_out < 1:
            raise UserError("--held-out must be at least 1")
        if not 0 < options.train_fraction <= 1:
            raise UserError("--train-fraction must be more than 0 and at most 1")
        self.resolution = _resolution(options, space)
        self._images = open_images(self.path)
        self._split = self._images.split("train")
        count = options.held_out or min(len(self._split) // 5, _MOST_HELD_OUT)
        rest, self.held_out = hold_out(self._split, count, _SPLIT_SEED)
        self.train = fraction(self._split, rest, options.train_fraction, _SPLIT_SEED)
        self.place, self.device = place, resolve_device(place.device)

    def with_all_images(self) -> "ImageTask":
        """The same, but also trains on held-out images, whose accuracy then means nothing."""
        task = copy(self)
        task.train = np.sort(np.concatenate([self.train, self.held_out]))
        return task

    def with_fraction(self, share: float) -> "ImageTask":
        """The same with only a fraction `share` of the training images of each class."""
        task = copy(self)
        task.train = fraction(self._split, self.train, share, _SPLIT_SEED)
        return task

    def at_resolution(self, resolution: int) -> "ImageTask":
        """The same with images of another resolution."""
        task = copy(self)
        task.resolution = resolution
        return task

    @property
    def identity(self) -> str:
        """Equal for the same images, split in the same way, at the same resolution."""
        parts = (self.digest, len(self.train), len(self.held_out), self.resolution)
        return "-".join(map(str, parts))

    @property
    def digest(self) -> str:
        return digest_of_images(self.path)

    @property
    def train_digest(self) -> str:
        """Equal for the same images in train (including held-out ones), whatever val holds."""
        return _digest({"train": self._split})

    def unseen_by(self, made: Mapping[str, Any]) -> bool | None:
        """Whether a supernet made like this has seen no held-out images; None if unknown."""
        if made.get("images") != self.digest and made.get("train_images") != self.train_digest:
            return None
        return bool(made["held_out"] >= len(self.held_out))

    @property
    def has_test(self) -> bool:
        """Whether there are images for reporting only."""
        return "val" in self._images.splits

    @property
    def classes(self) -> tuple[str, ...]:
        return self._images.classes

    def network_task(self, width: float = 1.0) -> Task:
        """The `Task` of its networks, for their cost."""
        return Task(len(self.classes), self.resolution, width)

    def training_set(self, recipe: Recipe, seed: int) -> TrainingSet:
        """The images for a training with this seed."""
        return TrainingSet(
            train=self._mixed(
                self.train,
                recipe.batch_size,
                recipe.crop,
                seed,
                shard=(parallel.rank(), parallel.world()),
            ),
            held_out=self.held_out_images(recipe),
            normalise=self.normalisation(recipe),
        )

    def held_out_images(self, recipe: Recipe) -> Loader:
        return self._loader(self._split, self.held_out, recipe.batch_size, recipe.centre)

    def _test_images(self, recipe: Recipe) -> Loader | None:
        split = self._images.splits.get("val")
        if split is None:
            return None
        everything = np.arange(len(split))
        return self._loader(split, everything, recipe.batch_size, recipe.centre)

    def reported(
        self, network: nn.Module, recipe: Recipe, normalise: Normalisation
    ) -> dict[str, float]:
        """Accuracy on the images of val, `test` and `test_top5`; nothing if there are none."""
        images = self._test_images(recipe)
        if images is None:
            return {}
        return dict(zip(("test", "test_top5"), accuracy(network, images, normalise), strict=True))

    def latency(self, network: nn.Module, batch_size: int | None) -> tuple[dict[str, float], str]:
        """`latency` at the task's resolution, in ms, and its device; empty without `batch_size`."""
        if batch_size is None:
            return {}, ""
        ms, device = latency(
            network, batch_size=batch_size, resolution=self.resolution, device=self.device
        )
        return {"latency": ms}, device

    def training_images(self, recipe: Recipe, count: int) -> Loader:
        """About `count` training images in shuffled batches, cropped as for measurements."""
        few = self.with_fraction(min(1.0, count / len(self.train))).train
        return self._mixed(few, recipe.batch_size, recipe.centre, seed=0)

    def normalisation(self, recipe: Recipe) -> Normalisation:
        """As in the recipe; statistics of training images are computed once per process."""
        if recipe.statistics == "imagenet":
            return Normalisation()
        key = (self.path, self.identity, recipe.batch_size, recipe.centre)
        if key not in _statistics:
            images = self.training_images(recipe, _FOR_STATISTICS)
            _statistics[key] = Normalisation.of(x for x, _ in images.epoch(0))
        return _statistics[key]

    def _mixed(
        self,
        indices: np.ndarray,
        batch_size: int,
        crop: Crop,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ) -> Loader:
        """Training images in random order, in whole batches if there are enough for one."""
        return self._loader(
            self._split,
            indices,
            batch_size,
            crop,
            seed=seed,
            shuffle=True,
            drop_last=len(indices) > batch_size,
            shard=shard,
        )

    def _loader(
        self,
        split: Split,
        indices: np.ndarray,
        batch_size: int,
        crop: Crop,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> Loader:
        where = self.place.cache
        cache = default_cache(self._images, split, crop, self.resolution, where)
        if cache is None and crop.scale is None:
            # All images do not fit into memory; those that every network is measured on may fit.
            split, indices = split.part(indices), np.arange(len(indices))
            cache = default_cache(self._images, split, crop, self.resolution, where)
        return Loader(
            split,
            indices,
            batch_size=batch_size,
            resolution=self.resolution,
            crop=crop,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            device=self.device,
            workers=self.place.workers,
            cache=cache,
            shard=shard,
        )
