"""The interface of candidate strategies, and draws of unseen architectures."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import compress
from types import MappingProxyType
from typing import Protocol

import numpy as np

from nag.predictors.base import FittedPredictor, Observations
from nag.properties import Constraint, satisfied
from nag.spaces import Architecture, SearchSpace

_PATIENCE = 50  # successive calls without a new architecture before a source counts as dry
MIN_DRAWS = 100  # architectures per call, so that the last rare ones are found


@dataclass(frozen=True)
class Unwanted:
    """What must not be proposed: seen architectures, and those that violate a constraint.

    pending: the seen architectures that are still being evaluated.
    """

    seen: Set[Architecture]
    constraints: tuple[Constraint, ...] = ()
    pending: tuple[Architecture, ...] = ()

    def __or__(self, more: Set[Architecture]) -> "Unwanted":
        return replace(self, seen=self.seen | more)


@dataclass(frozen=True)
class Pool:
    """Distinct, previously unseen architectures, and diagnostics on how they were found."""

    archs: tuple[Architecture, ...]
    diagnostics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def filled(self, more: Sequence[Architecture]) -> "Pool":
        """Add `more`, drawn at random because the pool was too small, and count them."""
        count = self.diagnostics.get("filled", 0) + len(more)
        return Pool(self.archs + tuple(more), {**self.diagnostics, "filled": count})


class CandidateStrategy(Protocol):
    """Stateless: equal arguments give equal pools.

    A model-free strategy ignores `predictor`, which may then be None, and reconstructs its state
    from the observations, which are ordered by trial.
    """

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        """At most n valid, distinct architectures outside `exclude`; fewer if it runs out."""
        ...


def incumbent(observations: Observations, predictor: FittedPredictor, exclude: Unwanted) -> float:
    """The value to improve on: the best of those that keep the constraints; the worst if none does.

    Pending points that keep them count with their predicted mean.
    """
    kept = observations.values[satisfied(exclude.constraints, observations.archs)]
    best = float(kept.max() if len(kept) else observations.values.min())
    pending = list(compress(exclude.pending, satisfied(exclude.constraints, exclude.pending)))
    if not pending:
        return best
    return max(best, float(predictor.predict(pending).mean.max()))


def fresh(archs: Iterable[Architecture], exclude: Unwanted) -> list[Architecture]:
    """Those of `archs` outside `exclude`, in order; constraints are checked in one batch."""
    unseen = [arch for arch in archs if arch not in exclude.seen]
    return list(compress(unseen, satisfied(exclude.constraints, unseen)))


def draw_unseen(
    draw: Callable[[], Iterable[Architecture]], n: int, exclude: Unwanted
) -> list[Architecture]:
    """Call `draw` until it has yielded n new architectures, or none in `_PATIENCE` calls."""
    found: dict[Architecture, None] = {}
    idle = 0
    while len(found) < n and idle < _PATIENCE:
        before = len(found)
        found |= dict.fromkeys(fresh(draw(), exclude))
        idle = 0 if len(found) > before else idle + 1
    return list(found)[:n]


def random_unseen(
    space: SearchSpace, n: int, exclude: Unwanted, rng: np.random.Generator
) -> list[Architecture]:
    """n uniform draws, distinct and outside `exclude`; fewer if no more are found."""
    return draw_unseen(lambda: space.sample(max(n, MIN_DRAWS), rng), n, exclude)


def neighbours_unseen(
    space: SearchSpace, n: int, exclude: Unwanted, rng: np.random.Generator
) -> list[Architecture]:
    """n neighbours of seen architectures, distinct and outside `exclude`; fewer if there are fewer.

    Finds the last architectures of a large space, which random draws miss.
    """
    near = {other for arch in exclude.seen for other in space.neighbours(arch)}
    left = sorted(fresh(near, exclude), key=lambda arch: arch.ops)
    return [left[i] for i in rng.permutation(len(left))[:n]]
