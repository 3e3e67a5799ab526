"""Guidance: steer a score towards architectures that a predictor likes and constraints allow.

Notation:
    V        E[V | x_t] under the uniform law, (B, N, F): the denoised architecture
    g(V)     log density to climb, a function of the prediction at the denoised architecture
    k        guidance scale, (B,)
    R        k grad_V g, (B, N, F): the reward of each operator, to first order

The guided score is that of the law p(A) exp(R . A), known exactly when p is the uniform law:

    s_guided(x_t, t) = s(x_t, t) + (E_R[x_0 | x_t] - E[x_0 | x_t]) / sigma^2

The paper adds k grad_x g instead (Eq. 9), which is the same to first order in R. For an additive g
our form is exact for every k. It also stays inside the convex hull of the architectures, whereas
strong linear guidance pushes samples to where neither network nor predictor has seen data.

Guidance maps a `ScoreFn` to a `ScoreFn`, so samplers need not know about it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import log_ndtr

from nag.exact_score import posterior
from nag.predictors.base import DifferentiablePredictor
from nag.properties import Constraint, shadow_prices
from nag.sde import VESDE, ScoreFn, per_sample
from nag.spaces import SearchSpace

Reading = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(V (B, N, F), sigma (B,)) -> mean (B,) and std (B,) of the standardised value."""

LogDensity = Callable[[Tensor, Tensor], Tensor]
"""(V (B, N, F), sigma (B,)) -> g (B,), differentiable in V."""


_BISECTIONS = 8


@dataclass(frozen=True)
class Ladder:
    """Guidance scales k spread geometrically over a batch, from weak (diverse) to strong (greedy).

    Units are those of the standardised value: for an additive predictor with unit variance over
    the space, scale k shifts the mean of the samples by k standard deviations, until saturation.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(
                "guidance scales must be finite and satisfy 0 < low <= high, not "
                f"{self.low}, {self.high}"
            )

    def __call__(self, batch_size: int, device: torch.device) -> Tensor:
        """(B,) scales."""
        steps = torch.linspace(0.0, 1.0, batch_size, device=device)
        return self.low * (self.high / self.low) ** steps


def denoised(predictor: DifferentiablePredictor) -> Reading:
    """The surrogate itself, evaluated at the denoised architecture: this needs no training.

    For an additive surrogate mu(E[V | x_t]) *is* E[mu | x_t]. The std is that of the denoised
    architecture alone, without Var[mu | x_t].
    """
    return lambda v, sigma: predictor.relaxed(v)


def value(reading: Reading, optimism: float = 0.0) -> LogDensity:
    """g = mean + optimism * std.

    Optimism 0 is the choice of the reference (paper, Eq. 8). Positive optimism draws samples to
    where acquisition functions look, beyond the best mean.
    """

    def g(v: Tensor, sigma: Tensor) -> Tensor:
        mean, std = reading(v, sigma)
        return mean + optimism * std

    return g


def improvement(reading: Reading, best: float) -> LogDensity:
    """g = log Phi((mean - best) / std), the log probability of beating `best`, given the reading.

    At x_t this is not yet log P(value >= best | x_t): the std of the reading lacks the spread of
    the means of the architectures that x_t may come from. That spread vanishes with the noise.
    """
    if not math.isfinite(best):
        raise ValueError("best must be finite")

    def g(v: Tensor, sigma: Tensor) -> Tensor:
        mean, std = reading(v, sigma)
        return log_ndtr((mean - best) / std)

    return g


def target(reading: Reading, wanted: float) -> LogDensity:
    """g = log density of N(mean, std^2) at `wanted`, up to a constant: seek that value.

    The gradient ignores std; otherwise uncertain architectures would seem near every target.
    """
    if not math.isfinite(wanted):
        raise ValueError("the target must be finite")

    def g(v: Tensor, sigma: Tensor) -> Tensor:
        mean, std = reading(v, sigma)
        return -((mean - wanted) ** 2) / (2 * std.detach() ** 2)

    return g


@dataclass
class Norms:
    """Norms of score and guidance, summed on the device over all evaluations."""

    score: Tensor | float = 0.0
    guidance: Tensor | float = 0.0

    @property
    def ratio(self) -> float:
        """Mean norm of the guidance / mean norm of the score."""
        return float(self.guidance) / max(float(self.score), 1e-12)


def guided(
    score: ScoreFn,
    space: SearchSpace,
    sde: VESDE,
    *,
    log_density: LogDensity | None = None,
    scale: Ladder = Ladder(1.0, 1.0),
    peaked: bool = False,
    constraints: Sequence[Constraint] = (),
    norms: Norms | None = None,
) -> ScoreFn:
    """`score`, tilted by the predictor and kept within the constraints.

    log_density: None for constraints alone.
    peaked: g has its maximum inside the space, and a strong tilt must not overshoot it.
    """

    def guided_score(x: Tensor, t: Tensor) -> Tensor:
        sigma = sde.sigma(t)
        v = posterior(space, x, sigma)
        reward = torch.zeros_like(v)
        if log_density is not None:
            k = per_sample(scale(len(x), x.device).to(v))
            reward = k * _gradient(log_density, v, sigma)
            if peaked:
                reward = _up_to_the_peak(log_density, space, x, sigma, v, reward)
        if constraints:
            reward = reward - shadow_prices(space, constraints, x, sigma, reward)
        guidance = 2 * (posterior(space, x, sigma, reward) - v) / per_sample(sigma**2)
        plain = score(x, t)
        if norms is not None:
            norms.score += plain.flatten(1).norm(dim=1).mean()
            norms.guidance += guidance.flatten(1).norm(dim=1).mean()
        return plain + guidance

    return guided_score


def _gradient(log_density: LogDensity, v: Tensor, sigma: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = v.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(leaf, sigma).sum(), leaf)
    return gradient


def _up_to_the_peak(
    log_density: LogDensity, space: SearchSpace, x: Tensor, sigma: Tensor, v: Tensor, reward: Tensor
) -> Tensor:
    """The reward times the largest a <= 1 at which g still rises on the way from V to V_aR."""

    def past(log_a: Tensor) -> Tensor:
        tilted = posterior(space, x, sigma, per_sample(log_a.exp()) * reward)
        return (_gradient(log_density, tilted, sigma) * (tilted - v)).sum((1, 2)) < 0

    low, high = x.new_full((len(x),), -12.0), x.new_zeros(len(x))
    over = past(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = past(middle)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return per_sample(torch.where(over, low.exp(), 1.0)) * reward
