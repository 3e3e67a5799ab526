"""Candidate strategies: where to look. Each fills a pool from which an acquisition function picks.

These are the acquisition-optimisation strategies of DiffusionNAG, section 3.2: Random, Mutation,
Mutation + Random, and Guided Gen; a Guided Gen that looks near the best while it finds nothing
better; and the ablation with the same generator, whose predictor only sorts the samples.
Strategies without a predictor have modules of their own; STRATEGIES lists them all.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, cycle
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

import numpy as np

from acquisition.base import (
    CandidateStrategy,
    Pool,
    Unwanted,
    draw_unseen,
    fresh,
    incumbent,
    random_unseen,
)
from acquisition.evolution import RegularizedEvolution
from acquisition.local_search import LocalSearch
from acquisition.parzen import ParzenEstimator
from acquisition.reinforce import Reinforce
from nag.calibration import Calibrated
from nag.generate import Samples
from nag.generator import Generator, Guidance, GuidanceForm, GuidanceKind, Part
from nag.guidance import Ladder
from nag.predictors.base import DifferentiablePredictor, FittedPredictor, Observations
from nag.properties import satisfied
from nag.spaces import Architecture, SearchSpace

_MAX_ROUNDS = 3  # batches to generate before a smaller pool is accepted; the first has the size of
# the pool, and the yield of each batch determines the size of the next
_PART = 512  # samples of a larger batch that one generator makes at a time


@dataclass(frozen=True)
class RandomSearch:
    """Uniform draws from the space."""

    space: SearchSpace

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        del observations, predictor
        return Pool(tuple(random_unseen(self.space, n, exclude, rng)))


@dataclass(frozen=True)
class Mutation:
    """Changes one decision of the best architecture, or of the next best once its mutants run out.

    parents: this many of the best are mutated in turn, then as many of the next best.
    """

    space: SearchSpace
    parents: int = 1

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        del predictor
        found: list[Architecture] = []
        best_first = np.argsort(-observations.values, kind="stable")
        for first in range(0, len(best_first), self.parents):
            parents = [observations.archs[i] for i in best_first[first : first + self.parents]]
            mutants = partial(self._mutants, cycle(parents), rng)
            found += draw_unseen(mutants, n - len(found), exclude | set(found))
            if len(found) < n:  # rare mutants may be left
                near = dict.fromkeys(chain(*map(self.space.neighbours, parents)))
                left = fresh(near, exclude | set(found))
                found += [left[i] for i in rng.permutation(len(left))[: n - len(found)]]
            if len(found) == n:
                break
        return Pool(tuple(found))

    def _mutants(
        self, parents: Iterator[Architecture], rng: np.random.Generator
    ) -> list[Architecture]:
        return [self.space.mutate(next(parents), rng)]


@dataclass(frozen=True)
class Union:
    """Half of the pool from each of two strategies."""

    first: CandidateStrategy
    second: CandidateStrategy

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        one = self.first.propose(n // 2, observations, predictor, exclude, rng)
        seen = exclude | set(one.archs)
        two = self.second.propose(n - len(one.archs), observations, predictor, seen, rng)
        return Pool(one.archs + two.archs, {**one.diagnostics, **two.diagnostics})


@dataclass(frozen=True)
class NearAfterFailure:
    """`wide` after an improvement, `near` while the latest evaluations bring none.

    A surrogate is less reliable the farther it extrapolates, and an acquisition function that
    chooses from a wide pool picks the least reliable promises. A trust region (Eriksson et al.,
    TuRBO, NeurIPS 2019) shrinks with every failure; this one has two sizes, the whole space and
    the reach of `near` (docs/adr/0010-near-after-failure.md).

    initial: number of evaluations in the initial design, in which nothing counts as a failure;
        includes those without an observation, which broke down or were stopped.
    patience: this many later evaluations (one batch) without a new best are a failure. If that many
        or more are pending, each evaluation without a new best makes `near` more likely; it is
        certain once there are as many of them as are evaluated at a time.
    """

    wide: CandidateStrategy
    near: CandidateStrategy
    initial: int
    patience: int

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        best = int(np.argmax(observations.values))
        ended = len(exclude.seen) - len(exclude.pending)
        at_a_time = len(exclude.pending) + 1
        failures = min(len(observations) - best - 1, ended - self.initial)
        if at_a_time > self.patience:
            near = bool(rng.random() < failures / at_a_time)
        else:
            near = failures >= self.patience
        strategy = self.near if near else self.wide
        pool = strategy.propose(n, observations, predictor, exclude, rng)
        return replace(pool, diagnostics={**pool.diagnostics, "near": float(near)})


@dataclass(frozen=True)
class GuidedGeneration:
    """Samples of the diffusion model, guided by the predictor (the paper's Guided Gen).

    If constraints leave too few samples, random architectures that satisfy them fill the pool.

    The fields are those of `Guidance` with the same names; optimism keeps its default.
    """

    generator: Generator
    kind: GuidanceKind = "denoised"
    form: GuidanceForm = "value"
    target: float | None = None
    scale: Ladder | Calibrated = field(default_factory=Calibrated)

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        if not isinstance(predictor, DifferentiablePredictor):
            raise TypeError("guidance needs a surrogate predictor with gradients")
        guidance = Guidance(
            predictor,
            observations,
            kind=self.kind,
            form=self.form,
            target=self.target,
            best=incumbent(observations, predictor, exclude),
            scale=self.scale,
            constraints=exclude.constraints,
        )
        pool = _generate_unseen(self.generator, n, exclude, rng, guidance)
        short = n - len(pool.archs)
        if not exclude.constraints or short <= 0:
            return pool
        space = exclude.constraints[0].quantity.space
        return pool.filled(random_unseen(space, short, exclude | set(pool.archs), rng))


@dataclass(frozen=True)
class UnconditionalSorted:
    """Unguided samples: generates `oversample` times as many, keeps the best by predicted mean.

    The ablation "Uncond. + Sorting" (Table 3): the same generator and predictor, but the predictor
    only ranks what was generated.
    """

    generator: Generator
    oversample: int = 4

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        if predictor is None:
            raise TypeError("sorting needs a surrogate predictor")
        pool = _generate_unseen(self.generator, n * self.oversample, exclude, rng, None)
        if not pool.archs:
            return pool
        order = np.argsort(-predictor.predict(pool.archs).mean, kind="stable")[:n]
        return Pool(tuple(pool.archs[i] for i in order), pool.diagnostics)


def _generate_unseen(
    generator: Generator,
    n: int,
    exclude: Unwanted,
    rng: np.random.Generator,
    guidance: Guidance | None,
) -> Pool:
    made: list[Samples] = []
    found: dict[Architecture, None] = {}
    wanted = n
    for _ in range(_MAX_ROUNDS):
        if len(found) >= n:
            break
        samples = _generate(generator, wanted, rng, guidance)
        made += samples
        unique = dict.fromkeys(arch for part in samples for arch in part.unique)
        new = [arch for arch in fresh(unique, exclude) if arch not in found]
        found |= dict.fromkeys(new)
        wanted = min(n, math.ceil((n - len(found)) * wanted / max(len(new), 1)))
        guidance = _informed(guidance, samples[0])
    generated = sum(len(samples.archs) for samples in made)
    valid = [arch for samples in made for arch in samples.valid]
    feasible = {}
    if exclude.constraints and valid:
        feasible = {"feasible": float(satisfied(exclude.constraints, valid).mean())}
    diagnostics = {
        "generated": generated,
        "validity": len(valid) / max(generated, 1),
        "uniqueness": len(set(valid)) / max(len(valid), 1),
        "novelty": len(fresh(set(valid), exclude)) / max(len(set(valid)), 1),
        "score_evaluations": sum(samples.score_evaluations for samples in made),
        "generator_seconds": sum(samples.seconds for samples in made),
        **feasible,
        **(made[0].diagnostics if made else {}),
    }
    return Pool(tuple(found)[:n], diagnostics)


def _generate(
    generator: Generator, n: int, rng: np.random.Generator, guidance: Guidance | None
) -> list[Samples]:
    """n samples, in parts that do not depend on the number of generators.

    The first part finds the guidance scale and predictor for all.
    """
    sizes = [_PART] * (n // _PART) + [n % _PART] * (n % _PART > 0)
    first, *others = (Part(size, seed=int(rng.integers(2**62))) for size in sizes)
    samples = generator.generate(first.n, seed=first.seed, guidance=guidance)
    if not others:
        return [samples]
    return [samples, *generator.generate_parts(others, _informed(guidance, samples))]


def _informed(guidance: Guidance | None, samples: Samples) -> Guidance | None:
    """Guidance that reuses the scale and the predictor found for these samples."""
    if guidance is None or not {"scale_low", "scale_high"} <= samples.diagnostics.keys():
        return guidance
    low, high = (samples.diagnostics[key] for key in ("scale_low", "scale_high"))
    return replace(guidance, scale=Ladder(low, high), noise_aware=samples.noise_aware)


def generate_feasible(
    generator: Generator, n: int, exclude: Unwanted, rng: np.random.Generator
) -> Pool:
    """Samples of the diffusion model that satisfy constraints, without a predictor.

    For an initial design when random draws hardly ever satisfy the constraints.
    """
    none = Observations((), np.empty(0))
    guidance = Guidance(None, none, constraints=exclude.constraints)
    return _generate_unseen(generator, n, exclude, rng, guidance)


class StrategyBuilder(Protocol):
    """Builds a strategy; it may use `guided` or its generator.

    initial, patience: those of `NearAfterFailure`; without patience, nothing is a failure.
    """

    def __call__(
        self, space: SearchSpace, guided: GuidedGeneration, *, initial: int, patience: int | None
    ) -> CandidateStrategy: ...


def _guided(
    space: SearchSpace, guided: GuidedGeneration, *, initial: int, patience: int | None
) -> CandidateStrategy:
    if patience is None:
        return guided
    return NearAfterFailure(guided, Mutation(space), initial, patience)


class Strategy(NamedTuple):
    """A strategy that can be chosen by name.

    what: one line of help.
    generates: whether it uses the diffusion model.
    surrogate: how it uses one. A climbed surrogate needs a gradient, and can lead to a target value
        instead of the best.
    """

    build: StrategyBuilder
    what: str
    generates: bool = False
    surrogate: Literal["climbed", "needed", "optional", "refused"] = "optional"


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "guided": Strategy(
            _guided,
            "samples of the diffusion model guided by the surrogate; mutants of the best after a "
            "batch without improvement",
            generates=True,
            surrogate="climbed",
        ),
        "guided-gen": Strategy(
            lambda space, guided, **_: guided,
            "only guided samples of the diffusion model, as in the paper",
            generates=True,
            surrogate="climbed",
        ),
        "uncond+sort": Strategy(
            lambda space, guided, **_: UnconditionalSorted(guided.generator),
            "unguided samples of the diffusion model, ranked by the surrogate",
            generates=True,
            surrogate="needed",
        ),
        "mutation": Strategy(
            lambda space, guided, **_: Mutation(space),
            "mutants of the best architecture",
        ),
        "mutation+random": Strategy(
            lambda space, guided, **_: Union(Mutation(space), RandomSearch(space)),
            "half mutants of the best architecture, half uniform draws",
        ),
        "mutation-top10+random": Strategy(
            lambda space, guided, **_: Union(Mutation(space, parents=10), RandomSearch(space)),
            "half mutants of the ten best architectures, half uniform draws",
        ),
        "random": Strategy(
            lambda space, guided, **_: RandomSearch(space),
            "uniform draws",
        ),
        "rea": Strategy(
            lambda space, guided, **_: RegularizedEvolution(space),
            "regularized evolution",
        ),
        "local-search": Strategy(
            lambda space, guided, **_: LocalSearch(space),
            "neighbours of the current architecture until one is better",
        ),
        "reinforce": Strategy(
            lambda space, guided, **_: Reinforce(space),
            "policy gradient",
        ),
        "bohb": Strategy(
            lambda space, guided, **_: ParzenEstimator(space),
            "samples of a Parzen estimator, trained briefly first; needs the train evaluator, or a "
            "table with accuracies after 12 epochs",
            surrogate="refused",
        ),
    }
)
