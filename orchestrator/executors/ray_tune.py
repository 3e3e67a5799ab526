"""An executor that runs its trials in Ray Tune: `run_bo --executor tune`.

Tune pulls trials from its searcher, whereas an executor is given them: so Tune runs in a thread of
its own, connected by two queues. Proposing, journalling and continuing work as with every other
executor. OUT/tune holds what Tune's loggers write about each trial; nothing is read from there.
"""

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output cannot be silenced entirely

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from nag.errors import UserError, counted
from nag.generator import DiffusionGenerator
from nag.spaces import Architecture, find_space
from orchestrator.config import RunConfig
from orchestrator.executors.attempts import Attempt, to_begin
from orchestrator.executors.cluster import ClusterError, Patience, connect
from orchestrator.executors.packing import Room
from orchestrator.executors.ray_core import LAST_RESORT_SECONDS, in_flight
from orchestrator.history.trials import Outcome, Trial
from orchestrator.runtime import Runtime, is_own
from orchestrator.search.trial import Ask, Outcomes, evaluate_trial
from trainers.base import Evaluator, Measurement, TrainingInSteps, in_steps

_HEARTBEAT_SECONDS = 1.0
_REDUCTION = 3  # one in this many trainings that get as far goes on
_CLOSE_SECONDS = 30.0  # for Tune to end when told to
_LOST = "the worker was lost"  # the error of an outcome


class TuneExecutor:
    """Starts or joins a cluster and runs trials on it with Tune. Raises ClusterError at start."""

    def __init__(
        self, config: RunConfig, runtime: Runtime, evaluator: Callable[[], Evaluator]
    ) -> None:
        if not isinstance(runtime.out, Path):
            raise UserError("--executor tune writes to a folder: --out must not be a URI")
        self.generator = DiffusionGenerator(config.generator(runtime.device))
        self.generators = 1
        self.generator_request: dict[str, float] = {}
        dashboard = connect(runtime)
        self._asynchronous = config.schedule == "async"
        self._most = runtime.workers or sys.maxsize
        self._room = Room(runtime)
        self.evaluation_request = self._room.request  # of every trial, until it ends
        if is_own(runtime) and self._room.lack:
            ray.shutdown()
            raise ClusterError(self._room.lack)
        self._grace = config.grace_epochs if config.early_stopping == "asha" else None
        # A scheduler must see a retried trial as the same one, so then Tune retries. Otherwise
        # this executor does: Tune gives up a trial at once if the actor kept for it has died.
        self._retries = runtime.retries if self._grace is None else 0
        self.description = (
            f"on Ray Tune, generator on {self.generator.device} in this process, room "
            f"for {counted(self.slots, 'evaluation')} at a time, dashboard {dashboard or 'off'}"
        )
        self._runtime, self._evaluator, self._out = runtime, evaluator, runtime.out.resolve()
        self._queues = _Queues(config.space)
        self._error: Exception | None = None  # the one that ended Tune
        self._tune = Thread(target=self._fit, daemon=True)

    @property
    def slots(self) -> int:
        """How many evaluations may run at a time on the machines that are there now."""
        return min(self._most, self._room.size)

    def run(self, ask: Ask) -> Outcomes:
        """Raises ClusterError if Tune ends before the trials, no evaluator starts, or no machine
        is left."""
        if not self._tune.ident:  # not before the store of the run has locked its folder
            self._tune.start()
        running: dict[int, Attempt] = {}
        again: deque[Attempt] = deque()
        while True:
            self._room.look()
            limit = sys.maxsize
            if self._asynchronous:
                limit = in_flight(self._runtime.workers, self._room.size, len(running))
            for attempt in to_begin(ask, limit, running.values(), again):
                running[attempt.trial.trial] = attempt
                self._queues.waiting.put(attempt.trial)
            if not running:
                return
            for outcome in self._ended():
                attempt = running.pop(outcome.trial)
                if isinstance(outcome, Trial):
                    continue
                lost = outcome.error == _LOST
                found = attempt.result(outcome, lost=lost, retries=self._retries)
                if isinstance(found, Attempt):
                    again.append(found)
                else:
                    yield found

    def _ended(self) -> Iterator[Outcome | Trial]:
        """All outcomes so far, so that one proposal serves them all; waits for the first.

        A trial that did not begin in time is its own outcome.
        """
        yield self._next()
        while not self._queues.outcomes.empty():
            yield self._next()

    def _next(self) -> Outcome | Trial:
        patience = Patience()
        while True:
            try:
                found = self._queues.outcomes.get(timeout=_HEARTBEAT_SECONDS)
            except Empty:
                self._room.look()
                patience.look(self._room.lack)
                if not self._tune.is_alive():
                    reason = " ".join(str(self._error).split())[-500:]
                    raise ClusterError(f"Ray Tune has ended: {reason}") from self._error
                continue
            if isinstance(found, ClusterError):
                raise found
            return found

    def _fit(self) -> None:
        runtime = self._runtime
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            evaluation = tune.with_parameters(
                _Evaluation,
                evaluator=self._evaluator,
                retries=runtime.retries,
                timeout=runtime.timeout,
                last_resort=LAST_RESORT_SECONDS,
                ends_at=runtime.ends_at,
                watched=self._grace is not None,
            )
            scheduler = self._grace and ASHAScheduler(
                time_attr="epoch",
                metric="value",
                mode="max",
                max_t=sys.maxsize,
                grace_period=self._grace,
                reduction_factor=_REDUCTION,
            )
            tune.Tuner(
                tune.with_resources(evaluation, self.evaluation_request),
                tune_config=tune.TuneConfig(
                    search_alg=self._queues,
                    scheduler=scheduler or None,
                    num_samples=-1,
                    max_concurrent_trials=self._most,
                    # Trainings long enough to watch are worth starting a process for.
                    reuse_actors=self._grace is None,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(self._out),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    failure_config=tune.FailureConfig(max_failures=runtime.retries - self._retries),
                    callbacks=[_Lost(self._queues)],
                    stop=_StopAll(self._queues),
                    verbose=0,
                ),
            ).fit()
        except Exception as error:
            self._error = error

    def close(self) -> None:
        self._queues.closed.set()
        self._queues.waiting.put(None)
        if self._tune.ident:
            self._tune.join(_CLOSE_SECONDS)
        ray.shutdown()


