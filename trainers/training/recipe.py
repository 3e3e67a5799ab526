"""Recipes, by name, for training networks on images."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from nag.errors import UserError, choose
from trainers.base import FULL_EPOCHS
from trainers.images import Crop

Policy = Literal["none", "autoaugment-cifar10", "randaugment"]
Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stochastic gradient descent with momentum, a cosine schedule and augmentation.

    epochs: length of a full training and of the schedule.
    learning_rate: peak of the schedule, which ends at zero.
    warm_up: epochs of linear increase from zero.
    by_epoch: keep the learning rate constant within each epoch, at its initial value there.
    decay_all: also apply weight decay to biases and batch norms.
    clip: maximum gradient norm; 0 means no limit.
    ema: decay per step of the averaged weights that are evaluated; 0 evaluates the last weights.
    drop_path: rate at which images skip a block; block i of n, counted from 0, has i / n of it.
    crop, flip, policy, cutout: augmentation; cutout is the side of a square, in pixels.
    centre: crop of the images on which accuracy is measured.
    statistics: mean and standard deviation for normalisation: those of ImageNet, or of the training
        images themselves.
    precision: of matrix products; weights and sums stay float32. auto: bfloat16 on a GPU that
        computes in it (from Ampere on; older ones only emulate it, slower than float32).
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    decay_all: bool = True
    warm_up: float = 0.0
    by_epoch: bool = False
    label_smoothing: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    crop: Crop = Crop.random_resized()
    centre: Crop = Crop.center()
    flip: bool = True
    policy: Policy = "none"
    cutout: int = 0
    statistics: Literal["imagenet", "data"] = "imagenet"
    precision: Precision = "auto"

    def dtype(self, device: torch.device) -> torch.dtype:
        """Type of matrix products on `device`."""
        if self.precision == "auto":
            fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
            return torch.bfloat16 if fast else torch.float32
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


_BY_EPOCH = 12
_RECIPES = (
    # Dong & Yang, ICLR 2020, table 1: behind every accuracy of the benchmark.
    Recipe(
        name="nasbench201",
        epochs=FULL_EPOCHS,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=5e-4,
        by_epoch=True,
        crop=Crop.shifted(padding=4),
        centre=Crop.center(ratio=1.0),
        statistics="data",
        precision="float32",
    ),
    # An et al., ICLR 2024, appendix: transfer from supernet weights to another data set.
    Recipe(
        name="transfer",
        epochs=20,
        batch_size=96,
        learning_rate=0.01,
        nesterov=False,
        weight_decay=4e-5,
        clip=5.0,
        dropout=0.2,
        drop_path=0.2,
        crop=Crop.center(ratio=1.0),
        centre=Crop.center(ratio=1.0),
        policy="autoaugment-cifar10",
        cutout=16,
        statistics="data",
    ),
    # Cai et al., ICLR 2020, appendix A, for one GPU's share of the batch.
    Recipe(
        name="imagenet",
        epochs=180,
        batch_size=256,
        learning_rate=0.325,
        weight_decay=3e-5,
        decay_all=False,
        warm_up=5.0,
        label_smoothing=0.1,
        ema=0.9999,
        dropout=0.1,
        policy="randaugment",
    ),
    # For thousands of small images, on a CPU or one GPU.
    Recipe(
        name="small",
        epochs=30,
        batch_size=64,
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_all=False,
        warm_up=2.0,
        label_smoothing=0.1,
        clip=5.0,
        crop=Crop.random_resized(scale=(0.35, 1.0)),
        centre=Crop.center(ratio=1.0),
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


def find_recipe(name: str, epochs: int | None = None, precision: Precision | None = None) -> Recipe:
    """The recipe called `name`, with other epochs or precision; raises UserError.

    Short trainings also end at a rate near zero: the warm-up takes at most a fifth of the epochs,
    and the rate is constant per epoch only with 12 or more, the shortest in NAS-Bench-201.
    """
    recipe = RECIPES[choose("recipe", name, RECIPES)]
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs must be at least 1, not {epochs}")
    epochs = epochs or recipe.epochs
    return replace(
        recipe,
        epochs=epochs,
        warm_up=min(recipe.warm_up, epochs / 5),
        by_epoch=recipe.by_epoch and epochs >= _BY_EPOCH,
        precision=precision or recipe.precision,
    )
