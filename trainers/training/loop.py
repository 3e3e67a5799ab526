"""Training a network on images, epoch by epoch; stopped anywhere, it continues where it was.

A step draws its random numbers from (seed, step) alone and batches come from (seed, epoch), so a
training that was resumed equals one that was not: bit by bit on a CPU, while kernels of a GPU that
add in any order are left to be fast.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

_STEPS_AHEAD = 32  # steps whose losses are asked for together: a GPU never waits for the next one
_log = logging.getLogger(__name__)


class DivergedError(EvaluationError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training came to.

    loss: mean over its training batches.
    accuracy: of the network on held-out images afterwards; a fraction.
    """

    epoch: int  # 1, 2, ...
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainingSet:
    """Loaders whose batches are on the device of the network, and how to normalise them."""

    train: Loader
    held_out: Loader
    normalise: Normalisation


Backward = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]
"""(network, images (B, 3, R, R), labels (B,), share, seed) -> the loss, whose gradient times
`share` it adds to those of the parameters. `seed` is that of the step, the same for all parts of
its batch and in all processes: what is drawn from it has all give gradients of the same parameters.
"""


def cross_entropy(smoothing: float) -> Backward:
    """With smoothed labels (Szegedy et al., 2016)."""

    def backward(
        network: nn.Module, images: Tensor, labels: Tensor, share: float, seed: int
    ) -> Tensor:
        loss = F.cross_entropy(network(images), labels, label_smoothing=smoothing)
        (share * loss).backward()
        return loss.detach()

    return backward


class Training:
    """All that a training is, between two steps.

    parts: into which a batch is split so that it fits into memory; doubled when it does not. Batch
        norms see one part at a time.
    curve: the epochs that have ended.
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
        identity: str = "",
    ) -> None:
        """Begin.

        backward, measure: by default cross-entropy and the accuracy on held-out images.
        identity: of checkpoints; others are refused.
        """
        self.identity = identity
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
        self._losses, self._seconds = 0.0, 0.0  # of the epoch that is under way
        self._unread: list[Tensor] = []  # losses of its last steps, not in `_losses` yet

    def run(self, epochs: int, checkpoint: Path | None = None) -> Iterator[Epoch]:
        """Train until so many epochs have ended, yielding each.

        Saved is every five minutes, after each epoch, and on Ctrl-C. Raises DivergedError. Where
        the checkpoint cannot be written, training goes on without.
        """
        saver = Saver(self.save, checkpoint)
        while len(self.curve) < epochs:
            try:
                self._epoch(saver)
                saver.save()
            except KeyboardInterrupt:  # between two steps, or while accuracy is measured
                with suppress(DivergedError):
                    saver.save()
                raise
            yield self.curve[-1]

    def _epoch(self, saver: Saver) -> None:
        """What is left of the epoch that is under way."""
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
        """A step of the optimizer: its loss."""
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
        """That of a batch, in as many parts as memory needs in any of the processes: its loss."""
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
            _log.warning("out of memory: batches are trained in %d parts from here", self.parts)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """Sets the gradient of a batch, in parts: its loss."""
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
        for name in values.keys() - set(real):  # numbers of batches that norms have seen
            self.average[name].copy_(values[name])

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network, with its averaged weights for as long as this lasts."""
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
        """Write a checkpoint; one that cannot be written is a warning.

        At the end of the schedule only the weights that are measured are kept. Raises
        DivergedError.
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
                raise NoCheckpointError(f"{path} is of another training: {record['identity']}")
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
    """After so many epochs: linear warm-up, then half a cosine to zero at the last epoch."""
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
    """Parameters with weight decay and, unless all have it, those without."""
    decayed = [p for p in network.parameters() if recipe.decay_all or p.ndim > 1]
    others = [p for p in network.parameters() if not (recipe.decay_all or p.ndim > 1)]
    groups = [(decayed, recipe.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a class for it on GPUs, and only words on CPUs."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def of_the_machine(error: Exception) -> bool:
    """Whether the same work may succeed elsewhere: memory was short, or a loader of images died."""
    lacked = isinstance(error, RuntimeError) and out_of_memory(error)
    return lacked or isinstance(error, MemoryError | LoaderError)
