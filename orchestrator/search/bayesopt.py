"""Bayesian optimisation: fit a surrogate, propose candidates, keep the most promising.

Algorithms 1 and 2 of DiffusionNAG's appendix; the candidate strategy decides which.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from statistics import fmean
from time import perf_counter

import numpy as np

from acquisition.base import (
    CandidateStrategy,
    Pool,
    Unwanted,
    incumbent,
    neighbours_unseen,
    random_unseen,
)
from acquisition.functions import AcquisitionFunction
from acquisition.select import select_batch
from nag.predictors.base import FittedPredictor, Observations, SurrogatePredictor
from nag.predictors.gp import GaussianProcess
from nag.properties import Constraint, Property, satisfied, with_random_limit
from nag.spaces import Architecture, SearchSpace

MIN_OBSERVATIONS = 2  # below this there is nothing to fit
_COUNTS = {"pool", "filled", "generated", "score_evaluations", "generator_seconds"}


@dataclass(frozen=True)
class Suggestion:
    """What to evaluate next, and how it was found."""

    archs: tuple[Architecture, ...]
    strategy: str
    predicted: tuple[tuple[float, float] | None, ...]  # mean, std of each, where predicted
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each phase
    diagnostics: Mapping[str, float] = field(default_factory=dict)  # of the pool
    epochs: int | None = None  # of training for each; None is full training


@dataclass(frozen=True)
class BayesianOptimizer:
    """Stateless: `suggest` is a function of its arguments, so a run can be replayed.

    predictor, acquisition: None for a model-free strategy, all of whose proposals are suggested.
    rare: finds feasible architectures when random draws do not.
    pareto: a quantity that is to be small where the value is large. Each suggested architecture has
        a random upper limit on it, and a pool, of its own, so that together they find the Pareto
        front: the epsilon-constraint method (Haimes et al., IEEE Trans. SMC 1971), randomised as
        the weights of ParEGO are (Knowles, IEEE Trans. Evolutionary Computation 2006). See
        docs/adr/0014-pareto.md.
    """

    space: SearchSpace
    predictor: SurrogatePredictor | None
    strategy: CandidateStrategy
    acquisition: AcquisitionFunction | None
    strategy_name: str
    pool_size: int
    constraints: tuple[Constraint, ...] = ()
    rare: Callable[[int, Unwanted, np.random.Generator], Pool] | None = None
    pareto: Property | None = None

    def initial(
        self, exclude: Set[Architecture], count: int, rng: np.random.Generator
    ) -> Suggestion:
        """Uniform draws that satisfy the constraints, distinct and outside `exclude`."""
        archs = self._random(Unwanted(exclude, self.constraints), count, rng)
        return Suggestion(tuple(archs), "initial", (None,) * len(archs))

    def suggest(
        self,
        observations: Observations,
        exclude: Set[Architecture],
        count: int,
        rng: np.random.Generator,
        pending: Sequence[Architecture] = (),
    ) -> Suggestion:
        """At most `count` architectures outside `exclude`; fewer only if no more are found.

        pending: those being evaluated. They count as observed at their predicted mean (kriging
        believer), so that guidance and acquisition look elsewhere, for something better.
        """
        if len(observations) < MIN_OBSERVATIONS:
            return self.initial(exclude, count, rng)
        limits = [self.constraints]
        if self.pareto is not None:
            limits = [with_random_limit(self.pareto, self.constraints, rng) for _ in range(count)]
            count = 1  # under each
        started = perf_counter()
        predictor = None
        if self.predictor is not None and self.acquisition is not None:
            predictor = self.predictor.fit(observations, rng)
        seconds = perf_counter() - started
        parts: list[Suggestion] = []
        unwanted = Unwanted(exclude, pending=tuple(pending))
        for constraints in limits:
            now = replace(unwanted, constraints=constraints)
            part = self._pick(count, observations, predictor, now, rng)
            parts.append(part)
            unwanted = replace(unwanted | set(part.archs), pending=unwanted.pending + part.archs)
        together = _together(parts, seconds)
        if predictor is not None and len(parts) > 1:  # without the parts being pending
            known = predictor.condition(pending) if pending else predictor
            together = replace(together, predicted=_predictions(known, together.archs))
        if pending:
            diagnostics = {**together.diagnostics, "pending": len(pending)}
            together = replace(together, diagnostics=diagnostics)
        return together

    def _pick(
        self,
        count: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        unwanted: Unwanted,
        rng: np.random.Generator,
    ) -> Suggestion:
        """At most `count` architectures from one pool."""
        constraints, pending = unwanted.constraints, unwanted.pending
        feasible = observations.where(satisfied(constraints, observations.archs))
        started = perf_counter()
        if predictor is None or self.acquisition is None:
            pool = self._pool(count, count, feasible, None, unwanted, rng)
            seconds = {"propose": perf_counter() - started}
            predicted = (None,) * len(pool.archs)
            return Suggestion(pool.archs, self.strategy_name, predicted, seconds, pool.diagnostics)
        best_value = incumbent(observations, predictor, unwanted)
        if pending:
            predictor = predictor.condition(pending)
        fitted = perf_counter()
        pool = self._pool(self.pool_size, count, feasible, predictor, unwanted, rng)
        proposed = perf_counter()
        best = select_batch(pool, predictor, self.acquisition, best_value, count, rng, constraints)
        return Suggestion(
            archs=tuple(candidate.arch for candidate in best),
            strategy=self.strategy_name,
            predicted=tuple((candidate.mean, candidate.std) for candidate in best),
            seconds={
                "fit": fitted - started,
                "propose": proposed - fitted,
                "select": perf_counter() - proposed,
            },
            diagnostics={"pool": len(pool.archs), **pool.diagnostics},
        )

    def _pool(
        self,
        size: int,
        least: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        unwanted: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        """What the strategy proposes, topped up to `least` with random architectures.

        They need not keep the random limit: it may have left none.
        """
        pool = self.strategy.propose(size, observations, predictor, unwanted, rng)
        short = least - len(pool.archs)
        if short <= 0:
            return pool
        unlimited = replace(unwanted | set(pool.archs), constraints=self.constraints)
        return pool.filled(self._random(unlimited, short, rng))

    def _random(
        self, unwanted: Unwanted, count: int, rng: np.random.Generator
    ) -> list[Architecture]:
        archs = random_unseen(self.space, count, unwanted, rng)
        short = count - len(archs)
        if short > 0 and self.rare is not None:
            archs += self.rare(short, unwanted | set(archs), rng).archs
        return archs or neighbours_unseen(self.space, count, unwanted, rng)


def _together(parts: Sequence[Suggestion], fitted: float) -> Suggestion:
    """One suggestion of parts, to which `fitted` seconds are added if they come from a surrogate.

    Seconds and counts are sums; other diagnostics are means.
    """
    names = dict.fromkeys(name for part in parts for name in part.diagnostics)
    diagnostics = {}
    for name in names:
        found = [part.diagnostics[name] for part in parts if name in part.diagnostics]
        diagnostics[name] = sum(found) if name in _COUNTS else fmean(found)
    seconds = {phase: sum(part.seconds[phase] for part in parts) for phase in parts[0].seconds}
    if "fit" in seconds:
        seconds["fit"] += fitted
    return Suggestion(
        tuple(arch for part in parts for arch in part.archs),
        parts[0].strategy,
        tuple(prediction for part in parts for prediction in part.predicted),
        seconds,
        diagnostics,
    )


def with_early_values(
    optimizer: BayesianOptimizer, full: Observations, early: Observations
) -> tuple[BayesianOptimizer, Observations]:
    """The optimizer and the observations to suggest from when trainings are stopped early.

    full: values of complete trainings.
    early: values at an epoch that all trainings reach, complete ones included. The Gaussian
        process treats them as an earlier run on another task. While there are too few full
        values, they are the only observations.
    """
    known = full if len(full) >= MIN_OBSERVATIONS else early
    predictor = optimizer.predictor
    if isinstance(predictor, GaussianProcess) and not set(early.archs) <= set(known.archs):
        of_early = predictor.fit(early, np.random.default_rng(0))
        predictor = replace(predictor, priors=(*predictor.priors, of_early))
    return replace(optimizer, predictor=predictor), known


def _predictions(
    predictor: FittedPredictor, archs: Sequence[Architecture]
) -> tuple[tuple[float, float], ...]:
    found = predictor.predict(archs)
    return tuple(zip(found.mean.tolist(), found.std.tolist(), strict=True))
