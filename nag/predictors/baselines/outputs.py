"""Monotone transforms of observed values to z with zero mean and unit variance, and back.

A surrogate is fitted to z. Its Gaussian in z becomes a Gaussian in values with the same median and
the same probability of improving on the best observation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray
from scipy.special import boxcox, boxcox1p, inv_boxcox, inv_boxcox1p

from nag.predictors.base import Prediction

Map = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_TINY = 1e-12  # a smaller spread, relative to the largest value, counts as zero
_STEP = 1e-3  # of z, or of the range of values, for slopes


@dataclass(frozen=True)
class Outputs:
    """value = inverse(mean + std z), increasing in z."""

    z: NDArray[np.float64]  # (n,) z of the observations
    inverse: Map
    mean: float
    std: float

    @classmethod
    def of(cls, u: NDArray[np.float64], inverse: Map) -> "Outputs":
        """From the transformed values u (n,) and the inverse of the transform."""
        mean, std = float(u.mean()), float(u.std())
        std = std if std > _TINY * np.abs(u).max() else 1.0
        return cls((u - mean) / std, inverse, mean, std)

    def values(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """z to values."""
        return self.inverse(self.mean + self.std * z)

    def prediction(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Prediction:
        """Map a Gaussian in z to one in values: the slope is that of the chord to the best."""
        best = float(self.z.max())
        end = np.where(np.abs(best - mean) > _STEP, best, mean + _STEP)
        value = self.values(mean)
        slope = (self.values(end) - value) / (end - mean)
        least = _TINY * (np.ptp(self.values(self.z)) or 1.0)
        return Prediction(value, np.maximum(slope * std, least))


def standardised(values: NDArray[np.float64]) -> Outputs:
    """Standardisation only."""
    return Outputs.of(values, lambda u: u)


def log_error(values: NDArray[np.float64]) -> Outputs:
    """u = -log(1 - value), for accuracies; standardisation only if a value is not in [0, 1)."""
    if values.min() < 0 or values.max() >= 1:
        return standardised(values)
    return Outputs.of(-np.log1p(-values), lambda u: -np.expm1(-u))


def power(values: NDArray[np.float64]) -> Outputs:
    """The maximum-likelihood power transform: Box-Cox if all values are positive; otherwise, or if
    that fails, Yeo-Johnson of values / std. Standardisation only if both fail.

    Beyond the observed values, where the inverse need not exist, it continues as a straight line.
    Box & Cox, JRSS B 1964; Yeo & Johnson, Biometrika 2000.
    """
    if values.std() <= _TINY * np.abs(values).max():
        return standardised(values)
    with np.errstate(all="ignore"):
        for fit in (_box_cox, _yeo_johnson):
            u, inverse = fit(values)
            found = Outputs.of(u, _continued(inverse, float(u.min()), float(u.max())))
            if np.allclose(found.values(found.z), values, rtol=0, atol=1e-6 * np.ptp(values)):
                return found
    return standardised(values)


def _box_cox(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], Map]:
    """Transform values / max: this leaves the exponent unchanged and cannot overflow."""
    top = float(values.max())
    if values.min() <= 0:
        return np.full_like(values, np.nan), lambda u: u
    exponent = float(scipy.stats.boxcox_normmax(values / top, method="mle"))
    return _float(boxcox(values / top, exponent)), lambda u: top * _float(inv_boxcox(u, exponent))


def _yeo_johnson(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], Map]:
    scale = float(values.std())
    exponent = float(scipy.stats.yeojohnson_normmax(values / scale))

    def forward(y: NDArray[np.float64]) -> NDArray[np.float64]:
        up, down = np.maximum(y, 0), np.maximum(-y, 0)
        return _float(boxcox1p(up, exponent) - boxcox1p(down, 2 - exponent))

    def inverse(u: NDArray[np.float64]) -> NDArray[np.float64]:
        up, down = np.maximum(u, 0), np.maximum(-u, 0)
        return _float(scale * (inv_boxcox1p(up, exponent) - inv_boxcox1p(down, 2 - exponent)))

    return forward(values / scale), inverse


def _float(x: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(x, dtype=np.float64)


def _continued(f: Map, low: float, high: float) -> Map:
    """f between `low` and `high`; beyond them, its secant at that end."""
    step = _STEP * (high - low)
    points = np.array([low, low + step, high - step, high])
    at_low, after_low, before_high, at_high = f(points)
    slopes = (after_low - at_low) / step, (at_high - before_high) / step

    def continued(u: NDArray[np.float64]) -> NDArray[np.float64]:
        below, above = np.minimum(u - low, 0), np.maximum(u - high, 0)
        return f(np.clip(u, low, high)) + slopes[0] * below + slopes[1] * above

    return continued
