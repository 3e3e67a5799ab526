"""Regularized evolution. Real et al., "Regularized Evolution for Image Classifier Architecture
Search", AAAI 2019, algorithm 1.
"""

from dataclasses import dataclass

import numpy as np

from acquisition.base import Pool, Unwanted, draw_unseen, random_unseen
from nag.predictors.base import FittedPredictor, Observations
from nag.spaces import Architecture, SearchSpace


@dataclass(frozen=True)
class RegularizedEvolution:
    """Mutates the winner of a tournament in the population; the child replaces the oldest member.

    So the population is the last `population` observations. While there are fewer, architectures
    are random. All children of a batch come from the same population.

    The default sizes are those of the NAS-Bench-201 baselines (Dong & Yang, ICLR 2020).
    population: population size, P in the paper.
    tournament: members drawn with replacement; the best of them is mutated. S in the paper.
    """

    space: SearchSpace
    population: int = 10
    tournament: int = 3

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        del predictor
        if len(observations) < self.population:
            return Pool(tuple(random_unseen(self.space, n, exclude, rng)))
        archs = observations.archs[-self.population :]
        values = observations.values[-self.population :]

        def child() -> list[Architecture]:
            contenders = rng.integers(self.population, size=self.tournament)
            winner = contenders[np.argmax(values[contenders])]
            return [self.space.mutate(archs[winner], rng)]

        return Pool(tuple(draw_unseen(child, n, exclude)))
