"""Acquisition functions: how promising an architecture is to evaluate, given its prediction.

Notation: mean, std (B,) of the prediction; best, the best observed value, in the same unit; larger
is better everywhere. z = (mean - best) / std; phi, Phi: the standard normal density and cdf.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr

from nag.predictors.base import Prediction

_LOG_SQRT_2PI = math.log(2 * math.pi) / 2
_FAR = -(float(np.finfo(float).eps) ** -0.25)


class AcquisitionFunction(Protocol):
    """Scores predictions; only the order of the scores is meaningful."""

    @property
    def what(self) -> str:
        """A few words for the help text."""
        ...

    @property
    def is_logarithm(self) -> bool:
        """Whether scores are logarithms, to which a log probability can be added."""
        ...

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(B,) scores, larger is better; `rng` is the only source of randomness."""
        ...


def log_h(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(phi(z) + z Phi(z)), accurate for all z.

    For z < 0 it is log phi(z) + log(1 - r) with r = |z| Phi(z) / phi(z) = |z| sqrt(pi / 2)
    erfcx(-z / sqrt 2), which does not underflow. But 1 - r = z^-2 + O(z^-4) suffers cancellation,
    so the leading term takes over where the two errors are equal, at z = -eps^(-1/4).
    Ament et al., "Unexpected Improvements to Expected Improvement", NeurIPS 2023, eq. 9.
    """
    log_phi = -(z**2) / 2 - _LOG_SQRT_2PI
    near, middle, far = np.maximum(z, -1), np.clip(z, _FAR, -1), np.minimum(z, -1)
    r = -middle * math.sqrt(math.pi / 2) * erfcx(-middle / math.sqrt(2))
    return np.select(
        [z > -1, z > _FAR],
        [
            np.log(np.exp(-(near**2) / 2 - _LOG_SQRT_2PI) + near * ndtr(near)),
            log_phi + np.log1p(-r),
        ],
        log_phi - 2 * np.log(-far),
    )


@dataclass(frozen=True)
class ExpectedImprovement:
    """Logarithm of the expected improvement on the best observed value.

    log E[max(f - best, 0)] = log std + log_h(z)

    The logarithm preserves the order where the improvement itself underflows to 0.
    Jones et al., J. Global Optimization 1998; Ament et al., NeurIPS 2023.
    """

    what: ClassVar[str] = "expected improvement"
    is_logarithm: ClassVar[bool] = True

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        del rng
        z = (prediction.mean - best) / prediction.std
        return np.log(prediction.std) + log_h(z)


@dataclass(frozen=True)
class ProbabilityOfImprovement:
    """Logarithm of the probability of exceeding the best observed value.

    log P(f > best) = log Phi(z)

    Kushner, J. Basic Engineering 1964.
    """

    what: ClassVar[str] = "probability of improvement"
    is_logarithm: ClassVar[bool] = True

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        del rng
        return log_ndtr((prediction.mean - best) / prediction.std)


@dataclass(frozen=True)
class UpperConfidenceBound:
    """An optimistic value.

    mean + beta std

    Note that beta multiplies the standard deviation. Srinivas et al., ICML 2010.
    """

    what: ClassVar[str] = "upper confidence bound"
    is_logarithm: ClassVar[bool] = False
    beta: float = 0.5

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        del best, rng
        return prediction.mean + self.beta * prediction.std


@dataclass(frozen=True)
class IndependentThompsonSampling:
    """One draw from every marginal, independent of the others.

    mean + std epsilon,  epsilon ~ N(0, 1)

    White et al., "BANANAS", AAAI 2021.
    """

    what: ClassVar[str] = "independent Thompson sampling"
    is_logarithm: ClassVar[bool] = False

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        del best
        return rng.normal(prediction.mean, prediction.std)


@dataclass(frozen=True)
class MultiObjectiveEnsemble:
    """Several acquisition functions at once: a random member of their Pareto front.

    Non-dominated candidates come first; within both groups the order is random:

        score = u - [is dominated],  u ~ U[0, 1)

    MACE (Lyu et al., ICML 2018) as in HEBO (Cowen-Rivers et al., JAIR 2022), over a pool. The
    members are those of this module; HEBO also adds observation noise to the predicted mean,
    measures improvement against the predicted mean of the best, and lets beta grow over time.
    """

    what: ClassVar[str] = "Pareto front of EI, PI and UCB"
    is_logarithm: ClassVar[bool] = False
    members: tuple[AcquisitionFunction, ...] = (
        ExpectedImprovement(),
        ProbabilityOfImprovement(),
        UpperConfidenceBound(beta=2.0),
    )

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        scores = np.stack([f(prediction, best=best, rng=rng) for f in self.members], axis=1)
        return rng.random(len(scores)) - dominated(scores)


@dataclass(frozen=True)
class TargetLikelihood:
    """Logarithm of the predictive density at a target: seeks that value, not the largest.

    log N(target; mean, std^2) = -log std - (target - mean)^2 / (2 std^2) - log sqrt(2 pi)

    The expected improvement of |f - target| over the best distance d so far tends to d^2 times this
    density as d tends to 0, and a search for a target soon gets that close. The density is simpler,
    and unlike that improvement it is not 0 everywhere once the target is met exactly. Of two equal
    means, the one with the larger std scores better only if it is over one std from the target.
    """

    what: ClassVar[str] = "likelihood of --target; used if and only if --target is given"
    is_logarithm: ClassVar[bool] = True
    target: float

    def __call__(
        self, prediction: Prediction, *, best: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        del best, rng
        z = (self.target - prediction.mean) / prediction.std
        return -np.log(prediction.std) - z**2 / 2 - _LOG_SQRT_2PI


def dominated(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(B,) whether another candidate is as good in all objectives (B, K) and better in at least
    one."""
    found = np.zeros(len(scores), dtype=bool)
    front, size = np.empty_like(scores), 0
    for i in np.lexsort(-scores.T[::-1]):  # a candidate comes after all those that dominate it
        best = front[:size]
        found[i] = ((best >= scores[i]).all(1) & (best > scores[i]).any(1)).any()
        if not found[i]:
            front[size] = scores[i]
            size += 1
    return found


ACQUISITIONS: Mapping[str, AcquisitionFunction] = MappingProxyType(
    {
        "ei": ExpectedImprovement(),
        "pi": ProbabilityOfImprovement(),
        "its": IndependentThompsonSampling(),
        "ucb": UpperConfidenceBound(),
        "mace": MultiObjectiveEnsemble(),
    }
)
