"""The generator of candidates: a score, its SDE and a sampler, ready to be guided."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from nag.checkpoint import load_network, shipped_weights
from nag.exact_score import exact_score, uniform_law_sde
from nag.generate import DEFAULT_SAMPLER, Samples, generate, resolve_device
from nag.guidance import Ladder, LogDensity, denoised_value, guided, noise_aware_value
from nag.predictors.base import FittedPredictor, Observations
from nag.predictors.noise_aware import fit_noise_aware
from nag.samplers import SAMPLERS
from nag.sde import VESDE, ScoreFn
from nag.spaces import SPACES, SearchSpace

GuidanceKind = Literal["denoised", "noise-aware"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Plain values from which a generator is built wherever it is to run.

    weights: of the score network; None takes those shipped with the package.
    device: cpu, cuda, or auto (the GPU where there is one).
    threads: CPU threads of PyTorch; fixed, because the last bits of a result depend on it.
    """

    space: str
    score: Literal["network", "exact"] = "network"
    weights: Path | None = None
    sigma_min: float = 0.1
    sigma_max: float = 5.0
    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Guidance:
    """What to steer towards: the mean + optimism * std of `predictor`, fitted on `observations`.

    kind: `denoised` evaluates the predictor at the denoised architecture; `noise-aware` trains the
    paper's f(x_t, sigma) on noised architectures first.
    """

    predictor: FittedPredictor
    observations: Observations
    kind: GuidanceKind = "denoised"
    scale: Ladder = field(default_factory=Ladder)
    optimism: float = 1.0


class Generator(Protocol):
    """Makes architectures: in this process, or on a GPU of the cluster."""

    def generate(self, n: int, *, seed: int, guidance: Guidance | None = None) -> Samples:
        """n samples, guided or from the plain law; equal arguments give equal samples."""
        ...


class DiffusionGenerator:
    """The generator itself. Weights are loaded once; raises CheckpointError or ValueError."""

    def __init__(self, config: GeneratorConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.space = SPACES[config.space]
        self.device = resolve_device(config.device)
        self.sde = uniform_law_sde(self.space, config.sigma_min, config.sigma_max)
        self.score = load_score(config, self.space, self.sde, self.device)

    def generate(self, n: int, *, seed: int, guidance: Guidance | None = None) -> Samples:
        score = self.score
        if guidance is not None:
            score = guided(score, self._log_density(guidance, seed), guidance.scale)
        return generate(
            self.space,
            score,
            self.sde,
            n,
            seed=seed,
            sampler=self.config.sampler,
            steps=self.config.steps,
            device=self.device,
        )

    def _log_density(self, guidance: Guidance, seed: int) -> LogDensity:
        if guidance.kind == "denoised":
            return denoised_value(self.space, guidance.predictor, self.sde, guidance.optimism)
        rng = np.random.default_rng([seed, 1])
        predictor = fit_noise_aware(
            self.space,
            self.sde,
            guidance.observations,
            guidance.predictor,
            rng,
            optimism=guidance.optimism,
            device=self.device,
        )
        return noise_aware_value(predictor, self.sde)


def load_score(
    config: GeneratorConfig, space: SearchSpace, sde: VESDE, device: torch.device
) -> ScoreFn:
    """The score a configuration names; raises CheckpointError when its weights do not fit."""
    if config.sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {config.sampler!r}: choose from {', '.join(SAMPLERS)}")
    if config.score == "exact":
        return exact_score(space, sde)
    return load_network(config.weights or shipped_weights(space), space, sde, device)
