"""What a search learns from: trials that have a value, in order."""

from array import array
from bisect import bisect, bisect_left

import numpy as np

from nag.predictors.base import Observations
from nag.spaces import Architecture
from orchestrator.history.trials import Trial


class Successes:
    """Trials that have a value, ordered by number whatever order they finished in."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._archs: list[Architecture] = []
        self._values = array("d")

    def add(self, trial: Trial, value: float) -> None:
        """Insert at or near the end: trials of a round finish together."""
        at = bisect(self._numbers, trial.trial)
        self._numbers.insert(at, trial.trial)
        self._archs.insert(at, trial.arch)
        self._values.insert(at, value)

    def between(self, start: int, end: int) -> Observations:
        """Those with start <= trial number < end."""
        part = slice(bisect_left(self._numbers, start), bisect_left(self._numbers, end))
        return Observations(tuple(self._archs[part]), np.array(self._values[part], dtype=float))
