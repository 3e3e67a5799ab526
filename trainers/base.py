"""Evaluators: architecture -> measurement. This is the expensive part of a search."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from nag.errors import UserError
from nag.spaces import Architecture

LOW_EPOCHS, FULL_EPOCHS = 12, 200  # the fidelities of NAS-Bench-201


class EvaluationError(Exception):
    """The architecture itself cannot be evaluated; retrying would not help."""


@dataclass(frozen=True)
class Measurement:
    """The result of one evaluation."""

    value: float  # the objective, larger is better; an accuracy is a fraction in [0, 1]
    metrics: Mapping[str, float] = field(default_factory=dict)  # e.g. macs, params, test
    seconds: float = 0.0  # cost of the evaluation
    curve: Sequence[float] = ()  # the objective after each epoch of training, if there was one
    device: str = ""  # the device on which the metric `latency` was measured, if it was


class Evaluator(Protocol):
    """Built once in each worker process; never pickled."""

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """Evaluate one architecture; raises EvaluationError if that is impossible."""
        ...


@runtime_checkable
class MultiFidelityEvaluator(Evaluator, Protocol):
    """An evaluator that can also train for fewer epochs."""

    def at(self, epochs: int) -> Evaluator:
        """The same evaluator with `epochs` epochs; raises UserError if it has none.

        `epochs` is out of FULL_EPOCHS; if a full training has another length, it is scaled in
        proportion. Repeated calls are cheap.
        """
        ...


@runtime_checkable
class TrainingInSteps(Evaluator, Protocol):
    """An evaluator whose trainings can be watched and stopped early."""

    @property
    def epochs(self) -> int:
        """Epochs of a full training."""
        ...

    def epoch_by_epoch(self, arch: Architecture, *, seed: int) -> Iterator[Measurement]:
        """Yield a measurement after every epoch still to be trained; the last one is complete.

        `evaluate` returns that last one. To stop the training, stop iterating.
        """
        ...


@runtime_checkable
class BenchmarkEvaluator(Evaluator, Protocol):
    """An evaluator that knows the best possible value."""

    @property
    def optimum(self) -> float:
        """The largest value over all architectures."""
        ...


def in_steps(evaluator: Evaluator) -> TrainingInSteps:
    """`evaluator`, checked to train in steps; raises UserError if it does not."""
    if not isinstance(evaluator, TrainingInSteps):
        raise UserError(
            "this evaluator has no training that could be stopped early: choose --evaluator train"
        )
    return evaluator


def at_epochs(evaluator: Evaluator, epochs: int | None) -> Evaluator:
    """`evaluator` at `epochs` epochs; raises UserError. None means full fidelity."""
    if epochs is None:
        return evaluator
    if not isinstance(evaluator, MultiFidelityEvaluator):
        raise UserError(
            f"this evaluator has no accuracies after {epochs} epochs: choose --evaluator train, or "
            "a benchmark table that has them"
        )
    return evaluator.at(epochs)
