"""Evaluators: architecture -> measurement. The one thing the search pays for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from nag.errors import UserError
from nag.spaces import Architecture

LOW_EPOCHS, FULL_EPOCHS = 12, 200  # of the fidelities of NAS-Bench-201


class EvaluationError(Exception):
    """The architecture itself cannot be evaluated; trying again would not help."""


class EvaluatorConfigError(UserError):
    """The evaluator cannot be set up as asked: a one-line message for the user."""


@dataclass(frozen=True)
class Measurement:
    """What one evaluation found."""

    value: float  # the objective, larger is better; an accuracy is a fraction in [0, 1]
    metrics: Mapping[str, float] = field(default_factory=dict)  # e.g. macs, params, test
    seconds: float = 0.0  # cost of the evaluation
    curve: Sequence[float] = ()  # the objective after each epoch of training, if there was one
    device: str = ""  # what the metric `latency` was measured on, if it was


class Evaluator(Protocol):
    """Built once in each worker process; never pickled."""

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """Evaluate one architecture; raises EvaluationError when that is not possible."""
        ...


@runtime_checkable
class MultiFidelityEvaluator(Evaluator, Protocol):
    """An evaluator that can also train for less."""

    def at(self, epochs: int) -> Evaluator:
        """The same with so many epochs; raises EvaluatorConfigError where there is no such thing.

        Of FULL_EPOCHS: where a full training has others, in proportion. Cheap when it is called
        again.
        """
        ...


@runtime_checkable
class TrainingInSteps(Evaluator, Protocol):
    """An evaluator whose trainings can be watched, and cut short."""

    @property
    def epochs(self) -> int:
        """Of a whole training."""
        ...

    def epoch_by_epoch(self, arch: Architecture, *, seed: int) -> Iterator[Measurement]:
        """The measurement after every epoch that there is still to train; the last is whole.

        As `evaluate`, which gives the last one. To ask for no more stops the training.
        """
        ...


@runtime_checkable
class BenchmarkEvaluator(Evaluator, Protocol):
    """An evaluator that knows the best value there is."""

    @property
    def optimum(self) -> float:
        """The largest value of any architecture."""
        ...


def in_steps(evaluator: Evaluator) -> TrainingInSteps:
    """`evaluator` as one that trains in steps; raises EvaluatorConfigError where it does not."""
    if not isinstance(evaluator, TrainingInSteps):
        raise EvaluatorConfigError(
            "there is no training here that could be stopped early: choose --evaluator train"
        )
    return evaluator


def at_epochs(evaluator: Evaluator, epochs: int | None) -> Evaluator:
    """`evaluator` with so many epochs; raises EvaluatorConfigError. None is the full fidelity."""
    if epochs is None:
        return evaluator
    if not isinstance(evaluator, MultiFidelityEvaluator):
        raise EvaluatorConfigError(
            f"no accuracies after {epochs} epochs here: they need training, or a benchmark table "
            "that has them"
        )
    return evaluator.at(epochs)
