"""REINFORCE. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist
Reinforcement Learning", Machine Learning 1992; as an architecture-search baseline: Ying et al.,
"NAS-Bench-101", ICML 2019, and Dong & Yang, "NAS-Bench-201", ICLR 2020.

Shapes: n architectures, D decisions, at most K options.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from acquisition.base import MIN_DRAWS, Pool, Unwanted, draw_unseen
from acquisition.decisions import draw, one_hot, options
from nag.predictors.base import FittedPredictor, Observations
from nag.spaces import Architecture, SearchSpace

_ADAM = 0.9, 0.999, 1e-8  # beta_1, beta_2, epsilon


@dataclass(frozen=True)
class Reinforce:
    """Draws from a categorical distribution per decision, trained by its policy gradient.

    For every observation, in order, Adam (Kingma & Ba, ICLR 2015) takes one ascent step along

    (value - b) grad log pi(arch),  log pi(arch) = sum of log softmax(logits) over chosen options

    where b is the moving average of the values, including this one.

    learning_rate: of Adam. Each evaluation moves a logit by about this much, so 0.1 lets the policy
    settle within the hundred evaluations of a run here; the benchmarks train for many hundreds.
    momentum: of the moving average.
    """

    space: SearchSpace
    learning_rate: float = 0.1
    momentum: float = 0.9

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        del predictor
        policy = self.policy(observations)

        def sample() -> list[Architecture]:
            return draw(self.space, policy, max(n, MIN_DRAWS), rng)

        return Pool(tuple(draw_unseen(sample, n, exclude)))

    def policy(self, observations: Observations) -> NDArray[np.float64]:
        """(D, K) probabilities after all observations, zero beyond the options."""
        sizes = np.array([len(choice) for choice in options(self.space)])
        beyond = np.arange(sizes.max()) >= sizes[:, None]
        logits = np.where(beyond, -np.inf, 0.0)
        first = second = np.zeros(logits.shape)
        decay1, decay2, epsilon = _ADAM
        advantages = self._advantages(observations.values)
        chosen = one_hot(self.space, observations.archs)
        for t, (advantage, choice) in enumerate(zip(advantages, chosen, strict=True), start=1):
            made = choice.sum(-1, keepdims=True)  # (D, 1)
            gradient = advantage * (choice - made * softmax(logits, -1))
            first = decay1 * first + (1 - decay1) * gradient
            second = decay2 * second + (1 - decay2) * gradient**2
            scale = np.sqrt(second / (1 - decay2**t)) + epsilon
            logits = logits + self.learning_rate * first / (1 - decay1**t) / scale
        return softmax(logits, -1)

    def _advantages(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) values minus their moving average."""
        averages, total, weight = [], 0.0, 0.0
        for value in values.tolist():
            total = self.momentum * total + (1 - self.momentum) * value
            weight = self.momentum * weight + (1 - self.momentum)
            averages.append(total / weight)
        return values - np.array(averages)
