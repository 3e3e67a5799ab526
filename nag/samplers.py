"""Samplers: from noise to architectures along the reverse SDE.

A sampler sees a `ScoreFn` and the SDE, nothing of guidance, spaces or data. Each takes the starting
noise x_1 (B, N, F) and returns an estimate of x_0, having called the score a known number of times.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nag.sde import VESDE, ScoreFn


class Sampler(Protocol):
    """`progress` is called after every step; raising in it stops the sampler."""

    def __call__(
        self,
        score: ScoreFn,
        sde: VESDE,
        x: Tensor,
        steps: int,
        generator: torch.Generator,
        progress: Callable[[], None] | None = None,
    ) -> Tensor: ...


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def predictor_corrector(
    score: ScoreFn,
    sde: VESDE,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
    progress: Callable[[], None] | None = None,
    snr: float = 0.16,
) -> Tensor:
    """Langevin corrector, then Euler-Maruyama predictor, at each of `steps` equal time steps.

    The reference sampler of DiffusionNAG (Song et al. 2021, Algorithm 2). Calls the score 2 * steps
    times; 1,000 steps are usual. Returns the noise-free mean of the last predictor step.
    """
    mean = x
    for t in torch.linspace(1.0, 1e-5, steps, device=x.device):
        times = t.expand(len(x))
        s, z = score(x, times), _noise_like(x, generator)
        ratio = z.flatten(1).norm(dim=1).mean() / s.flatten(1).norm(dim=1).mean()
        step = 2 * (snr * ratio) ** 2
        x = x + step * s + (2 * step).sqrt() * z

        g = sde.diffusion(t)
        mean = x + g**2 * score(x, times) / steps
        x = mean + g / math.sqrt(steps) * _noise_like(x, generator)
        if progress:
            progress()
    return mean


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++ multistep of order 1 or 2 (Lu et al. 2022), deterministic or stochastic.

    With D(x, sigma) = x + sigma^2 score the denoised estimate and r = sigma' / sigma the ratio of a
    step, x' = r^(1 + eta^2) x + (1 - r^(1 + eta^2)) D* + noise, whose variance makes x' | x_0 exact
    when D is; D* = D at order 1 and is extrapolated from the last two steps at order 2.

    eta 0, order 1 is DDIM (the Euler method of the probability-flow ODE); eta 1, order 1 ancestral
    sampling; order 2 is "2M" for eta 0 and "2M SDE" for eta 1. Calls the score `steps` times, at
    levels spaced evenly in log sigma; the last step returns D. The last level is 2 sigma_min: a 0/1
    entry is decided long before sigma_min, and the steps are better spent where it is not.
    """

    eta: float
    order: int

    def __call__(
        self,
        score: ScoreFn,
        sde: VESDE,
        x: Tensor,
        steps: int,
        generator: torch.Generator,
        progress: Callable[[], None] | None = None,
    ) -> Tensor:
        previous: tuple[Tensor, float] | None = None  # D and log-step of the step before
        for sigma, after in _levels(sde, steps):
            t = sde.time(torch.full((len(x),), sigma, device=x.device))
            denoised = x + sigma**2 * score(x, t)
            if progress:
                progress()
            if after == 0.0:
                return denoised
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
        raise ValueError("a sampler needs at least one step")


def _levels(sde: VESDE, steps: int) -> Iterator[tuple[float, float]]:
    """Pairs (sigma, next sigma), geometric from sigma_max to 2 sigma_min, then 0."""
    last = min(2 * sde.sigma_min, sde.sigma_max)
    levels = np.geomspace(sde.sigma_max, last, steps).tolist()
    return zip(levels, [*levels[1:], 0.0], strict=True)


SAMPLERS: dict[str, Sampler] = {
    "predictor-corrector": predictor_corrector,
    "ancestral": DPMSolver(eta=1.0, order=1),
    "dpm++2m": DPMSolver(eta=0.0, order=2),
    "dpm++2m-sde": DPMSolver(eta=1.0, order=2),
}
DEFAULT_STEPS = {"predictor-corrector": 1000, "ancestral": 50, "dpm++2m": 24, "dpm++2m-sde": 50}
EVALUATIONS_PER_STEP = {"predictor-corrector": 2}  # of the score; 1 for all others
