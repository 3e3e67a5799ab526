"""Functions called on a cluster, each in a task of its own."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.executors.bell import Bell, interruptible
from orchestrator.executors.cluster import ClusterError, Patience, connect, options_of
from orchestrator.executors.packing import Room
from orchestrator.runtime import Runtime, is_own

_HEARTBEAT_SECONDS = 1.0


def _call(function: Callable[[], Any]) -> Any:
    with interruptible():
        return function()


_in_kept_process = ray.remote(max_calls=0)(_call)
# On a GPU: a kept process would stay on its first one, keep its memory, and fail if it once failed.
_in_new_process = ray.remote(max_calls=1)(_call)


class RayTasks:
    """Starts or joins a cluster and calls functions on it. Raises ClusterError at start.

    Each call reserves what an evaluation does. At most `runtime.workers` run at a time, by default
    as many as there is room for. On a cluster, by default as many again are queued, so that an
    autoscaler sees that it could use more machines.
    """

    def __init__(self, runtime: Runtime) -> None:
        connect(runtime)
        self._runtime, self._room = runtime, Room(runtime, what="a task")
        if is_own(runtime) and self._room.lack:
            ray.shutdown()
            raise ClusterError(self._room.lack)
        self._bell = Bell()
        self._running: dict[Any, int] = {}

    def _limit(self) -> int:
        """How many calls may be submitted at a time."""
        queue = 1 if is_own(self._runtime) else 2
        return self._runtime.workers or queue * max(self._room.size, 1)

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
            while waiting and len(running) < self._limit():
                number, function = waiting.popleft()
                request = self._room.request
                call = _in_new_process if "GPU" in request else _in_kept_process
                options = {**options_of(request), "max_retries": self._runtime.retries}
                running[call.options(**options).remote(function)] = number
            done, _ = ray.wait(list(running), timeout=_HEARTBEAT_SECONDS)
            self._room.look()
            patience.look(None if done else self._room.lack)
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
