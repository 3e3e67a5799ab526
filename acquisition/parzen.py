"""The model of BOHB: a tree-structured Parzen estimator with one joint density over all decisions.

Falkner, Klein & Hutter, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale", ICML
2018, section 3.2 and algorithm 2; kernels: Aitchison & Aitken, Biometrika 1976.

Shapes: n, m architectures, D decisions (`acquisition.decisions`), at most K options.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from acquisition.base import Pool, Unwanted, draw_unseen, fresh, random_unseen
from acquisition.decisions import draw, one_hot, options
from nag.predictors.base import FittedPredictor, Observations
from nag.spaces import Architecture, SearchSpace

_MIN_BANDWIDTH = 1e-3

Kernels = NDArray[np.float64]  # (n, D, K): around each of n architectures, each decision's law


@dataclass(frozen=True)
class ParzenEstimator:
    """Draws from the density l of good architectures; proposes the draw with the largest l / g.

    Of N observations, l is the density of the best N_l = max(D + 1, share N), and g that of the
    worst max(D + 1, N - N_l). With fewer than D + 3 observations, architectures are random.

    Defaults follow the NATS-Bench baseline (Dong et al., TPAMI 2021), share follows the paper.
    draws: draws from l per proposed architecture.
    share: fraction of the observations that counts as good.
    widening: factor on the bandwidths of l for these draws.
    """

    space: SearchSpace
    draws: int = 4
    share: float = 0.15
    widening: float = 3.0

    @property
    def _min_part(self) -> int:
        """D + 1, where D counts the decisions with more than one option."""
        return sum(len(option) > 1 for option in options(self.space)) + 1

    @property
    def min_points(self) -> int:
        """Minimum number of observations for a model."""
        return self._min_part + 2

    def propose(
        self,
        n: int,
        observations: Observations,
        predictor: FittedPredictor | None,
        exclude: Unwanted,
        rng: np.random.Generator,
    ) -> Pool:
        del predictor
        if len(observations) < self.min_points:
            return Pool(tuple(random_unseen(self.space, n, exclude, rng)))
        good, bad = self.parts(observations)
        wide = kernels(self.space, good, self.widening)
        good, bad = kernels(self.space, good), kernels(self.space, bad)

        def best() -> list[Architecture]:
            around = rng.integers(len(wide), size=self.draws)
            drawn = fresh((draw(self.space, wide[i], 1, rng)[0] for i in around), exclude)
            if not drawn:
                return []
            chosen = one_hot(self.space, drawn)
            ratio = log_density(good, chosen) - log_density(bad, chosen)
            return [drawn[int(ratio.argmax())]]

        return Pool(tuple(draw_unseen(best, n, exclude)))

    def parts(self, observations: Observations) -> tuple[Kernels, Kernels]:
        """The choices of good and bad architectures; with few observations some are both."""
        total = len(observations)
        num_good = max(self._min_part, int(self.share * total))
        num_bad = max(self._min_part, total - num_good)
        best_first = np.argsort(-observations.values, kind="stable")
        chosen = one_hot(self.space, observations.archs)[best_first]
        return chosen[:num_good], chosen[total - num_bad :]


def kernels(space: SearchSpace, chosen: NDArray[np.float64], widening: float = 1.0) -> Kernels:
    """The kernel of each of `chosen` (n, D, K), one-hot.

    For a decision with c options, the chosen option has probability 1 - h and each other option
    h / (c - 1). For the operator of an absent slot, each option has probability 1 / c.

    h = 1.06 s n^(-1 / (4 + D)) (the normal reference rule), capped at (c - 1) / c, where all
    options are equally likely. s^2, half the probability that two of n choices differ, is the
    categorical analogue of the variance, which is half the mean squared difference.
    """
    sizes = np.array([len(option) for option in options(space)])[:, None]  # (D, 1)
    allowed = np.arange(chosen.shape[-1]) < sizes  # (D, K)
    made = chosen.sum(-1, keepdims=True)  # (n, D, 1)
    shares = chosen.sum(0) / np.maximum(made.sum(0), 1)  # (D, K)
    spread = np.sqrt((1 - (shares**2).sum(-1, keepdims=True)) / 2)
    rate = len(chosen) ** (-1 / (4 + np.count_nonzero(sizes > 1)))
    bandwidth = np.maximum(1.06 * spread * rate, _MIN_BANDWIDTH) * widening
    bandwidth = np.minimum(bandwidth, (sizes - 1) / sizes)
    near = chosen * (1 - bandwidth) + (allowed - chosen) * bandwidth / np.maximum(sizes - 1, 1)
    return np.where(made > 0, near, allowed / sizes)


def log_density(around: Kernels, chosen: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) log of the mean over n kernels of the product over decisions, at `chosen` (m, D, K).

    Operators of absent slots are left out of the product.
    """
    laws = np.einsum("mdk,ndk->mnd", chosen, around)
    made = chosen.sum(-1)[:, None] > 0  # (m, 1, D)
    found = logsumexp(np.log(np.where(made, laws, 1.0)).sum(-1), axis=1)
    return np.asarray(found - np.log(len(around)))
