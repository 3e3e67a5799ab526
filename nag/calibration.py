"""Self-calibrating guidance scales: no k suits every space, predictor and round.

A small pilot batch is drawn over a wide range of scales k, and the mean of g is fitted by

    g(k) = start + (top - start) k / (k + k_half)

k / (k + k_half) is the *progress* of a scale: how far it moves from unguided samples (0) to the
best that guidance can reach (1). Scales are specified by their progress, which needs no tuning:
multiplying g by a constant divides k by the same constant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nag.errors import UserError
from nag.guidance import Ladder

PILOT_SIZE = 64
PILOT_STEPS = 10
_RANGE = (0.03, 300.0)  # scales tried, in units of 1 / standard deviation of g over the space


@dataclass(frozen=True)
class Calibrated:
    """A `Ladder` from the scale with progress `low` to that with progress `high`, in (0, 1)."""

    low: float = 0.3
    high: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < 1:
            raise UserError(
                f"progress must satisfy 0 < low <= high < 1, not {self.low}, {self.high}"
            )

    def ladder(
        self, reference: NDArray[np.float64], pilot: Callable[[Ladder], NDArray[np.float64]]
    ) -> Ladder:
        """Find the scales.

        reference: (M,) g of random architectures; its spread is the unit of 1 / k.
        pilot: scales -> (P,) g of P guided samples, nan for an invalid one.
        """
        spread = float(reference.std())
        if not spread > 1e-12:  # g is constant: nothing to climb
            return Ladder(1.0, 1.0)
        wide = Ladder(_RANGE[0] / spread, _RANGE[1] / spread)
        half = half_way(wide, pilot(wide))
        return Ladder(*(half * progress / (1 - progress) for progress in (self.low, self.high)))


def half_way(scales: Ladder, g: NDArray[np.float64]) -> float:
    """k_half by least squares, from g (P,) of samples along the ladder, nan if invalid."""
    k = np.geomspace(scales.low, scales.high, len(g))
    k, g = k[np.isfinite(g)], g[np.isfinite(g)]
    middle = math.sqrt(scales.low * scales.high)
    if len(g) < 3:
        return middle
    half = np.geomspace(scales.low, scales.high, 200)
    progress = k / (k + half[:, None])  # (200, P)
    progress -= progress.mean(1, keepdims=True)
    gain = g - g.mean()
    slope = np.maximum((progress * gain).sum(1) / (progress**2).sum(1), 0)  # top - start
    if not slope.any():  # no scale gains anything
        return middle
    error = ((gain - slope[:, None] * progress) ** 2).sum(1)
    return float(half[int(error.argmin())])
