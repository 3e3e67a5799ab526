"""Trials and their outcomes, and how a journal is read back into them."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nag.spaces import Architecture, SearchSpace
from orchestrator.history.record import DAMAGE, DamagedRunError
from orchestrator.storage.events import Events
from trainers.base import FULL_EPOCHS

SEARCH = ("fit", "propose", "select")  # what a round does before its evaluations
PHASES = (*SEARCH, "evaluate")
LARGEST = 1e150  # size of a value: sums of squares of larger ones overflow


@dataclass(frozen=True)
class Trial:
    """One architecture to evaluate."""

    trial: int  # 0, 1, 2, ... in the order proposed
    iteration: int  # 0 for the initial design
    arch: Architecture
    strategy: str  # "initial", or the candidate strategy
    seed: int
    predicted_mean: float | None = None  # by the surrogate, before the evaluation; a fraction
    predicted_std: float | None = None
    epochs: int | None = None  # None is full fidelity

    @property
    def work(self) -> int:
        """Its cost in epochs; FULL_EPOCHS make an evaluation of full fidelity."""
        return FULL_EPOCHS if self.epochs is None else self.epochs

    @property
    def cost(self) -> Fraction:
        """Its cost in evaluations of full fidelity."""
        return Fraction(self.work, FULL_EPOCHS)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial. An error is a result, not an exception."""

    trial: int
    status: Literal["ok", "failed"]
    value: float | None = None  # larger is better; an accuracy is a fraction
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    attempts: int = 1
    curve: Sequence[float] = ()  # values after each epoch of a training
    stopped: int | None = None  # the epoch after which a training was stopped early
    device: str = ""  # what a latency was measured on
    gpu_memory: float = 0.0  # peak share of its GPU's memory; 0 without a GPU

    @property
    def out_of_memory(self) -> bool:
        """Whether the evaluation ran out of memory, on the machine or on its GPU."""
        return (self.error or "").startswith(("MemoryError", "OutOfMemoryError"))


class History:
    """The content of a journal: all trials and outcomes, and when each came.

    rounds: what was journalled for each round: its seconds and diagnostics.
    first: the first trial of each round.
    proposed_at, finished_at: when each round and each outcome was journalled, in seconds since the
        epoch.
    exhausted: whether the space holds no more architectures to propose.
    patience: if the run has ended because of it, after how many evaluations without a better one;
        None once it continues.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.trials: list[Trial] = []
        self.outcomes: dict[int, Outcome] = {}
        self.rounds: list[dict[str, Any]] = []
        self.first: list[int] = []
        self.proposed_at: list[float] = []
        self.finished_at: dict[int, float] = {}
        self.exhausted = False
        self.patience: int | None = None

    def replay(self, files: Iterable[tuple[str, Events]]) -> None:
        """Apply all events of a journal; raises DamagedRunError."""
        with _no_garbage():
            for file, events in files:
                for number, event in enumerate(events, start=1):
                    try:
                        self.apply(event)
                    except DAMAGE:
                        raise DamagedRunError(f"{file}, line {number} is damaged") from None

    def apply(self, event: Any) -> None:
        """Apply the next event, which is modified; a second outcome of a trial is ignored."""
        at = event.pop("at")
        match event.pop("event"):
            case "proposed":
                first = len(self.trials)
                self.first.append(first)
                for number, trial in enumerate(event.pop("trials"), start=first):
                    if trial["trial"] != number:
                        raise ValueError(f"trial {trial['trial']} is number {number}")
                    trial["arch"] = self.space.from_str(trial["arch"])
                    self.trials.append(Trial(**trial))
                self.rounds.append(event)
                self.proposed_at.append(at)
                self.patience = None
            case "finished":
                outcome = Outcome(**event)
                if not 0 <= outcome.trial < len(self.trials):
                    raise ValueError(f"trial {outcome.trial} was never proposed")
                if not isinstance(outcome.value, float | int | None):
                    raise TypeError(f"the value {outcome.value!r} is not a number")
                if outcome.trial not in self.outcomes:
                    self.outcomes[outcome.trial] = outcome
                    self.finished_at[outcome.trial] = at
            case "exhausted":
                self.exhausted, self.patience = True, None
            case "patience":
                self.patience = int(event["after"])
            case other:
                raise ValueError(f"unknown event {other!r}")

    def seconds(self) -> dict[str, NDArray[np.float64]]:
        """Seconds (R,) that each of PHASES took in each round; evaluations are summed."""
        spent = {
            phase: np.array([found["seconds"].get(phase, 0.0) for found in self.rounds], float)
            for phase in PHASES
        }
        for trial in self.trials:
            if trial.trial in self.outcomes:
                spent["evaluate"][trial.iteration] += self.outcomes[trial.trial].seconds
        return spent


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Pause garbage collection: reading a long journal leaves none, and looking for it is slow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
