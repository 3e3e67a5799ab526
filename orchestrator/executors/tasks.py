"""Functions called on a cluster, each in a task of its own."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.executors.bell import Bell, interruptible
from orchestrator.executors.cluster import (
    ClusterError,
    Machines,
    Patience,
    connect,
    is_own,
    options_of,
)
from orchestrator.runtime import Runtime

_HEARTBEAT_SECONDS = 1.0


@ray.remote
def _call(function: Callable[[], Any]) -> Any:
    with interruptible():
        return function()


class RayTasks:
    """Starts or joins a cluster and calls functions on it. Raises ClusterError at start.

    Each call takes one CPU and the share `gpu` of a GPU. At most `runtime.workers` run at a time,
    by default as many as there is room for. On a cluster, by default as many again are queued, so
    that an autoscaler sees that it could use more machines.
    """

    def __init__(self, runtime: Runtime, gpu: float = 0.0) -> None:
        connect(runtime)
        self._runtime, self._gpu = runtime, gpu
        self._look()
        if is_own(runtime) and self._lack:
            ray.shutdown()
            raise ClusterError(self._lack)
        self._bell = Bell()
        self._running: dict[Any, int] = {}

    def _look(self) -> None:
        """Look at the machines, which may come and go."""
        machines, request = Machines.now(), {"CPU": 1.0}
        request |= {"GPU": self._gpu} if self._gpu else {}
        request |= {"evaluator": 1.0} if "evaluator" in machines.total else {}
        room = machines.room(request)
        self._lack = machines.lack("a task", request)
        self._limit = self._runtime.workers or (room if is_own(self._runtime) else 2 * max(room, 1))
        self._options = {**options_of(request), "max_retries": self._runtime.retries}

    def run(
        self, functions: Sequence[Callable[[], Any]]
    ) -> Iterator[tuple[list[int], list[tuple[int, Any]]]]:
        """Call the functions; yields whenever some end, and at least once a second.

        Yields the numbers of the functions that are running and (number, result) of those that have
        ended; if a function was lost with its workers, the result is a ClusterError. Raises one if
        no machine is left.
        """
        patience = Patience()
        waiting = deque(enumerate(functions))
        running = self._running
        while waiting or running:
            while waiting and len(running) < self._limit:
                number, function = waiting.popleft()
                running[_call.options(**self._options).remote(function)] = number
            done, _ = ray.wait(list(running), timeout=_HEARTBEAT_SECONDS)
            self._look()
            patience.look(None if done else self._lack)
            ended = [(running.pop(reference), _result(reference)) for reference in done]
            yield list(running.values()), ended

    def close(self) -> None:
        self._bell.ring(list(self._running))
        ray.shutdown()


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError:
        raise  # the functions return their errors: this is a bug of ours
    except RayError as error:
        return ClusterError(f"the worker was lost ({type(error).__name__})")
