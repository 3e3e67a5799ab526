"""From a score to architectures: sample, decode, keep what is valid, and say how much was."""

import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from nag.samplers import DEFAULT_STEPS, EVALUATIONS_PER_STEP, SAMPLERS
from nag.sde import VESDE, ScoreFn, uncentre
from nag.spaces import Architecture, SearchSpace

DEFAULT_SAMPLER = "dpm++2m-sde"


@dataclass(frozen=True)
class Samples:
    """What a sampler made, in order; None stands for an invalid sample."""

    archs: tuple[Architecture | None, ...]  # (B,)
    codes: tuple[int, ...]  # (B,) error codes of the space, 0 = valid
    score_evaluations: int  # network calls per sample
    seconds: float

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

    def novelty(self, known: Set[Architecture]) -> float:
        """Distinct valid that are not in `known` / distinct valid."""
        return sum(arch not in known for arch in self.unique) / max(len(self.unique), 1)


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available: use cpu, cuda or auto") from error
    return device


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
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draw n samples; equal arguments give equal samples on the same machine.

    progress: called with the number of samples times steps done, whose total is n * steps.
    """
    steps = steps or DEFAULT_STEPS[sampler]
    generator = torch.Generator(device=device).manual_seed(seed)
    archs: list[Architecture | None] = []
    codes: list[int] = []
    started = time.perf_counter()
    while len(archs) < n:
        size = min(batch_size, n - len(archs))
        x = SAMPLERS[sampler](
            score,
            sde,
            sde.prior(size, generator),
            steps,
            generator,
            progress=partial(progress, size) if progress else None,
        )
        v = uncentre(x).cpu()
        archs += space.decode(v)
        codes += space.check(v).tolist()
    evaluations = steps * EVALUATIONS_PER_STEP.get(sampler, 1)
    return Samples(tuple(archs), tuple(codes), evaluations, time.perf_counter() - started)
