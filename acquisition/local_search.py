"""Local search. White et al., "Exploring the Loss Landscape in Neural Architecture Search", UAI
2021, algorithm 1.
"""

from dataclasses import dataclass

import numpy as np

from acquisition.base import Pool, Unwanted, fresh, random_unseen
from nag.predictors.base import FittedPredictor, Observations
from nag.spaces import Architecture, SearchSpace


@dataclass(frozen=True)
class LocalSearch:
    """Tries the neighbours of the current architecture, in random order, until one is better.

    The better one becomes the current architecture. If no neighbour is better, the current one is
    a local optimum, and the search restarts from a random architecture ("query until lower" in the
    paper).

    All state is derived from the observations. The current architecture is the best since the last
    start, the first of several; a start is an observation made when no neighbour of the current one
    was left to try. So the search begins at the best of the initial design, and the best member of
    a batch counts. A neighbour that is excluded without a value (it failed, or violates a
    constraint) counts as tried.
    """

    space: SearchSpace

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        del predictor
        left = self._untried(observations, exclude)
        found = [left[i] for i in rng.permutation(len(left))[:n]]
        starts = random_unseen(self.space, n - len(found), exclude | set(found), rng)
        return Pool((*found, *starts))

    def _untried(self, observations: Observations, exclude: Unwanted) -> list[Architecture]:
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
                near = self.space.neighbours(arch)
                new = set(fresh(near, exclude))
                left = dict.fromkeys(
                    other
                    for other in near
                    if (position[other] > i if other in position else other in new)
                )
        return list(left)
