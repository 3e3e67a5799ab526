"""Successive halving: many architectures are trained briefly, the best of them in full.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016, with two rungs; with candidates of a Parzen estimator it is BOHB's.
"""

import math
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np

from nag.predictors.base import Observations
from nag.spaces import Architecture
from orchestrator.search.bayesopt import BayesianOptimizer, Suggestion


@dataclass(frozen=True)
class SuccessiveHalving:
    """A bracket is two rounds: `eta` times the batch briefly, then the best of every `eta` in full.

    Stateless: it sees the rung that the last round left.

    candidates: proposes what is trained briefly. It learns from values of full training, where
        there are at least `enough` of them, else from the others.
    epochs: of brief training.
    """

    candidates: BayesianOptimizer
    epochs: int
    enough: int
    eta: int = 3

    def initial(
        self, exclude: Set[Architecture], count: int, rng: np.random.Generator
    ) -> Suggestion:
        """Random architectures, trained in full."""
        return self.candidates.initial(exclude, count, rng)

    def suggest(
        self,
        observations: Observations,
        low: Observations,
        rung: Observations,
        exclude: Set[Architecture],
        count: int,
        rng: np.random.Generator,
    ) -> Suggestion:
        """The next round.

        observations, low: of full and of brief training.
        rung: of the last round, if that was one of brief training.
        """
        if len(rung):
            best = np.argsort(-rung.values, kind="stable")[: math.ceil(len(rung) / self.eta)]
            archs = tuple(rung.archs[i] for i in best)
            return Suggestion(archs, self.candidates.strategy_name, (None,) * len(archs))
        known = observations if len(observations) >= self.enough else low
        found = self.candidates.suggest(known, exclude, self.eta * count, rng)
        return replace(found, epochs=self.epochs)
