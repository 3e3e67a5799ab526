"""Parallel calls for the longer benchmarks."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

from orchestrator.runtime import Runtime

T = TypeVar("T")


def run_all(calls: Sequence[Callable[[], T]], jobs: int | None, what: str) -> list[T]:
    """The results of all calls, in order, with at most `jobs` processes at a time."""
    from orchestrator.executors.tasks import RayTasks  # Ray is slow to import

    found: dict[int, T] = {}
    with closing(RayTasks(Runtime(workers=jobs, dashboard=False))) as tasks:
        for _, ended in tasks.run(calls):
            for number, result in ended:
                if isinstance(result, Exception):
                    raise result
                found[number] = result
                sys.stderr.write(f"\r{len(found)}/{len(calls)} {what}")
    return [found[i] for i in range(len(calls))]
