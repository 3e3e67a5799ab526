"""An evaluator that extracts every network from a supernet, with the weights it has there."""

from dataclasses import dataclass, replace
from time import perf_counter

from torch import nn
from torch.optim.swa_utils import update_bn

from nag.errors import UserError
from nag.spaces import Architecture
from trainers.base import Measurement
from trainers.cost import cost
from trainers.ofa import Supernet
from trainers.training.augment import Normalisation
from trainers.training.loop import accuracy
from trainers.training.recipe import Recipe
from trainers.training.task import ImageTask

_BATCH = 128  # fixed, however the supernet was trained: calibration depends on the batch size


@dataclass(frozen=True)
class SupernetEvaluator:
    """The value is the accuracy on held-out images, without any training.

    Batch norms are calibrated first, because each subnet has its own activation statistics
    (once-for-all, section 3). Metrics: those of `ImageTask.reported`, `macs` and `params`.

    calibration: number of training images for this.
    latency_batch: batch size at which `latency` is measured; None if it is not measured.
    """

    task: ImageTask
    recipe: Recipe
    supernet: Supernet
    calibration: int = 2_000
    latency_batch: int | None = None

    def __post_init__(self) -> None:
        if self.calibration < 1:
            raise UserError("--calibration must be at least 1")

    @property
    def width(self) -> float:
        """Width multiplier of its networks."""
        return self.supernet.width

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """The result does not depend on `seed`."""
        return self.measure(arch)[0]

    def measure(self, arch: Architecture) -> tuple[Measurement, nn.Module, Normalisation]:
        """The result of `evaluate`, the network in evaluation mode, and its normalisation."""
        started, task = perf_counter(), self.task
        value, network, normalise = self._calibrated(arch)
        metrics = cost(arch, task.network_task(self.width))
        metrics |= task.reported(network, self._recipe, normalise)
        timed, device = task.latency(network, self.latency_batch)
        seconds = perf_counter() - started
        found = Measurement(value, metrics | timed, seconds=seconds, device=device)
        return found, network, normalise

    def held_out_accuracy(self, arch: Architecture) -> float:
        """Only the value of `evaluate`."""
        return self._calibrated(arch)[0]

    @property
    def _recipe(self) -> Recipe:
        return replace(self.recipe, batch_size=_BATCH)

    def _calibrated(self, arch: Architecture) -> tuple[float, nn.Module, Normalisation]:
        """The accuracy on held-out images, the calibrated network, and its normalisation."""
        task, recipe = self.task, self._recipe
        normalise = task.normalisation(recipe)
        network = self.supernet.extract(arch).to(task.device)
        images = task.training_images(recipe, self.calibration)
        update_bn((normalise(x) for x, _ in images.epoch(0)), network)
        value, _ = accuracy(network, task.held_out_images(recipe), normalise)
        return value, network, normalise
