"""Pareto fronts of a value, which should be large, and an amount, which should be small."""

import numpy as np
from numpy.typing import NDArray


def pareto_front(amounts: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which of (n,) are better than all with the same or a smaller amount, by rising amount."""
    order = np.lexsort((-values, amounts))
    best_below = np.maximum.accumulate(np.append(-np.inf, values[order]))[:-1]
    return order[values[order] > best_below]


def hypervolume(
    amounts: NDArray[np.float64], values: NDArray[np.float64], most: float, least: float
) -> float:
    """Area between the front of (n,) points and the corner (`most` amount, `least` value).

    Zitzler & Thiele, IEEE Trans. Evolutionary Computation 1999. Points beyond the corner count as
    far as they reach it.
    """
    front = pareto_front(amounts, values)
    edges = np.minimum(np.append(amounts[front], most), most)
    return float(np.diff(edges) @ np.maximum(values[front] - least, 0.0))
