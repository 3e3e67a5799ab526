"""The variance-exploding SDE that turns architectures into noise.

Notation: V (B, N, F), encodings in {0, 1}; x_0 = 2 V - 1, the centred coding that is diffused;
t in (0, 1], diffusion time; sigma(t), standard deviation of the noise in x_t = x_0 + sigma(t) z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nag.errors import UserError

SIGMA_MIN, SIGMA_MAX = 0.1, 5.0
"""Default noise levels, in the coding -1/+1."""

ScoreFn = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, N, F), t (B,)) -> grad_x log p_t(x_t), (B, N, F). All a sampler knows of the model."""


def centre(v: Tensor) -> Tensor:
    """Map encodings in {0, 1} to the coding that is diffused, {-1, +1}."""
    return 2 * v - 1


def uncentre(x: Tensor) -> Tensor:
    """Inverse of `centre`."""
    return (x + 1) / 2


def per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1), to broadcast against (B, N, F)."""
    return values[:, None, None]


@dataclass(frozen=True)
class VESDE:
    """dx = g(t) dw with sigma(t) = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, Eq. 30).

    Score network, predictor and sampler share one object, which is stored with the weights.
    mean: (N, F) mean of the data in the centred coding, and of the prior N(mean, sigma_max^2 I).
    (A prior centred at 0 would bias the depths of MobileNetV3, whose mean entry is -0.83.)
    """

    mean: tuple[tuple[float, ...], ...]
    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(
                f"sigma_min {self.sigma_min:g} must be positive and below sigma_max "
                f"{self.sigma_max:g}, which must be finite"
            )

    @classmethod
    def of_mean(cls, mean: Tensor, sigma_min: float, sigma_max: float) -> "VESDE":
        """The SDE for data with this (N, F) mean, rounded so that it survives JSON unchanged."""
        rows = tuple(tuple(round(v, 6) for v in row) for row in mean.tolist())
        return cls(rows, sigma_min, sigma_max)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation at time t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time(self, sigma: Tensor) -> Tensor:
        """Inverse of `sigma`."""
        return torch.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), with g^2 = d sigma^2 / dt = 2 sigma^2 log(sigma_max / sigma_min)."""
        return self.sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x_1, n samples (n, N, F) of the prior, on the generator's device."""
        device = generator.device
        mean = torch.tensor(self.mean, device=device)
        z = torch.randn(n, *mean.shape, generator=generator, device=device)
        return mean + self.sigma_max * z

    def to_json(self) -> dict[str, Any]:
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "mean": self.mean}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "VESDE":
        mean = tuple(tuple(row) for row in data["mean"])
        return cls(mean, data["sigma_min"], data["sigma_max"])
