"""An evaluator that trains every network: from scratch, or from the weights of a supernet."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from nag.errors import UserError
from nag.spaces import Architecture, SearchSpace
from nag.spaces.mobilenetv3 import MOBILENETV3
from trainers.base import FULL_EPOCHS, Measurement
from trainers.cells import CellNetwork
from trainers.cost import cost
from trainers.ofa import Supernet, build_network
from trainers.training.augment import Augmentation, Normalisation
from trainers.training.checkpoint import NoCheckpointError, seed_of
from trainers.training.loop import Epoch, Training
from trainers.training.recipe import Recipe
from trainers.training.task import LEAST_RESOLUTION, Fidelity, ImageTask

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingEvaluator:
    """The value is the accuracy on held-out images after the last epoch.

    Metrics: those of `ImageTask.reported`, the `loss` of the last epoch, `macs` and `params`.

    supernet: source of the initial weights; `origin` identifies it.
    width: multiplier of the channels, that of the supernet if there is one.
    epochs: number to train, out of those in the recipe's schedule.
    latency_batch: batch size at which `latency` is measured; None if it is not measured.
    fidelity: what a cheaper training has less of.
    checkpoints: folder for unfinished trainings, so that one that was interrupted, or had fewer
        epochs, continues where it ended; a finished one leaves its weights.
    """

    space: SearchSpace
    task: ImageTask
    recipe: Recipe
    epochs: int
    supernet: Supernet | None = None
    origin: str = ""
    width: float = 1.0
    latency_batch: int | None = None
    fidelity: Fidelity = "epochs"
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epochs <= self.recipe.epochs:
            raise UserError(f"epochs must be 1 to {self.recipe.epochs}, not {self.epochs}")
        if self.supernet is not None and self.space.name != MOBILENETV3.name:
            raise UserError(f"there are no supernets for the space {self.space.name}")
        Augmentation(self.recipe, Normalisation())  # raises UserError if a package is missing

    def at(self, epochs: int) -> "TrainingEvaluator":
        """An evaluator with epochs / FULL_EPOCHS of the cost.

        If `fidelity` is epochs, it trains the beginning of the same training.
        """
        share = epochs / FULL_EPOCHS
        if self.fidelity == "images":
            return replace(self, task=self.task.with_fraction(share))
        if self.fidelity == "resolution":
            side = 8 * round(math.sqrt(share) * self.task.resolution / 8)
            return replace(self, task=self.task.at_resolution(max(LEAST_RESOLUTION, side)))
        return replace(self, epochs=max(1, round(share * self.recipe.epochs)))

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """Train one network, or continue its training; raises DivergedError.

        seed: for a new training.
        """
        return self.train(arch, seed)[0]

    def train(
        self,
        arch: Architecture,
        seed: int,
        progress: Callable[[Epoch], object] = lambda epoch: None,
    ) -> tuple[Measurement, Training]:
        """The result of `evaluate`, and the finished training; raises DivergedError.

        progress: called after each epoch.
        """
        training, checkpoint = self.training(arch, seed)
        for epoch in training.run(self.epochs, checkpoint):
            progress(epoch)
        return self._at_the_end(arch, training), training

    def epoch_by_epoch(self, arch: Architecture, *, seed: int) -> Iterator[Measurement]:
        """The measurement after every epoch still to be trained; only the last has `test`."""
        training, checkpoint = self.training(arch, seed)
        while len(training.curve) < self.epochs - 1:
            next(training.run(self.epochs, checkpoint))
            yield self._so_far(arch, training)
        for _ in training.run(self.epochs, checkpoint):
            pass
        yield self._at_the_end(arch, training)

    def _so_far(self, arch: Architecture, training: Training) -> Measurement:
        return Measurement(
            training.curve[-1].accuracy,
            {
                **cost(arch, self.task.network_task(self.width)),
                "loss": training.curve[-1].loss,
            },
            seconds=sum(epoch.seconds for epoch in training.curve),
            curve=tuple(epoch.accuracy for epoch in training.curve),
        )

    def _at_the_end(self, arch: Architecture, training: Training) -> Measurement:
        """Add what is reported on the images of val, and the latency."""
        started = perf_counter()
        with training.averaged() as network:
            reported = self.task.reported(network, self.recipe, training.images.normalise)
            timed, device = self.task.latency(network, self.latency_batch)
        found = self._so_far(arch, training)
        seconds = found.seconds + perf_counter() - started
        metrics = {**found.metrics, **reported, **timed}
        return replace(found, metrics=metrics, seconds=seconds, device=device)

    def training(self, arch: Architecture, seed: int) -> tuple[Training, Path | None]:
        """The training of a network, as far as it has come, and its checkpoint."""
        if self.checkpoints is None:
            return self._begin(arch, seed), None
        checkpoint = self.checkpoints / f"{self._name(arch)}.safetensors"
        if not checkpoint.exists():
            return self._begin(arch, seed), checkpoint
        begun = seed_of(checkpoint)
        training = self._begin(arch, seed if begun is None else begun)
        try:
            training.load(checkpoint)
        except NoCheckpointError as error:  # damaged
            _log.warning("restarting the training from scratch: %s", error)
            training = self._begin(arch, seed)
        return training, checkpoint

    def _begin(self, arch: Architecture, seed: int) -> Training:
        torch.manual_seed(seed)
        network = self._network(arch).to(self.task.device)
        return Training(network, self.recipe, self.task.training_set(self.recipe, seed), seed)

    def _name(self, arch: Architecture) -> str:
        """Name of the checkpoint: equal only for the same training, whatever its seed.

        So a training begun in one trial can continue in another.
        """
        record = [self.space.to_str(arch), asdict(self.recipe), self.task.identity]
        text = json.dumps([*record, self.origin, self.width], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def _network(self, arch: Architecture) -> nn.Module:
        if self.space.name != MOBILENETV3.name:
            return CellNetwork(arch, len(self.task.classes))
        dropout = {"dropout": self.recipe.dropout, "drop_path": self.recipe.drop_path}
        if self.supernet is None:
            classes = len(self.task.classes)
            return build_network(arch, num_classes=classes, width=self.width, **dropout)
        return self.supernet.extract(arch, num_classes=len(self.task.classes), **dropout)
