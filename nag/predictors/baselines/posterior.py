"""The posterior of a Gaussian process whose kernel was fitted elsewhere. All in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nag.predictors.base import Prediction
from nag.predictors.baselines.outputs import Outputs
from nag.spaces import Architecture

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Inputs (B, ...), (n, ...) -> covariances (B, n)."""

_JITTER = 1e-6
_MIN_VARIANCE = 1e-8
_CHUNK = 256  # queries at once: their own covariances are (chunk, chunk)


@dataclass(frozen=True, eq=False)
class Posterior:
    """f | z with f ~ GP(mean, kernel) and z = f(X) + N(0, noise). Implements `FittedPredictor`."""

    inputs: Callable[[Sequence[Architecture]], Tensor]  # architectures to kernel inputs
    kernel: Kernel
    mean: float
    noise: float  # variance
    outputs: Outputs
    X: Tensor  # (n, ...)
    z: Tensor  # (n,)

    @cached_property
    def _factor(self) -> Tensor:
        """L of L L' = K + noise I, (n, n)."""
        K = self.kernel(self.X, self.X)
        return torch.linalg.cholesky(K + (self.noise + _JITTER) * torch.eye(len(K), dtype=K.dtype))

    @cached_property
    def _alpha(self) -> Tensor:
        """(n, 1)."""
        return torch.cholesky_solve((self.z - self.mean)[:, None], self._factor)

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of f at inputs (B, ...), in the unit of z: (B,), (B,)."""
        k = self.kernel(X, self.X)  # (B, n)
        half = torch.linalg.solve_triangular(self._factor, k.T, upper=False)  # (n, B)
        variance = self.kernel(X, X).diagonal() - half.square().sum(0)
        return self.mean + (k @ self._alpha)[:, 0], variance.clamp_min(_MIN_VARIANCE).sqrt()

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        if not archs:
            return Prediction(np.zeros(0), np.zeros(0))
        parts = [self.latent(part) for part in self.inputs(archs).split(_CHUNK)]
        mean, std = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return self.outputs.prediction(mean, std)

    def condition(self, archs: Sequence[Architecture]) -> "Posterior":
        if not archs:
            return self
        X = self.inputs(archs)
        z = torch.cat([self.z, self.latent(X)[0]])
        return replace(self, X=torch.cat([self.X, X]), z=z)