class _Evaluation(tune.Trainable):
    """Holds one evaluator, which `reuse_actors` keeps between trials."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        evaluator: Callable[[], Evaluator],
        retries: int,
        timeout: float | None,
        last_resort: float,
        ends_at: float,
        watched: bool,
    ) -> None:
        self._retries, self._timeout, self._last_resort = retries, timeout, last_resort
        self._ends_at, self._watched = ends_at, watched
        self._training: _Epochs | None = None
        self._problem = None
        try:
            self._evaluator = evaluator()
        except Exception as error:  # Tune would blame the trial for it
            self._problem = f"an evaluator could not start: {type(error).__name__}: {error}"

    def step(self) -> dict[str, Any]:
        if self._problem:
            return {"outcome": ClusterError(self._problem), "done": True}
        space = find_space(self.config["space"])
        fields = {name: x for name, x in self.config.items() if name != "space"}
        trial = Trial(**fields | {"arch": space.from_str(fields["arch"])})
        if self._training is None and time.time() >= self._ends_at:
            return {"outcome": trial, "done": True}
        evaluator = self._evaluator
        if self._watched:
            evaluator = self._training = self._training or _Epochs(in_steps(evaluator))
        outcome = evaluate_trial(evaluator, trial, self._retries, self._timeout, self._last_resort)
        epoch = len(outcome.curve)
        done = self._training is None or epoch in (0, self._training.whole)
        if not done:
            outcome = replace(outcome, stopped=epoch)  # in case it gets no further
        value = {} if outcome.value is None else {"value": outcome.value}
        return {**outcome.metrics, **value, "epoch": epoch, "outcome": outcome, "done": done}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._training = None
        return True


class _Epochs:
    """A training as an evaluator: every evaluation trains for one more epoch.

    After an error the next attempt resumes the training from its checkpoint.
    """

    def __init__(self, evaluator: TrainingInSteps) -> None:
        self._evaluator, self.whole = evaluator, evaluator.epochs
        self._epochs: Iterator[Measurement] | None = None

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        if self._epochs is None:
            self._epochs = self._evaluator.epoch_by_epoch(arch, seed=seed)
        try:
            return next(self._epochs)
        except BaseException:
            self._epochs = None
            raise


class _Queues(Searcher):
    """Connects the two threads: trials waiting for Tune, outcomes waiting for the run."""

    def __init__(self, space: str) -> None:
        super().__init__()
        self._space = space
        self.waiting: SimpleQueue[Trial | None] = SimpleQueue()  # None: no more will come
        self.outcomes: SimpleQueue[Outcome | Trial | ClusterError] = SimpleQueue()
        self.closed = Event()
        self.lost: Counter[str] = Counter()  # lost attempts of trials that Tune restarted
        self._running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        try:  # block if nothing runs: Tune has nothing else to do and would poll once a second
            trial = self.waiting.get(block=not self._running)
        except Empty:
            return None
        if trial is None:
            return Searcher.FINISHED
        self._running[trial_id] = trial
        text = find_space(self._space).to_str(trial.arch)
        return {"space": self._space, **asdict(trial), "arch": text}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self._running.pop(trial_id)
        if self.closed.is_set():
            return
        lost = Outcome(trial.trial, "failed", error=_LOST)
        outcome = result["outcome"] if result and not error else lost
        if isinstance(outcome, Outcome):
            outcome = replace(outcome, attempts=outcome.attempts + self.lost[trial_id])
        self.outcomes.put(outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a run continues from its store."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Tune pickles the searcher now and then; the copy is empty."""
        return _Queues, (self._space,)


class _Lost(tune.Callback):
    """Counts the lost attempts at trials that Tune restarts."""

    def __init__(self, queues: _Queues) -> None:
        self._queues = queues

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._queues.lost[trial.trial_id] += 1


class _StopAll(Stopper):
    """Ends all trials when the executor is closed."""

    def __init__(self, queues: _Queues) -> None:
        self._queues = queues

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._queues.closed.is_set()


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']}"
