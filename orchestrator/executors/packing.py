"""How many evaluations there is room for, and how many share a GPU by their memory use."""

import math
from collections.abc import Mapping, Sequence
from time import monotonic

from orchestrator.executors.cluster import Machines, evaluation_request
from orchestrator.history.trials import Outcome
from orchestrator.runtime import GpusPerEval, Runtime

_TO_SPARE = 1.25  # times the peak so far: others may need more
_UNITS = 10_000  # parts in which Ray counts a GPU
_LOOK_SECONDS = 1.0


class GPUShare:
    """The share of a GPU that an evaluation reserves.

    asked: the share, or "auto": all there is until evaluations have ended, then the smallest share
        that holds the most memory-hungry of them with a quarter to spare.
    """

    def __init__(self, asked: GpusPerEval | None) -> None:
        self._asked = asked
        self._largest = 0.0

    def saw(self, outcome: Outcome) -> None:
        """Learn from an evaluation that has ended; ignored if it reports no memory."""
        self._largest = max(self._largest, outcome.gpu_memory)

    def now(self, whole: float) -> float:
        """GPUs for each evaluation that begins now.

        whole: the largest share that one can have.
        """
        if self._asked != "auto":
            return self._asked or 0.0
        together = int(whole / (_TO_SPARE * self._largest)) if self._largest else 1
        return math.floor(_UNITS * whole / max(together, 1)) / _UNITS


class Room:
    """Room for evaluations on the machines that are there now; machines may come and go.

    held: what is reserved in addition to the evaluations.
    what: what an evaluation is called where there is no room for one.
    """

    def __init__(
        self,
        runtime: Runtime,
        held: Sequence[Mapping[str, float]] = (),
        what: str = "an evaluation",
    ) -> None:
        self._runtime, self._held, self._what = runtime, held, what
        self._share = GPUShare(runtime.gpus_per_eval)
        self._looked = -math.inf
        self.look()

    def look(self) -> None:
        """Look at the machines, at most once a second: asking Ray can take longer than a trial."""
        if monotonic() - self._looked < _LOOK_SECONDS:
            return
        self.machines = machines = Machines.now()
        self.request = request = self._requesting(self._share.now(self._whole_gpu()))
        self.size = machines.room(request, self._held)  # of evaluations at a time
        self.lack = machines.lack(self._what, request, self._held)  # why it is 0
        self._looked = monotonic()

    def _whole_gpu(self) -> float:
        """A GPU, or what the generators leave of one if no machine has another."""
        left = 1 - sum(share.get("GPU", 0) for share in self._held) % 1
        room = self.machines.room(self._requesting(1.0), self._held)
        return 1.0 if room else left

    def _requesting(self, gpus: float) -> dict[str, float]:
        return evaluation_request(self.machines.total, self._runtime, gpus)

    def saw(self, outcome: Outcome) -> None:
        """Learn from the memory use of an evaluation that has ended."""
        self._share.saw(outcome)
