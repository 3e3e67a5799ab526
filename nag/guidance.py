"""Guidance: steer a score towards architectures that a predictor likes.

    s_guided(x_t, t) = s(x_t, t) + k grad_x log_density(x_t, t)                  (paper, Eq. 9)

`log_density` (x_t (B, N, F), t (B,)) -> (B,) is any differentiable function; guidance maps a
`ScoreFn` to a `ScoreFn`, so samplers need not know of it and several guidances can be stacked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.special import log_ndtr

from nag.exact_score import posterior
from nag.predictors.base import FittedPredictor
from nag.sde import VESDE, ScoreFn, per_sample
from nag.spaces import SearchSpace

LogDensity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ladder:
    """Guidance scales k spread geometrically over a batch, from weak (diverse) to strong (greedy).

    In units of the standardised value: under an additive predictor with unit variance over the
    space, scale k shifts the mean of the samples by k standard deviations. No single k suits every
    space and round, so a pool holds all of them and the acquisition function chooses.
    """

    low: float = 3.0
    high: float = 1000.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(
                f"guidance scales must be 0 < low <= high, finite, not {self.low}, {self.high}"
            )

    def __call__(self, batch_size: int, device: torch.device) -> Tensor:
        """(B,) scales."""
        steps = torch.linspace(0.0, 1.0, batch_size, device=device)
        return self.low * (self.high / self.low) ** steps


def guided(score: ScoreFn, log_density: LogDensity, scale: Ladder) -> ScoreFn:
    """The score plus the scaled gradient of `log_density`."""

    def guided_score(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_density(leaf, t).sum(), leaf)
        return score(x, t) + per_sample(scale(len(x), x.device)) * gradient

    return guided_score


class NoiseAware(Protocol):
    """A predictor of noisy architectures: x_t (B, N, F), sigma (B,) -> standardised value (B,)."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


def noise_aware_value(predictor: NoiseAware, sde: VESDE) -> LogDensity:
    """log_density = f(x_t, sigma): the reference's choice (paper, Eq. 8)."""
    return lambda x, t: predictor(x, sde.sigma(t))


def denoised_value(
    space: SearchSpace, predictor: FittedPredictor, sde: VESDE, optimism: float = 0.0
) -> LogDensity:
    """log_density = mu + optimism * std at the denoised architecture E[V | x_t].

    For an additive surrogate mu(E[V | x_t]) *is* E[mu | x_t], and it costs no training. The
    denoiser is the closed-form one of the uniform law, so that the gradient need not pass the score
    network. Optimism draws samples to where acquisition functions look, beyond the best mean.
    """

    def log_density(x: Tensor, t: Tensor) -> Tensor:
        mean, std = predictor.relaxed(posterior(space, x, sde.sigma(t)))
        return mean + optimism * std

    return log_density


def denoised_improvement(
    space: SearchSpace, predictor: FittedPredictor, sde: VESDE, best: float
) -> LogDensity:
    """log_density = log P(value >= best | E[V | x_t]) = log Phi((mu - best) / s).

    best: in standardised units, as `FittedPredictor.relaxed` predicts.
    """
    if not math.isfinite(best):
        raise ValueError("best must be finite")

    def log_density(x: Tensor, t: Tensor) -> Tensor:
        mean, std = predictor.relaxed(posterior(space, x, sde.sigma(t)))
        return log_ndtr((mean - best) / std)

    return log_density
