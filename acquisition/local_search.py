"""Local search. White et al., "Exploring the Loss Landscape in Neural Architecture Search", UAI
2021, algorithm 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from acquisition.base import Exclusion, Pool, random_unseen
from nag.predictors.base import FittedPredictor, Observations
from nag.spaces import ABSENT, Architecture, SearchSpace, Stage


def neighbours(space: SearchSpace, arch: Architecture) -> list[Architecture]:
    """All architectures one change of `space.mutate` away, each once."""
    found: list[Architecture] = []
    first = 0
    for stage in space.stages:
        end = first + len(stage.choices)
        before, own, after = arch.ops[:first], arch.ops[first:end], arch.ops[end:]
        found += [Architecture(arch.space, before + ops + after) for ops in _changes(stage, own)]
        first = end
    return found


def _changes(stage: Stage, own: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Another operator in one present slot, or another depth with any operators in new slots."""
    depth = sum(op != ABSENT for op in own)
    for slot in range(depth):
        for op in stage.choices[slot]:
            if op != own[slot]:
                yield (*own[:slot], op, *own[slot + 1 :])
    for other in stage.depths:
        if other != depth:
            absent = (ABSENT,) * (len(own) - other)
            for new in product(*stage.choices[depth:other]):
                yield own[: min(depth, other)] + new + absent


@dataclass(frozen=True)
class LocalSearch:
    """Tries the neighbours of the current architecture, in random order, until one is better.

    The better one is the next current architecture. When no neighbour is better it is a local
    optimum, and the search starts again from a random architecture ("query until lower" in the
    paper).

    All of this is read off the observations: the current architecture is the best since the last
    start, the first of equals; a start is an observation that comes when nothing is left to try
    around the current one. So the search begins at the best of the initial design, and of a batch
    the best member counts. A neighbour that is excluded without a value (it failed, or breaks a
    constraint) counts as tried.
    """

    space: SearchSpace

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Exclusion,
        rng: np.random.Generator,
    ) -> Pool:
        del predictor
        left = self._untried(observations, exclude)
        found = [left[i] for i in rng.permutation(len(left))[:n]]
        starts = random_unseen(self.space, n - len(found), exclude | set(found), rng)
        return Pool((*found, *starts))

    def _untried(self, observations: Observations, exclude: Exclusion) -> list[Architecture]:
        """Neighbours of the current architecture that have not been tried, in a fixed order."""
        position = {arch: i for i, arch in enumerate(observations.archs)}
        best, left = -np.inf, dict[Architecture, None]()
        for i, (arch, value) in enumerate(
            zip(observations.archs, observations.values, strict=True)
        ):
            starts = not left
            left.pop(arch, None)
            if starts or value > best:
                best = value
                left = dict.fromkeys(
                    other
                    for other in neighbours(self.space, arch)
                    if (position[other] > i if other in position else other not in exclude)
                )
        return list(left)
