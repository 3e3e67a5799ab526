"""Ctrl-C for tasks on a cluster.

`ray.cancel` does the same, but occasionally crashes the driver if a task ends at that very moment
(Ray 2.60: "Tried to complete task that was not pending").
"""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_NAMESPACE = "nag"
_MOST_LISTENERS = 100_000
_SECONDS_TO_SAVE = 5.0


@ray.remote
class _Bell:
    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()


class Bell:
    """Interrupts the tasks of this driver that run `interruptible`."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._actor = _Bell.options(  # type: ignore[attr-defined]
            name=_name(),
            namespace=_NAMESPACE,
            num_cpus=0,
            max_concurrency=_MOST_LISTENERS,
            scheduling_strategy=here,
        ).remote()

    def ring(self, running: list[Any]) -> None:
        """Raise KeyboardInterrupt in tasks, given by reference, and give them time to save.

        The driver must end afterwards: tasks that begin later are interrupted, too.
        """
        if not running:
            return
        with suppress(RayError):
            ray.get(self._actor.ring.remote(), timeout=_SECONDS_TO_SAVE)
            ray.wait(running, num_returns=len(running), timeout=_SECONDS_TO_SAVE)


@contextmanager
def interruptible() -> Iterator[None]:
    """Interrupts the block, in a task, when the driver rings its bell."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it
    _listener.working = True
    try:
        _listener.start()
        yield
    finally:
        _listener.working = False


class _Listener:
    """Waits for the bell in a thread of the worker process, starting with its first task."""

    def __init__(self) -> None:
        self.working = False
        self._thread: threading.Thread | None = None
        self._rung = False

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="bell", daemon=True)
            self._thread.start()
        if self._rung:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        try:
            ray.get(ray.get_actor(_name(), _NAMESPACE).wait.remote())
        except (RayError, ValueError):  # the driver or its machine is gone
            return
        self._rung = True
        if self.working:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


_listener = _Listener()


def _name() -> str:
    return f"bell-{ray.get_runtime_context().get_job_id()}"
