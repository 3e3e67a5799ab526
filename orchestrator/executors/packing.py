"""How many evaluations share a GPU, by the memory that earlier ones took."""

import math

from orchestrator.runtime import GpusPerEval
from orchestrator.search.trial import Outcome

_TO_SPARE = 1.25  # times the hungriest so far: others may be hungrier, and need a context besides
_UNITS = 10_000  # Ray counts GPUs in so many parts


class GPUShare:
    """What an evaluation reserves of a GPU.

    asked: that, or "auto": a whole one until evaluations have ended, then as small a share as the
        hungriest of them fits into with a quarter to spare.
    """

    def __init__(self, asked: GpusPerEval) -> None:
        self._asked = asked
        self._largest = 0.0

    def saw(self, outcome: Outcome) -> None:
        """Learn from an evaluation that has ended; one that says nothing of memory is ignored."""
        self._largest = max(self._largest, outcome.gpu_memory)

    def now(self) -> float:
        """GPUs for each evaluation that begins now."""
        if self._asked != "auto":
            return self._asked
        if not self._largest:
            return 1.0
        together = max(1, int(1 / (_TO_SPARE * self._largest)))
        return math.floor(_UNITS / together) / _UNITS
