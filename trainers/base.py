"""Evaluators: architecture -> measurement. The one thing the search pays for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nag.spaces import Architecture


class EvaluationError(Exception):
    """The architecture itself cannot be evaluated; trying again would not help."""


class EvaluatorConfigError(ValueError):
    """The evaluator cannot be set up as asked: a one-line message for the user."""


@dataclass(frozen=True)
class Measurement:
    """What one evaluation found."""

    value: float  # the objective, larger is better; an accuracy is a fraction in [0, 1]
    metrics: Mapping[str, float] = field(default_factory=dict)  # e.g. macs, params, test
    seconds: float = 0.0  # cost of the evaluation


class Evaluator(Protocol):
    """Built once in each worker process; never pickled."""

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """Evaluate one architecture; raises EvaluationError when that is not possible."""
        ...
