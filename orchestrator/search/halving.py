"""Successive halving: train many architectures briefly, then the best of them in full.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016, with two rungs; with candidates from a Parzen estimator this is BOHB.
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
    """A bracket is two rounds: `eta` times the batch briefly, then the best 1/`eta` in full.

    Stateless: every call is given the rung of the last round.

    candidates: proposes what to train briefly. It learns from the values of full training once
        there are at least `enough` of them, until then from those of brief training.
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

        observations, low: from full and from brief training.
        rung: from the last round, if that was one of brief training.
        """
        if len(rung):
            best = np.argsort(-rung.values, kind="stable")[: math.ceil(len(rung) / self.eta)]
            archs = tuple(rung.archs[i] for i in best)
            return Suggestion(archs, self.candidates.strategy_name, (None,) * len(archs))
        known = observations if len(observations) >= self.enough else low
        found = self.candidates.suggest(known, exclude, self.eta * count, rng)
        return replace(found, epochs=self.epochs)
