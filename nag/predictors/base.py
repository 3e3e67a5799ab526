"""Surrogate predictors: architecture -> predicted value with uncertainty. Larger is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nag.spaces import Architecture


@dataclass(frozen=True)
class Observations:
    """Evaluated architectures with finite values, ordered by trial."""

    archs: tuple[Architecture, ...]  # (n,)
    values: NDArray[np.float64]  # (n,) larger is better

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.archs),):
            raise ValueError(f"{len(self.archs)} architectures but values {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError("values must be finite")

    def __len__(self) -> int:
        return len(self.archs)

    def where(self, wanted: NDArray[np.bool_]) -> "Observations":
        """The observations that `wanted` (n,) marks, or all if it marks none."""
        if not wanted.any():
            return self
        archs = tuple(arch for arch, keep in zip(self.archs, wanted, strict=True) if keep)
        return Observations(archs, self.values[wanted])

    @property
    def best(self) -> float:
        """Largest observed value."""
        return float(self.values.max())


@dataclass(frozen=True)
class Prediction:
    """Marginal Gaussian predictions, in the unit of the observed values."""

    mean: NDArray[np.float64]  # (B,)
    std: NDArray[np.float64]  # (B,) > 0

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.ndim != 1:
            raise ValueError(f"mean {self.mean.shape} and std {self.std.shape} must both be (B,)")
        if not (np.isfinite([self.mean, self.std]).all() and (self.std > 0).all()):
            raise ValueError("means and standard deviations must be finite, the latter positive")


class FittedPredictor(Protocol):
    """A surrogate fitted to data. Immutable."""

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        """Predict the *noise-free* values of architectures, (B,)."""
        ...

    def condition(self, archs: Sequence[Architecture]) -> "FittedPredictor":
        """The predictor with `archs` pending: they count as observed at their predicted mean.

        (The "kriging believer" of Ginsbourger et al. 2010: the mean stays and the uncertainty near
        pending points vanishes, so the next point of a batch is sought elsewhere.)
        """
        ...


@runtime_checkable
class DifferentiablePredictor(FittedPredictor, Protocol):
    """A fitted surrogate with a gradient, which guidance follows."""

    def relaxed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B,) and std (B,) at relaxed encodings (B, N, F) in [0, 1], differentiable in `x`.

        Units are *standardised*: zero mean and unit variance over the observations.
        """
        ...

    def standardise(self, value: float) -> float:
        """Convert a value to the unit of `relaxed`."""
        ...


class SurrogatePredictor(Protocol):
    """Fits a surrogate. Stateless: equal arguments give equal results."""

    def fit(self, observations: Observations, rng: np.random.Generator) -> FittedPredictor:
        """Fit on all observations; `rng` is the only source of randomness."""
        ...
