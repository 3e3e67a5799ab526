"""A run on Ray: the generator is an actor, every evaluation a task.

The driver sends architectures and small predictors. The generator loads its weights once; a worker
process keeps its evaluator (table, supernet) between evaluations. The task queue is Ray's: a trial
goes to whichever machine has room, and the autoscaler sees what is queued. Machines that join
during a run are used, and the run survives the loss of others.

A cluster may pin roles to machines with the custom resources `generator` and `evaluator`: if
machines offer them, each actor or task requests one. On a cluster without a GPU the generator
reserves nothing: it works before the evaluations of its round begin.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from nag.errors import UserError, counted
from nag.generate import Samples
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance, Part
from orchestrator.config import RunConfig
from orchestrator.executors.attempts import Attempt, to_begin
from orchestrator.executors.bell import Bell, interruptible
from orchestrator.executors.cluster import (
    ClusterError,
    Machines,
    Patience,
    connect,
    generator_request,
    in_words,
    options_of,
)
from orchestrator.executors.packing import Room
from orchestrator.history.trials import Outcome, Trial
from orchestrator.runtime import Runtime, is_own
from orchestrator.search.trial import Ask, Outcomes, evaluate_trial
from trainers.base import Evaluator

_START_SECONDS = 600.0  # for the generator, whose machine may have to be started first
_HEARTBEAT_SECONDS = 1.0
LAST_RESORT_SECONDS = 30.0  # after the deadline of an evaluation that does not react to it
_TRIALS_PER_AHEAD = 8  # asynchronous: one queued trial per this many being evaluated


@ray.remote
class GeneratorActor:
    """Holds the score network on its device for the whole run."""

    def __init__(self, config: GeneratorConfig) -> None:
        self._generator = DiffusionGenerator(config)

    def generate(self, n: int, seed: int, guidance: Guidance | None) -> Samples:
        return self._generator.generate(n, seed=seed, guidance=guidance)

    def ready(self) -> str:
        """The device in use."""
        return str(self._generator.device)


class RayGenerator:
    """A `Generator` that works in actors, each of which requests `request`."""

    def __init__(self, actors: Sequence[Any], request: Mapping[str, float]) -> None:
        self._actors, self._request = actors, request

    def generate(self, n: int, *, seed: int, guidance: Guidance | None = None) -> Samples:
        (samples,) = self.generate_parts([Part(n, seed)], guidance)
        return samples

    def generate_parts(
        self, parts: Sequence[Part], guidance: Guidance | None = None
    ) -> list[Samples]:
        references = [
            actor.generate.remote(part.n, part.seed, guidance)
            for part, actor in zip(parts, cycle(self._actors), strict=False)
        ]
        waiting, patience = references, Patience()
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=_HEARTBEAT_SECONDS)
                lack = None if done else Machines.now().lack("the generator", self._request)
                patience.look(lack)
            return ray.get(references)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise  # a bug of ours
        except RayError as error:
            raise ClusterError(
                f"the generator was lost ({type(error).__name__}): repeat the command to continue"
            ) from error


_kept: dict[str, Evaluator] = {}
"""The evaluator of this worker process, keyed by its run."""


def _evaluate(
    run: str,
    make: Callable[[], Evaluator],
    trial: Trial,
    retries: int,
    timeout: float | None,
    last_resort: float,
    ends_at: float,
) -> Outcome | Trial:
    """The outcome of the trial; the trial itself if it did not begin before `ends_at`."""
    if time.time() >= ends_at:
        return trial
    with interruptible():
        if run not in _kept:
            _kept.clear()
            _kept[run] = make()
        return evaluate_trial(_kept[run], trial, retries, timeout, last_resort)


# the executor decides what to retry
_in_kept_process = ray.remote(max_retries=0, max_calls=0)(_evaluate)
_in_new_process = ray.remote(max_retries=0, max_calls=1)(_evaluate)


class RayExecutor:
    """Starts or joins a cluster and runs trials on it. Raises ClusterError at start."""

    def __init__(
        self, config: RunConfig, runtime: Runtime, evaluator: Callable[[], Evaluator]
    ) -> None:
        dashboard = connect(runtime)
        self._runtime = runtime
        self._asynchronous = config.schedule == "async"
        self._running: dict[Any, Attempt] = {}
        try:
            self._bell = Bell()
            request, device = generator_request(Machines.now().total, runtime)
            actors = [
                GeneratorActor.options(  # type: ignore[attr-defined]
                    name=f"generator-{number}" if number else "generator",
                    namespace=f"nag-{ray.get_runtime_context().get_job_id()}",
                    max_restarts=-1,
                    max_task_retries=runtime.retries,
                    scheduling_strategy="SPREAD" if runtime.generators > 1 else "DEFAULT",
                    **{"num_cpus": 0, **options_of(request)},
                ).remote(config.generator(device))
                for number in range(runtime.generators)
            ]
            device = _ready(actors, request)
            self.generators = len(actors)
            self.generator = RayGenerator(actors, request)
            self.generator_request = request
            self._run, self._evaluator = config.hash(), ray.put(evaluator)
            self._room = Room(runtime, [request] * self.generators)
            if is_own(runtime) and self._room.lack:
                raise ClusterError(self._room.lack)
            self.evaluation_request = self._room.request
            self._reserved: dict[int, dict[str, float]] = {}  # by the latest attempt at each trial
        except BaseException:
            ray.shutdown()
            raise
        self.description = (
            f"on Ray, generator on {device}, room for "
            f"{counted(self.slots, 'evaluation')} at a time, dashboard {dashboard or 'off'}"
        )

    @property
    def slots(self) -> int:
        """How many evaluations may run at a time on the machines that are there now."""
        return min(self._runtime.workers or sys.maxsize, self._room.size)

    def run(self, ask: Ask) -> Outcomes:
        """Evaluate the trials that `ask` returns, up to `--workers` or the available room at once.

        The trial of a lost worker is retried. One that ran out of memory is retried once, alone.
        Raises ClusterError if no machine is left.
        """
        running = self._running
        again: deque[Attempt] = deque()
        patience = Patience()
        try:
            while True:
                self._room.look()
                for attempt in to_begin(ask, self._limit(), running.values(), again):
                    running[self._submit(attempt)] = attempt
                if not running:
                    return
                done = _ended(list(running))
                patience.look(None if done else self._room.lack)
                for reference in done:
                    attempt = running.pop(reference)
                    outcome = self._outcome(reference, attempt)
                    if isinstance(outcome, Attempt):
                        again.append(outcome)
                    elif isinstance(outcome, Outcome):
                        self._room.saw(outcome)
                        self.evaluation_request = self._reserved.pop(outcome.trial)
                        yield outcome
        finally:
            self._bell.ring(list(running))

    def close(self) -> None:
        ray.shutdown()

    def _limit(self) -> int:
        """How many trials may be submitted at a time.

        In rounds it is the whole batch, or `--workers`. The queue tells the autoscaler how many
        machines the run can use.
        """
        workers = self._runtime.workers
        if self._asynchronous:
            return in_flight(workers, self._room.size, len(self._running))
        return workers or sys.maxsize

    def _submit(self, attempt: Attempt) -> Any:
        """Submit an attempt; returns the reference of its outcome."""
        request = self._room.request
        if attempt.alone:
            request = self._room.machines.alone(request, self.generator_request)
        self._reserved[attempt.trial.trial] = request
        options = {"name": "evaluate", **options_of(request)}
        anew = self._room.machines.may_move(request)
        evaluate = _in_new_process if anew else _in_kept_process
        return evaluate.options(**options).remote(
            self._run,
            self._evaluator,
            attempt.trial,
            self._runtime.retries,
            self._runtime.timeout,
            LAST_RESORT_SECONDS,
            self._runtime.ends_at,
        )

    def _outcome(self, reference: Any, attempt: Attempt) -> Outcome | Attempt | None:
        """The outcome of an attempt that has ended, or the attempt that follows it; None if it
        did not begin in time."""
        try:
            found = ray.get(reference)
            return attempt.result(found) if isinstance(found, Outcome) else None
        except RayTaskError as error:  # evaluate_trial never raises: making the evaluator did
            reason = _last_line(error)
            if "out of memory" in reason and not attempt.alone:  # beside others on its GPU
                return Attempt(attempt.trial, attempt.number + 1, alone=True)
            raise ClusterError(f"an evaluator could not start: {reason}") from error
        except RayError as error:  # Outcome also recognises Ray's OutOfMemoryError
            text = f"{type(error).__name__}: the worker was lost"
            outcome = Outcome(attempt.trial.trial, "failed", error=text)
            return attempt.result(outcome, lost=True, retries=self._runtime.retries)


def _ready(actors: Sequence[Any], request: Mapping[str, float]) -> str:
    """The device of the generators, once all are ready; raises ClusterError."""
    try:
        return ray.get([actor.ready.remote() for actor in actors], timeout=_START_SECONDS)[0]
    except GetTimeoutError as error:
        each = "it" if len(actors) == 1 else f"each of the {len(actors)}"
        raise ClusterError(
            f"the generator found no machine in {_START_SECONDS:.0f} s: {each} needs "
            f"{in_words(request)}"
        ) from error
    except RayError as error:
        raise ClusterError(f"the generator could not start: {_last_line(error)}") from error


def _ended(references: list[Any]) -> list[Any]:
    """All tasks that have ended, so that one proposal serves them all; waits briefly for one."""
    done, left = ray.wait(references, timeout=_HEARTBEAT_SECONDS)
    if done and left:
        done += ray.wait(left, num_returns=len(left), timeout=0)[0]
    return done


def in_flight(workers: int | None, room: int, submitted: int) -> int:
    """How many trials an asynchronous search may have submitted.

    As many as may be evaluated at a time, and a few more, so that no machine waits for the driver.
    The queue is refilled only once it is empty, but before a worker is idle: one proposal then
    serves the whole queue, and misses fewer outcomes than if the queue were always kept full.

    workers: how many may be evaluated at a time, including on machines that have yet to join; None
        for as many as there is room for now. With room for more, none is queued: it would begin.
    """
    slots = workers or max(1, room)
    ahead = slots // _TRIALS_PER_AHEAD if room <= slots else 0
    return submitted if submitted > slots else slots + ahead


def _last_line(error: RayError) -> str:
    """The error itself, from a remote traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
