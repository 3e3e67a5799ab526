"""Bayesian optimisation: fit a surrogate, propose candidates, keep the most promising.

Algorithms 1 and 2 of DiffusionNAG's appendix; which of them is the candidate strategy's choice.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from acquisition.functions import AcquisitionFunction
from acquisition.select import Candidate, select_batch
from acquisition.strategies import (
    CandidateStrategy,
    ConstrainedGeneration,
    Pool,
    Unwanted,
    random_unseen,
)
from nag.predictors.base import Observations, SurrogatePredictor
from nag.properties import Constraint, satisfied
from nag.spaces import Architecture, SearchSpace

MIN_OBSERVATIONS = 2  # below this there is nothing to fit


@dataclass(frozen=True)
class Suggestion:
    """What to evaluate next, and how that was found."""

    archs: tuple[Architecture, ...]
    strategy: str
    predicted: tuple[tuple[float, float] | None, ...]  # mean, std of each, where predicted
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each phase
    diagnostics: Mapping[str, float] = field(default_factory=dict)  # of the pool


@dataclass(frozen=True)
class BayesianOptimizer:
    """Stateless: `suggest` is a function of its arguments, so a run can be replayed."""

    space: SearchSpace
    predictor: SurrogatePredictor
    strategy: CandidateStrategy
    acquisition: AcquisitionFunction
    strategy_name: str
    pool_size: int
    constraints: tuple[Constraint, ...] = ()
    rare: ConstrainedGeneration | None = None  # finds what satisfies them when random draws do not

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
    ) -> Suggestion:
        """At most `count` architectures outside `exclude`; fewer only where no more are found."""
        if len(observations) < MIN_OBSERVATIONS:
            return self.initial(exclude, count, rng)
        started = perf_counter()
        predictor = self.predictor.fit(observations, rng)
        fitted = perf_counter()
        unwanted = Unwanted(exclude, self.constraints)
        feasible = observations.where(satisfied(self.constraints, observations.archs))
        pool = self.strategy.propose(self.pool_size, feasible, predictor, unwanted, rng)
        short = count - len(pool.archs)
        if short > 0:  # the source is dry: fill up with random architectures
            fill = self._random(unwanted | set(pool.archs), short, rng)
            pool = Pool(pool.archs + tuple(fill), {**pool.diagnostics, "filled": len(fill)})
        proposed = perf_counter()
        best = select_batch(
            pool, predictor, self.acquisition, feasible.best, count, rng, self.constraints
        )
        return Suggestion(
            archs=tuple(candidate.arch for candidate in best),
            strategy=self.strategy_name,
            predicted=tuple(_prediction(candidate) for candidate in best),
            seconds={
                "fit": fitted - started,
                "propose": proposed - fitted,
                "select": perf_counter() - proposed,
            },
            diagnostics={"pool": len(pool.archs), **pool.diagnostics},
        )

    def _random(
        self, unwanted: Unwanted, count: int, rng: np.random.Generator
    ) -> list[Architecture]:
        archs = random_unseen(self.space, count, unwanted, rng)
        short = count - len(archs)
        if short > 0 and self.rare is not None:
            none = Observations((), np.empty(0))
            archs += self.rare.propose(short, none, None, unwanted | set(archs), rng).archs
        return archs


def _prediction(candidate: Candidate) -> tuple[float, float]:
    return candidate.mean, candidate.std
