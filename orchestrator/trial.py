"""Trials and their outcomes, and the one function that turns the first into the second."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from time import perf_counter
from typing import Literal, Protocol

from nag.generator import Generator
from nag.spaces import Architecture
from trainers.base import FULL_EPOCHS, EvaluationError, Evaluator, at_epochs

SCHEMA = 1  # of what a run writes


@dataclass(frozen=True)
class Trial:
    """One architecture to evaluate."""

    trial: int  # 0, 1, 2, ... in the order proposed
    iteration: int  # 0 for the initial design
    arch: Architecture
    strategy: str  # "initial", or the candidate strategy
    seed: int
    predicted_mean: float | None = None  # by the surrogate, before the evaluation; a fraction
    predicted_std: float | None = None
    epochs: int | None = None  # None is the full fidelity

    @property
    def cost(self) -> Fraction:
        """In evaluations of full fidelity."""
        return Fraction(1) if self.epochs is None else Fraction(self.epochs, FULL_EPOCHS)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. An error is a result, not an exception."""

    trial: int
    status: Literal["ok", "failed"]
    value: float | None = None  # larger is better; an accuracy is a fraction
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    attempts: int = 1


class Executor(Protocol):
    """Where the work is done."""

    @property
    def generator(self) -> Generator:
        """The candidate generator."""
        ...

    @property
    def description(self) -> str:
        """Where that is, in words for the user."""
        ...

    def run(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Evaluate trials, yielding outcomes as they complete; never raises for a failed trial."""
        ...

    def close(self) -> None:
        """Release processes and devices."""
        ...


def evaluate_trial(evaluator: Evaluator, trial: Trial, retries: int) -> Outcome:
    """Evaluate with at most `retries` further attempts after an unexpected exception.

    An `EvaluationError` is the architecture's own fault and a value that is not finite would come
    again: both are final at once.
    """
    started = perf_counter()
    for attempt in range(1, retries + 2):
        try:
            found = at_epochs(evaluator, trial.epochs).evaluate(trial.arch, seed=trial.seed)
            value = float(found.value)
            metrics = {name: float(number) for name, number in found.metrics.items()}
            seconds = float(found.seconds)
        except EvaluationError as error:
            return _failed(trial, error, started, attempt)
        except Exception as error:
            if attempt > retries:
                return _failed(trial, error, started, attempt)
        else:
            if not math.isfinite(value):
                not_finite = EvaluationError(f"the value is {value}")
                return _failed(trial, not_finite, started, attempt)
            return Outcome(trial.trial, "ok", value, metrics, seconds, None, attempt)
    raise AssertionError("unreachable")


def _failed(trial: Trial, error: Exception, started: float, attempts: int) -> Outcome:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    text = text.encode(errors="replace").decode()  # file names need not be UTF-8
    seconds = perf_counter() - started
    return Outcome(trial.trial, "failed", seconds=seconds, error=text, attempts=attempts)
