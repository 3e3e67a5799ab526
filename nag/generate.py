"""From a score to architectures: sample, decode, and report how many samples are valid."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from nag.predictors.noise_aware import NoiseAwarePredictor
from nag.samplers import SAMPLERS
from nag.sde import VESDE, ScoreFn, uncentre
from nag.spaces import Architecture, SearchSpace

DEFAULT_SAMPLER = "dpm++2m-sde"


@dataclass(frozen=True)
class Samples:
    """The samples, in order; None stands for an invalid sample."""

    archs: tuple[Architecture | None, ...]  # (B,)
    codes: tuple[int, ...]  # (B,) error codes of the space, 0 = valid
    score_evaluations: int  # counted score calls per sample, without those of a pilot batch
    seconds: float  # includes fitting and calibrating the guidance
    diagnostics: Mapping[str, float] = field(default_factory=dict)  # of guidance
    noise_aware: NoiseAwarePredictor | None = None  # guided these samples; reusable for more

    @cached_property
    def valid(self) -> tuple[Architecture, ...]:
        return tuple(arch for arch in self.archs if arch is not None)

    @cached_property
    def unique(self) -> tuple[Architecture, ...]:
        """Distinct valid architectures, in order of first appearance."""
        return tuple(dict.fromkeys(self.valid))

    @property
    def validity(self) -> float:
        """Valid / generated."""
        return len(self.valid) / max(len(self.archs), 1)

    @property
    def uniqueness(self) -> float:
        """Distinct valid / valid."""
        return len(self.unique) / max(len(self.valid), 1)


@torch.no_grad()
def generate(
    space: SearchSpace,
    score: ScoreFn,
    sde: VESDE,
    n: int,
    *,
    seed: int,
    sampler: str = DEFAULT_SAMPLER,
    steps: int | None = None,
    schedule: str = "geometric",
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] = lambda more: None,
) -> Samples:
    """Draw n samples; equal arguments give equal samples on the same machine.

    steps, schedule: number of noise levels, by default that of the sampler, and their spacing.
    progress: called with the newly completed samples times levels; the total is n * steps.
    """
    spec = SAMPLERS[sampler]
    levels = spec.levels(sde, steps, schedule)
    calls = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += len(x)
        return score(x, t)

    generator = torch.Generator(device=device).manual_seed(seed)
    archs: list[Architecture | None] = []
    codes: list[int] = []
    started = time.perf_counter()
    while len(archs) < n:
        size = min(batch_size, n - len(archs))
        x = spec.sampler(
            counted,
            sde,
            sde.prior(size, generator),
            levels,
            generator,
            progress=partial(progress, size),
        )
        v = uncentre(x).cpu()
        archs += space.decode(v)
        codes += space.check(v).tolist()
    seconds = time.perf_counter() - started
    return Samples(tuple(archs), tuple(codes), calls // max(n, 1), seconds)
