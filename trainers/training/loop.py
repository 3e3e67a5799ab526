"""Trains a network on images, epoch by epoch; can be stopped anywhere and resumed.

The random numbers of a step depend on (seed, step) alone and batches on (seed, epoch), so a resumed
training equals an uninterrupted one: bit by bit on a CPU; on a GPU, fast kernels that add in
arbitrary order are allowed.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nag.cli import difference
from trainers.base import EvaluationError
from trainers.images import Loader, LoaderError
from trainers.training import parallel
from trainers.training.augment import Augmentation, Normalisation
from trainers.training.checkpoint import (
    NoCheckpointError,
    Saver,
    read_checkpoint,
    write_checkpoint,
)
from trainers.training.interrupts import uninterrupted
from trainers.training.recipe import Recipe

_STEPS_AHEAD = 32  # steps whose losses are read together, so that a GPU need not wait in between
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",  # from the driver, e.g. for the context of a process
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
_log = logging.getLogger(__name__)


class DivergedError(EvaluationError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Epoch:
    """The results of a training epoch.

    loss: mean over its training batches.
    accuracy: accuracy on held-out images after the epoch, a fraction.
    """

    epoch: int  # 1, 2, ...
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainingSet:
    """Loaders whose batches are on the device of the network, and their normalisation."""

    train: Loader
    held_out: Loader
    normalise: Normalisation


Backward = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]
"""(network, images (B, 3, R, R), labels (B,), share, seed) -> the loss; adds its gradient times
`share` to those of the parameters. `seed` is the same for all parts of a step's batch and in all
processes, so that draws from it yield gradients of the same parameters everywhere.
"""


def cross_entropy(smoothing: float) -> Backward:
    """Cross-entropy with smoothed labels (Szegedy et al., 2016), in float32.

    Autocast computes it in float32 on a CPU; on a GPU only from float32 logits.
    """

    def backward(
        network: nn.Module, images: Tensor, labels: Tensor, share: float, seed: int
    ) -> Tensor:
        loss = F.cross_entropy(network(images).float(), labels, label_smoothing=smoothing)
        (share * loss).backward()
        return loss.detach()

    return backward


class Training:
    """The full state of a training between two steps.

    parts: number of parts into which a batch is split to fit into memory; doubled when it does not
        fit. Batch norms see one part at a time.
    curve: the completed epochs.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        images: TrainingSet,
        seed: int,
        *,
        backward: Backward | None = None,
        measure: Callable[[nn.Module], float] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a training.

        backward, measure: by default cross-entropy and the accuracy on held-out images.
        identity: settings that identify its checkpoints; others are refused.
        """
        self.identity = json.dumps(identity, sort_keys=True) if identity else ""
        self.network, self.recipe, self.images, self.seed = network, recipe, images, seed
        self.device = next(network.parameters()).device
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as images
        self.optimizer = torch.optim.SGD(
            _groups(network, recipe),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
        )
        self.average = {k: v.clone() for k, v in network.state_dict().items()} if recipe.ema else {}
        self.step, self.parts = 0, 1
        self.curve: list[Epoch] = []
        self._augment = Augmentation(recipe, images.normalise, images.train.shard)
        self._backward = backward or cross_entropy(recipe.label_smoothing)
        self._measure = measure or (
            lambda network: accuracy(network, images.held_out, images.normalise)[0]
        )
        self._losses, self._seconds = 0.0, 0.0  # of the current epoch
        self._unread: list[Tensor] = []  # losses of its last steps, not yet in `_losses`

    def run(self, epochs: int, checkpoint: Path | None = None) -> Iterator[Epoch]:
        """Train until `epochs` epochs have ended, yielding each.

        Saves every five minutes, after each epoch, and on Ctrl-C. Raises DivergedError. If the
        checkpoint cannot be written, training continues without it.
        """
        saver = Saver(self.save, checkpoint)
        while len(self.curve) < epochs:
            try:
                self._epoch(saver)
                saver.save()
            except KeyboardInterrupt:  # between two steps, or while measuring accuracy
                with suppress(DivergedError):
                    saver.save()
                raise
            yield self.curve[-1]

    def _epoch(self, saver: Saver) -> None:
        """Train the rest of the current epoch."""
        number, steps = len(self.curve), self.images.train.steps
        started = perf_counter() - self._seconds
        for images, labels in self.images.train.epoch(number, self.step - number * steps):
            with uninterrupted():
                self._unread.append(self._one_step(images, labels))
                self.step += 1
                self._seconds = perf_counter() - started
            if len(self._unread) == _STEPS_AHEAD:
                self._read_losses()
            saver.save_if_due()
        self._read_losses()
        top1 = math.nan
        if parallel.rank() == 0:
            with self.averaged() as network:
                top1 = self._measure(network)
        self._seconds = perf_counter() - started
        with uninterrupted():
            self.curve.append(Epoch(number + 1, self._losses / steps, top1, self._seconds))
            self._losses, self._seconds = 0.0, 0.0

    def _read_losses(self) -> None:
        """Wait for the last steps and add up their losses; raises DivergedError."""
        with uninterrupted():
            values = [loss.item() for loss in self._unread]
            self._unread.clear()
            for value in values:
                if not math.isfinite(value):
                    raise DivergedError(f"the loss is {value} in epoch {len(self.curve) + 1}")
                self._losses += value

    def _one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take an optimizer step; returns the loss."""
        recipe = self.recipe
        loss = self._fitting_gradient(images, labels)
        parallel.average(self.network, loss)
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step / self.images.train.steps)
        self.optimizer.step()
        self._update_average()
        return loss

    def _fitting_gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """Set the gradient, in as many parts as the memory of any process requires; the loss."""
        while True:
            needed = self.parts
            try:
                loss = self._gradient(images, labels)
            except RuntimeError as error:
                if not out_of_memory(error) or len(images) < 4 * needed:
                    raise
                needed *= 2
            needed = parallel.largest(needed)
            if needed == self.parts:
                return loss
            self.parts = needed
            _log.warning("out of memory: batches are split into %d parts from now on", self.parts)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """Set the gradient of a batch, in parts; returns the loss."""
        recipe, seed = self.recipe, _mixed(self.seed, self.step)
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        self.network.train()
        total = torch.zeros((), device=self.device)
        dtype = recipe.dtype(self.device)
        x = self._augment(images)
        for part, truth in zip(
            x.tensor_split(self.parts), labels.tensor_split(self.parts), strict=True
        ):
            share = len(part) / len(x)
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                total += share * self._backward(self.network, part, truth, share, seed)
        return total

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.average:
            return
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        values = self.network.state_dict()
        real = [name for name, value in values.items() if value.is_floating_point()]
        averages = [self.average[name] for name in real]
        torch._foreach_lerp_(averages, [values[name] for name in real], 1 - decay)
        for name in values.keys() - set(real):  # num_batches_tracked of batch norms
            self.average[name].copy_(values[name])

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network, with its averaged weights in this block."""
        if not self.average:
            yield self.network
            return
        raw = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            with uninterrupted():
                self.network.load_state_dict(self.average)
            yield self.network
        finally:
            with uninterrupted():
                self.network.load_state_dict(raw)

    def save(self, path: Path) -> None:
        """Write a checkpoint; a failure is only a warning.

        At the end of the schedule, only the measured weights are kept. Raises DivergedError.
        """
        self._read_losses()
        if parallel.rank() > 0:
            return
        groups = {"network": self.network.state_dict(), "average": self.average}
        if len(self.curve) < self.recipe.epochs:
            momentum = self.optimizer.state_dict()["state"]
            groups["momentum"] = {str(i): of["momentum_buffer"] for i, of in momentum.items()}
        elif self.average:
            del groups["network"]
        record = {
            "identity": self.identity,
            "seed": self.seed,
            "step": self.step,
            "parts": self.parts,
            "losses": self._losses,
            "seconds": self._seconds,
            "curve": [asdict(epoch) for epoch in self.curve],
        }
        write_checkpoint(path, groups, record)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; raises NoCheckpointError."""
        groups, record = read_checkpoint(path, self.device)
        try:
            if (record["identity"], record["seed"]) != (self.identity, self.seed):
                begun, own = (json.loads(i or "{}") for i in (record["identity"], self.identity))
                begun["seed"], own["seed"] = record["seed"], self.seed
                raise NoCheckpointError(
                    f"{path} belongs to another training ({difference(begun, own)})"
                )
            for name, average in self.average.items():
                average.copy_(groups["average"][name])
            self.network.load_state_dict(groups.get("network", self.average))
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            momentum = {
                int(i): {"momentum_buffer": torch.empty_like(trained[int(i)]).copy_(buffer)}
                for i, buffer in groups.get("momentum", {}).items()
            }
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": momentum})
            self.step, self.parts = record["step"], record["parts"]
            self._losses, self._seconds, self._unread = record["losses"], record["seconds"], []
            self.curve = [Epoch(**epoch) for epoch in record["curve"]]
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise NoCheckpointError(f"{path}: {error}") from error


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Rate after `progress` epochs: linear warm-up, then half a cosine to zero at the end."""
    if recipe.by_epoch:
        progress = math.floor(progress)
    if progress < recipe.warm_up:
        return recipe.learning_rate * progress / recipe.warm_up
    done = (progress - recipe.warm_up) / (recipe.epochs - recipe.warm_up)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@torch.no_grad()
def accuracy(network: nn.Module, loader: Loader, normalise: Normalisation) -> tuple[float, float]:
    """Top-1 and top-5 accuracy, as fractions, of a network in evaluation mode."""
    network.eval()
    hits, seen = torch.zeros(2), 0
    for images, labels in loader.epoch(0):
        logits = network(normalise(images))
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([best[:, 0].sum(), best.sum()]).cpu()
        seen += len(labels)
    top1, top5 = (hits / seen).tolist()
    return top1, top5


def _groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with weight decay and, if there are any, those without."""
    decayed = [p for p in network.parameters() if recipe.decay_all or p.ndim > 1]
    others = [p for p in network.parameters() if not (recipe.decay_all or p.ndim > 1)]
    groups = [(decayed, recipe.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a class for this error if its own allocator for GPUs raises it."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


def of_the_machine(error: Exception) -> bool:
    """Whether the same work may succeed elsewhere: memory ran out, or an image loader died."""
    lacked = isinstance(error, RuntimeError) and out_of_memory(error)
    return lacked or isinstance(error, MemoryError | LoaderError)
