"""Pareto fronts of a value, which should be large, and an amount, which should be small.

A trial without an amount or a value, NaN, is on no front.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_MARGIN = 0.1  # of the extent of a front, so that its ends count


def pareto_front(amounts: Numbers, values: Numbers) -> NDArray[np.int64]:
    """Which of (n,) are better than all with the same or a smaller amount, by rising amount."""
    amounts, values = _known(amounts, values)
    order = np.lexsort((-values, amounts))
    best_below = np.maximum.accumulate(np.append(-np.inf, values[order]))[:-1]
    return order[values[order] > best_below]


def hypervolume(amounts: Numbers, values: Numbers, most: float, least: float) -> float:
    """Area between the front of (n,) points and the corner (`most` amount, `least` value).

    Zitzler & Thiele, IEEE Trans. Evolutionary Computation 1999. Points beyond the corner count as
    far as they reach it.
    """
    front = pareto_front(amounts, values)
    edges = np.minimum(np.append(amounts[front], most), most)
    return float(np.diff(edges) @ np.maximum(values[front] - least, 0.0))


@dataclass(frozen=True)
class Front:
    """A front against which searches are measured.

    first: its smallest amount.
    most, least: amount and value of the corner up to which hypervolumes are taken: beyond the ends
        of the front by a tenth of its extent.
    whole: its own hypervolume.
    """

    first: float
    most: float
    least: float
    whole: float

    @classmethod
    def of(cls, amounts: Numbers, values: Numbers) -> "Front | None":
        """The front of (n,) trials; None if none has an amount and a value."""
        front = pareto_front(amounts, values)
        if not len(front):
            return None
        most = float(amounts[front[-1]]) + _margin(amounts[front])
        least = float(values[front[0]]) - _margin(values[front])
        return cls(float(amounts[front[0]]), most, least, hypervolume(amounts, values, most, least))

    def progress(self, amounts: Numbers, values: Numbers) -> Numbers:
        """Hypervolume after each of (n,) trials, as a share of this front's.

        NaN before the first trial with an amount and a value.
        """
        found = np.full(len(values), np.nan)
        x, y, share = np.empty(0), np.empty(0), np.nan  # the front so far, and its hypervolume
        for i, (amount, value) in enumerate(zip(amounts, values, strict=True)):
            if not ((x <= amount) & (y >= value)).any():  # most trials are not on the front
                x, y = np.append(x, amount), np.append(y, value)
                front = pareto_front(x, y)
                x, y = x[front], y[front]
                if len(front):
                    share = hypervolume(x, y, self.most, self.least) / self.whole
            found[i] = share
        return found


def best_below(amounts: Numbers, values: Numbers, limits: Numbers) -> Numbers:
    """The best of (n,) values with at most so much of the amount, (m,); NaN where there is none."""
    front = pareto_front(amounts, values)
    below = np.searchsorted(amounts[front], limits, side="right") - 1
    return np.append(values[front], np.nan)[below]


def _known(amounts: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Trials without an amount or a value are put where they dominate nothing."""
    known = np.isfinite(amounts) & np.isfinite(values)
    return np.where(known, amounts, np.inf), np.where(known, values, -np.inf)


def _margin(front: Numbers) -> float:
    return _MARGIN * float(np.ptp(front) or abs(front[0]) or 1.0)
