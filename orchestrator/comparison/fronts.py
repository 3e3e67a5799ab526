"""What searches for a Pareto front are compared by: the hypervolume that they dominate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.comparison.statistics import Numbers
from orchestrator.history.run import Run
from orchestrator.reporting.pareto import hypervolume, pareto_front

_MARGIN = 0.1  # of the extent of the front of all runs, so that its ends count


@dataclass(frozen=True)
class Front:
    """The front of all runs of a task together, against which each is measured.

    quantity: what is to be small; the value is to be large.
    first: the smallest amount on the front.
    most, least: amount and value of the corner up to which the hypervolume is taken.
    whole: hypervolume of all runs together.
    """

    quantity: str
    first: float
    most: float
    least: float
    whole: float

    def progress(self, amounts: Numbers, values: Numbers) -> Numbers:
        """Hypervolume after each of (n,) trials, as a share of that of all runs together.

        NaN before the first trial with an amount and a value.
        """
        found = np.full(len(values), np.nan)
        x, y = np.empty(0), np.empty(0)  # the front so far
        for i, (amount, value) in enumerate(zip(*_known(amounts, values), strict=True)):
            x, y = np.append(x, amount), np.append(y, value)
            front = pareto_front(x, y)
            x, y = x[front], y[front]
            if len(front):
                found[i] = hypervolume(x, y, self.most, self.least) / self.whole
        return found

    def best_below(self, run: Run, limits: Numbers) -> Numbers:
        """The best value with at most so much of the quantity, (n,); NaN where there is none."""
        amounts, values = _known(amounts_of(run, self.quantity), run.columns["value"])
        front = pareto_front(amounts, values)
        below = np.searchsorted(amounts[front], limits, side="right") - 1
        return np.append(values[front], np.nan)[below]


def front_of(runs: Sequence[Run], quantity: str) -> Front | None:
    """The front of the runs together; None if no trial has an amount and a value."""
    amounts, values = _known(
        np.concatenate([amounts_of(run, quantity) for run in runs]),
        np.concatenate([run.columns["value"] for run in runs]),
    )
    front = pareto_front(amounts, values)
    if not len(front):
        return None
    most = amounts[front[-1]] + _margin(amounts[front])
    least = values[front[0]] - _margin(values[front])
    return Front(
        quantity, float(amounts[front[0]]), most, least, hypervolume(amounts, values, most, least)
    )


def amounts_of(run: Run, quantity: str) -> Numbers:
    """(n,) amount of each trial, NaN if it was not measured."""
    return run.metrics.get(quantity, np.full(len(run.iteration), np.nan))


def _known(amounts: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Trials without an amount or a value are put where they dominate nothing."""
    known = np.isfinite(amounts) & np.isfinite(values)
    return np.where(known, amounts, np.inf), np.where(known, values, -np.inf)


def _margin(front: Numbers) -> float:
    return _MARGIN * float(np.ptp(front) or abs(front[0]) or 1.0)
