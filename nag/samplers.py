"""Samplers: from noise to architectures along the reverse SDE.

A sampler sees a `ScoreFn` and the SDE; it knows nothing about guidance, spaces or data. It takes
the starting noise x_1 (B, N, F) and decreasing noise levels (K,), sigma_max first, and returns an
estimate of x_0. D(x, sigma) = x + sigma^2 score is the denoised estimate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nag.sde import VESDE, ScoreFn


class Sampler(Protocol):
    """Calls `progress` after every level; an exception from it stops the sampler."""

    def __call__(
        self,
        score: ScoreFn,
        sde: VESDE,
        x: Tensor,
        levels: Sequence[float],
        generator: torch.Generator,
        progress: Callable[[], object] = lambda: None,
    ) -> Tensor: ...


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _denoised(score: ScoreFn, sde: VESDE, x: Tensor, sigma: float) -> Tensor:
    t = sde.time(x.new_full((len(x),), sigma))
    return x + sigma**2 * score(x, t)


def predictor_corrector(
    score: ScoreFn,
    sde: VESDE,
    x: Tensor,
    levels: Sequence[float],
    generator: torch.Generator,
    progress: Callable[[], object] = lambda: None,
    snr: float = 0.16,
) -> Tensor:
    """Langevin corrector, then Euler-Maruyama predictor, at each of the levels.

    The reference sampler of DiffusionNAG (Song et al. 2021, Algorithm 2). Calls the score twice per
    level; 1,000 levels are usual. Returns the noise-free mean of the last predictor step.
    """
    times = sde.time(x.new_tensor(levels)).tolist()
    spans = [t - after for t, after in pairwise(times)]
    mean = x
    for t, span in zip(times, [*spans, spans[-1] if spans else times[0]], strict=True):
        now = x.new_full((len(x),), t)
        s, z = score(x, now), _noise_like(x, generator)
        ratio = z.flatten(1).norm(dim=1).mean() / s.flatten(1).norm(dim=1).mean()
        step = 2 * (snr * ratio) ** 2
        x = x + step * s + (2 * step).sqrt() * z

        g = sde.diffusion(now[0])
        mean = x + g**2 * span * score(x, now)
        x = mean + g * math.sqrt(span) * _noise_like(x, generator)
        progress()
    return mean


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++ multistep of order 1 or 2 (Lu et al. 2022), deterministic or stochastic.

    With r = sigma' / sigma the ratio of a step, x' = r^(1 + eta^2) x + (1 - r^(1 + eta^2)) D* +
    noise, whose variance makes x' | x_0 exact when D is exact. At order 1, D* = D; at order 2, D*
    is extrapolated from the last two steps.

    Order 1 is DDIM for eta 0 (the Euler method on the probability-flow ODE) and ancestral sampling
    for eta 1; order 2 is "2M" for eta 0 and "2M SDE" for eta 1. Calls the score once per level; the
    last step returns D.
    """

    eta: float
    order: int

    def __call__(
        self,
        score: ScoreFn,
        sde: VESDE,
        x: Tensor,
        levels: Sequence[float],
        generator: torch.Generator,
        progress: Callable[[], object] = lambda: None,
    ) -> Tensor:
        previous: tuple[Tensor, float] | None = None  # D and log-step of the previous step
        for sigma, after in pairwise(levels):
            denoised = _denoised(score, sde, x, sigma)
            log_step = math.log(sigma / after)
            target = denoised
            if self.order == 2 and previous is not None:
                slope = (denoised - previous[0]) / previous[1]
                target = denoised + 0.5 * log_step * slope
            keep = (after / sigma) ** (1 + self.eta**2)
            x = keep * x + (1 - keep) * target
            if self.eta:
                spread = after * math.sqrt(1 - (after / sigma) ** (2 * self.eta**2))
                x = x + spread * _noise_like(x, generator)
            previous = denoised, log_step
            progress()
        denoised = _denoised(score, sde, x, levels[-1])
        progress()
        return denoised


def heun(
    score: ScoreFn,
    sde: VESDE,
    x: Tensor,
    levels: Sequence[float],
    generator: torch.Generator,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Heun's method on the probability-flow ODE dx / dsigma = (x - D(x, sigma)) / sigma.

    Karras et al. 2022 (EDM), Algorithm 1: deterministic and of second order. Calls the score twice
    per level, except once at the last, where it returns D.
    """
    del generator
    for sigma, after in pairwise(levels):
        slope = (x - _denoised(score, sde, x, sigma)) / sigma
        euler = x + (after - sigma) * slope
        ahead = (euler - _denoised(score, sde, euler, after)) / after
        x = x + (after - sigma) * (slope + ahead) / 2
        progress()
    denoised = _denoised(score, sde, x, levels[-1])
    progress()
    return denoised


def geometric(first: float, last: float, steps: int) -> list[float]:
    """Levels evenly spaced in log sigma, i.e. in the time of the VE SDE."""
    return np.geomspace(first, last, steps).tolist()


def karras(first: float, last: float, steps: int, rho: float = 7.0) -> list[float]:
    """Levels evenly spaced in sigma^(1 / rho) (Karras et al. 2022, Eq. 5)."""
    return (np.linspace(first ** (1 / rho), last ** (1 / rho), steps) ** rho).tolist()


SCHEDULES: dict[str, Callable[[float, float, int], list[float]]] = {
    "geometric": geometric,
    "karras": karras,
}


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler, its default number of levels, and the last level in units of sigma_min.

    A 0/1 entry is decided long before sigma_min, so all samplers but the reference end at
    2 sigma_min and spend their steps where entries are still undecided.
    """

    sampler: Sampler
    steps: int
    last: float = 2.0

    def levels(
        self, sde: VESDE, steps: int | None = None, schedule: str = "geometric"
    ) -> list[float]:
        """Decreasing noise levels, (steps,)."""
        last = min(self.last * sde.sigma_min, math.sqrt(sde.sigma_min * sde.sigma_max))
        return SCHEDULES[schedule](sde.sigma_max, last, steps or self.steps)


SAMPLERS: dict[str, SamplerSpec] = {
    "predictor-corrector": SamplerSpec(predictor_corrector, steps=1000, last=1.0),
    "ancestral": SamplerSpec(DPMSolver(eta=1.0, order=1), steps=50),
    "heun": SamplerSpec(heun, steps=18),
    "dpm++2m": SamplerSpec(DPMSolver(eta=0.0, order=2), steps=24),
    "dpm++2m-sde": SamplerSpec(DPMSolver(eta=1.0, order=2), steps=50),
}
