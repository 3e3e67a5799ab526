"""Three ways from an architecture to final weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nag.errors import UserError, counted
from nag.spaces import Architecture
from trainers.base import Measurement
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.evaluators.training import TrainingEvaluator
from trainers.training.augment import Normalisation
from trainers.training.loop import Epoch, Training
from trainers.training.recipe import Recipe
from trainers.training.task import ImageTask

_TRIED_ON = 32  # images on which exported files are tested

Progress = Callable[[int, Epoch], object]  # (seed, epoch)


@dataclass(frozen=True)
class Finished:
    """A network, its normalisation, and the result of each of its trainings.

    The weights are those of the first training.
    """

    network: nn.Module
    normalise: Normalisation
    measurements: tuple[Measurement, ...]


def train_anew(
    evaluator: TrainingEvaluator, arch: Architecture, seeds: int, folder: Path, progress: Progress
) -> Finished:
    """Train with each of the seeds 0, 1, ..., or resume from `folder`; raises DivergedError."""
    finished: Finished | None = None
    measurements = []
    for seed in range(seeds):
        apart = replace(evaluator, checkpoints=folder / f"seed-{seed}")
        found, training = apart.train(arch, seed, partial(progress, seed))
        measurements.append(found)
        finished = finished or _of(training, [])
    assert finished is not None
    return replace(finished, measurements=tuple(measurements))


def take_from_search(evaluator: TrainingEvaluator, arch: Architecture, folder: Path) -> Finished:
    """The network that a search trained and kept in `folder`; raises UserError if it did not."""
    kept = replace(evaluator, checkpoints=folder)
    training, checkpoint = kept.training(arch, seed=0)
    if len(training.curve) < kept.epochs:
        raise UserError(
            f"{checkpoint} holds no training of {counted(kept.epochs, 'epoch')} of "
            f"{kept.space.to_str(arch)}: omit --no-train to train it"
        )
    found, training = kept.train(arch, seed=0)
    return _of(training, [found])


def take_from_supernet(evaluator: SupernetEvaluator, arch: Architecture) -> Finished:
    """The network as it is in a supernet, but with its own batch norms."""
    found, network, normalise = evaluator.measure(arch)
    return Finished(network.cpu().eval(), normalise, (found,))


def _of(training: Training, measurements: list[Measurement]) -> Finished:
    with training.averaged() as network:
        weights = deepcopy(network).cpu().eval()
    normalise = training.images.normalise
    assert isinstance(normalise, Normalisation)
    return Finished(weights, normalise, tuple(measurements))


def some_images(task: ImageTask, recipe: Recipe) -> Tensor:
    """Up to 32 held-out images, (n, R, R, 3) uint8, on the CPU; a single one is repeated."""
    images, _ = next(task.held_out_images(replace(recipe, batch_size=_TRIED_ON)).epoch(0))
    pictures = images.cpu().permute(0, 2, 3, 1).contiguous()
    return pictures if len(pictures) > 1 else torch.cat([pictures, pictures])
