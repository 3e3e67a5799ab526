"""Workers on a simulated clock: imitates an executor with many workers in one process."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from nag.generator import Generator
from orchestrator.executors.ray_core import in_flight
from orchestrator.history.trials import Outcome, Trial
from orchestrator.search.trial import Ask, evaluate_trial
from trainers.base import Evaluator

Duration = Callable[[Trial, Outcome], float]
"""Simulated seconds of an evaluation."""


def log_normal(mean: float, sigma: float) -> Duration:
    """Heavy-tailed seconds, drawn by trial seed; sigma is that of their logarithm."""

    def seconds(trial: Trial, outcome: Outcome) -> float:
        z = np.random.default_rng(trial.seed).standard_normal()
        return mean * float(np.exp(sigma * z - sigma**2 / 2))

    return seconds


@dataclass
class SimulatedWorkers:
    """An `Executor` whose outcomes come in the order of a simulated clock.

    The evaluator is called at once, then its worker is busy for `duration` simulated seconds. A
    worker takes the first trial in the queue as soon as it is free, like those of Ray. With
    `driver_works` the clock also counts the real time that the driver takes to propose and record,
    during which nothing is submitted.
    """

    generator: Generator
    evaluator: Evaluator
    workers: int
    duration: Duration
    asynchronous: bool = False
    driver_works: bool = False
    clock: float = 0.0
    driver: float = 0.0  # seconds that the driver worked
    spans: list[tuple[float, float]] = field(default_factory=list)  # of evaluations

    description = "simulated"

    def run(self, ask: Ask) -> Iterator[Outcome]:
        waiting: deque[tuple[float, Trial]] = deque()  # since when
        idle = [0.0] * self.workers  # since when
        running: list[tuple[float, int, Outcome]] = []
        while True:
            submitted = len(running) + len(waiting)
            limit = in_flight(None, self.workers, submitted) if self.asynchronous else 10**9
            with self._working():
                asked = ask(limit - submitted)
            waiting += ((self.clock, trial) for trial in asked)
            while waiting and idle:
                self._start(*waiting.popleft(), heapq.heappop(idle), running)
            if not running:
                return
            self.clock = max(self.clock, running[0][0])
            while running and running[0][0] <= self.clock:
                ended, _, outcome = heapq.heappop(running)
                if waiting:
                    self._start(*waiting.popleft(), ended, running)
                else:
                    heapq.heappush(idle, ended)
                with self._working():
                    yield outcome

    def _start(
        self, submitted: float, trial: Trial, free: float, running: list[tuple[float, int, Outcome]]
    ) -> None:
        outcome = evaluate_trial(self.evaluator, trial, retries=0)
        start = max(submitted, free)
        end = start + self.duration(trial, outcome)
        self.spans.append((start, end))
        heapq.heappush(running, (end, trial.trial, outcome))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Count the time spent in the block as the driver's."""
        started = perf_counter()
        yield
        seconds = perf_counter() - started
        self.driver += seconds
        if self.driver_works:
            self.clock += seconds

    def close(self) -> None:
        """Nothing to release."""


def utilisation(spans: Sequence[tuple[float, float]], workers: int) -> float:
    """Share of the workers' time spent evaluating, while there is work for all.

    From when all workers have begun their first evaluation until the last evaluation begins.
    spans: begin and end of each evaluation.
    """
    starts = sorted(start for start, _ in spans)
    first, last = starts[workers - 1], starts[-1]
    busy = sum(max(0.0, min(end, last) - max(start, first)) for start, end in spans)
    return busy / (workers * (last - first))
