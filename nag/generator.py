"""The generator of candidates: a score, its SDE and a sampler, ready to be guided."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from nag.calibration import PILOT_SIZE, PILOT_STEPS, Calibrated
from nag.checkpoint import load_network, shipped_weights
from nag.devices import gpu_failures, resolve_device
from nag.errors import UserError, choose, one_line
from nag.exact_score import exact_score
from nag.generate import DEFAULT_SAMPLER, Samples, generate
from nag.guidance import (
    Ladder,
    LogDensity,
    Norms,
    denoised,
    guided,
    improvement,
    target,
    value,
)
from nag.laws import UniformLaw, sde_of
from nag.predictors.base import DifferentiablePredictor, Observations
from nag.predictors.noise_aware import NoiseAwarePredictor, fit_noise_aware
from nag.properties import Constraint
from nag.samplers import SAMPLERS, SCHEDULES
from nag.score_net import ScoreNetwork
from nag.sde import SIGMA_MAX, SIGMA_MIN, VESDE, ScoreFn
from nag.spaces import Architecture, SearchSpace, find_space

GuidanceKind = Literal["denoised", "noise-aware"]
GuidanceForm = Literal["value", "improvement", "target"]

_log = logging.getLogger(__name__)

_REFERENCE_SIZE = 512  # random architectures that show how much g varies
_SMALLEST_GRAPH = 64  # samples


@dataclass(frozen=True)
class GeneratorConfig:
    """Plain values from which a generator can be built on any machine.

    weights: weights of the score network; None means those shipped with the package.
    device: cpu, cuda, or auto (the GPU if there is one).
    threads: CPU threads of PyTorch; fixed, because the last bits of a result depend on it.
    """

    space: str
    score: Literal["network", "exact"] = "network"
    weights: Path | None = None
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    schedule: str = "geometric"
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Guidance:
    """What to steer towards: a function of the predictions, and constraints.

    predictor: fitted on `observations`; None for constraints alone.
    kind: `denoised` evaluates the predictor at the denoised architecture; `noise-aware` first
    trains the paper's f(x_t, sigma) on noised architectures, unless `noise_aware` provides it.
    form: `value` climbs mean + optimism * std; `improvement` climbs log P(value >= best); `target`
    seeks architectures whose value is `target`. best and target have the unit of the observations.
    best: None means the best observed value.
    scale: k, given or found from the progress of a pilot batch.
    """

    predictor: DifferentiablePredictor | None
    observations: Observations
    kind: GuidanceKind = "denoised"
    form: GuidanceForm = "value"
    optimism: float = 1.0
    target: float | None = None
    best: float | None = None
    scale: Ladder | Calibrated = field(default_factory=Calibrated)
    constraints: tuple[Constraint, ...] = ()
    noise_aware: NoiseAwarePredictor | None = None

    def __post_init__(self) -> None:
        if (self.form == "target") != (self.target is not None):
            raise ValueError("a target value must be given if and only if the form is 'target'")


class Part(NamedTuple):
    """n of a larger number of samples; they depend on their own seed, not on the other parts."""

    n: int
    seed: int


class Generator(Protocol):
    """Generates architectures, in this process or on a GPU of the cluster."""

    def generate(self, n: int, *, seed: int, guidance: Guidance | None = None) -> Samples:
        """Draw n samples, guided or unguided; equal arguments give equal samples."""
        ...

    def generate_parts(
        self, parts: Sequence[Part], guidance: Guidance | None = None
    ) -> list[Samples]:
        """`generate` for each part, several at a time where possible."""
        ...


class DiffusionGenerator:
    """The generator itself. Loads the weights once; raises UserError, also if its GPU fails."""

    def __init__(self, config: GeneratorConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.space = find_space(config.space)
        self.device = resolve_device(config.device)
        with gpu_failures("the generator"):
            self.score, self.sde = load_score(config, self.space, self.device)

    @gpu_failures("the generator")
    def generate(self, n: int, *, seed: int, guidance: Guidance | None = None) -> Samples:
        if guidance is None:
            return self._sample(self.score, n, seed)
        started = time.perf_counter()
        norms, scale, log_density = Norms(), Ladder(1.0, 1.0), None
        predictor = guidance.predictor
        if predictor is not None:
            if guidance.kind == "noise-aware" and guidance.noise_aware is None:
                rng = np.random.default_rng([seed, 1])
                fitted = fit_noise_aware(
                    self.space, self.sde, guidance.observations, predictor, rng
                )
                guidance = replace(guidance, noise_aware=fitted)
            log_density = self._log_density(guidance, predictor)
            scale = self._scale(guidance, log_density, seed)
        score = self._guided(guidance, log_density, scale, norms)
        samples = self._sample(score, n, seed)
        found = {"scale_low": scale.low, "scale_high": scale.high, "norm_ratio": norms.ratio}
        return replace(
            samples,
            seconds=time.perf_counter() - started,
            diagnostics=found,
            noise_aware=guidance.noise_aware,
        )

    def generate_parts(
        self, parts: Sequence[Part], guidance: Guidance | None = None
    ) -> list[Samples]:
        return [self.generate(part.n, seed=part.seed, guidance=guidance) for part in parts]

    def _sample(self, score: ScoreFn, n: int, seed: int, steps: int | None = None) -> Samples:
        return generate(
            self.space,
            score,
            self.sde,
            n,
            seed=seed,
            sampler=self.config.sampler,
            steps=steps or self.config.steps,
            schedule=self.config.schedule,
            device=self.device,
        )

    def _guided(
        self,
        guidance: Guidance,
        log_density: LogDensity | None,
        scale: Ladder,
        norms: Norms | None = None,
    ) -> ScoreFn:
        return guided(
            self.score,
            self.space,
            self.sde,
            log_density=log_density,
            scale=scale,
            peaked=guidance.form == "target",
            constraints=guidance.constraints,
            norms=norms,
        )

    def _log_density(self, guidance: Guidance, predictor: DifferentiablePredictor) -> LogDensity:
        reading = denoised(predictor)
        if guidance.noise_aware is not None:
            reading = guidance.noise_aware.to(self.device)
        match guidance.form:
            case "value":
                return value(reading, guidance.optimism)
            case "improvement":
                best = guidance.observations.best if guidance.best is None else guidance.best
                return improvement(reading, predictor.standardise(best))
            case "target":
                assert guidance.target is not None
                return target(reading, predictor.standardise(guidance.target))

    def _scale(self, guidance: Guidance, log_density: LogDensity, seed: int) -> Ladder:
        """The scales of this batch, found by a pilot batch unless they are given."""
        if isinstance(guidance.scale, Ladder):
            return guidance.scale

        def g(archs: Sequence[Architecture]) -> NDArray[np.float64]:
            v = self.space.encode(archs).to(self.device)
            with torch.no_grad():
                found = log_density(v, v.new_full((len(v),), self.sde.sigma_min))
            if guidance.form == "target":
                found = -found.neg().sqrt()  # the distance to the target, in standard deviations
            return found.double().cpu().numpy()

        def pilot(ladder: Ladder) -> NDArray[np.float64]:
            score = self._guided(guidance, log_density, ladder)
            samples = self._sample(score, PILOT_SIZE, seed + 1, PILOT_STEPS)
            out = np.full(len(samples.archs), np.nan)
            out[[arch is not None for arch in samples.archs]] = g(samples.valid)
            return out

        random = self.space.sample(_REFERENCE_SIZE, np.random.default_rng([seed, 2]))
        return guidance.scale.ladder(g(random), pilot)


def load_score(
    config: GeneratorConfig, space: SearchSpace, device: torch.device
) -> tuple[ScoreFn, VESDE]:
    """The score that `config` asks for; raises UserError, also if the weights do not fit."""
    choose("sampler", config.sampler, SAMPLERS)
    choose("schedule", config.schedule, SCHEDULES)
    if config.score == "exact":
        if config.weights is not None:
            raise UserError(f"the exact score takes no weights, but {config.weights} was given")
        sde = sde_of(UniformLaw(space), config.sigma_min, config.sigma_max)
        return exact_score(space, sde), sde
    sigmas = config.sigma_min, config.sigma_max
    network = load_network(config.weights or shipped_weights(space), space, sigmas, device)
    return accelerated(network, device), network.sde


def accelerated(network: ScoreNetwork, device: torch.device) -> ScoreFn:
    """On a GPU: TF32, and the whole network as one CUDA graph per batch size.

    Batches are padded to powers of two, because compiling takes longer than sampling and PyTorch
    stops compiling after a few sizes. If compilation fails, e.g. because there is no C compiler,
    the network runs uncompiled, with a warning.
    """
    if device.type != "cuda":
        return network
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(
        network, mode="reduce-overhead", dynamic=False
    )

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal compiled
        size = max(_SMALLEST_GRAPH, 1 << (len(x) - 1).bit_length())
        more = (0, size - len(x))
        filled = pad(x, (0, 0, 0, 0, *more)), pad(t, more)
        with _tf32():
            try:
                found = compiled(*filled)
            except Exception as error:  # Triton also compiles when a kernel first runs: of any kind
                if compiled is network or isinstance(error, torch.OutOfMemoryError):
                    raise
                _log.warning(
                    "the score network runs uncompiled, which is slower: %s", one_line(error)
                )
                compiled = network
                found = compiled(*filled)
            return found[: len(x)].clone()  # a graph reuses its output memory

    return score


@contextmanager
def _tf32() -> Iterator[None]:
    """For the network only: TF32 is not precise enough for a Gaussian process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
