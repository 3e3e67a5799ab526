"""The loop: suggest, journal, evaluate, journal, repeat. All state is in the store."""

import math
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from orchestrator.history.trials import Outcome, Trial
from orchestrator.search.bayesopt import BayesianOptimizer, Suggestion, with_early_values
from orchestrator.search.halving import SuccessiveHalving
from orchestrator.search.pace import NowAndThen
from orchestrator.search.store import RunStore
from orchestrator.search.trial import Executor
from trainers.constraints import nothing_satisfies

Optimizer = BayesianOptimizer | SuccessiveHalving
End = Literal["budget", "exhausted", "patience", "time"]  # why a run ended

_COMPACTION_SHARE = 0.05  # of the time, at most, is spent rewriting the table of trials


class Observer(Protocol):
    """Is notified of what happens; must not change it."""

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        """A batch was suggested and journalled."""
        ...

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        """A trial has an outcome."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many architectures to evaluate, and when to propose the next ones.

    schedule: with `rounds`, round i begins once all rounds up to i - window have ended, and uses
    only their outcomes, in trial order; so the trials depend neither on the number of workers nor
    on which evaluations end first. With `async`, a round begins whenever workers are idle, with
    one trial for each, and uses all outcomes so far. Trials without a known outcome are pending.

    grace: the epoch before which no training is stopped; None if trainings are never stopped.
    """

    budget: int
    n_init: int
    batch_size: int
    seed: int
    schedule: Literal["rounds", "async"] = "rounds"
    window: int = 1
    grace: int | None = None


def run_study(
    optimizer: Optimizer,
    executor: Executor,
    store: RunStore,
    plan: Plan,
    observers: tuple[Observer, ...] = (),
    patience: int | None = None,
    ends_at: float = math.inf,
) -> End:
    """Run until the budget is spent, the space is exhausted, or patience or time runs out.

    patience: no round is proposed once this many full-fidelity trials have ended since the best of
    them and since the initial design, judging by the outcomes that the round would use.
    ends_at: `time.time()` from which on no trial begins; those that are running still end.

    A low-fidelity trial is a fraction of an evaluation. The last trial begins before the budget is
    spent, so the budget may be exceeded by a fraction of an evaluation.

    Safe to call again on the same store: it continues. Round i draws its randomness from (seed, i).

    Raises UserError if not a single architecture satisfies the constraints.
    """
    proposer = _Proposer(optimizer, store, plan, observers, patience, ends_at)
    compact = NowAndThen(store.compact, _COMPACTION_SHARE)
    with closing(executor.run(proposer.ask)) as outcomes:
        for outcome in outcomes:
            store.record(outcome)
            for observer in observers:
                observer.finished(store, outcome)
            compact()
    if patience is not None and proposer.ended == "patience":
        store.lose_patience(patience)
    store.compact()
    if proposer.ended == "exhausted" and not store.trials:
        raise nothing_satisfies(store.config["constraint"])
    late = proposer.ended == "budget" and store.spent < plan.budget
    return "time" if late else proposer.ended


class _Proposer:
    """Hands out the trials of a run, in order, and proposes new ones."""

    def __init__(
        self,
        optimizer: Optimizer,
        store: RunStore,
        plan: Plan,
        observers: tuple[Observer, ...],
        patience: int | None,
        ends_at: float,
    ) -> None:
        self._optimizer, self._store, self._observers = optimizer, store, observers
        self._plan, self._patience, self._ends_at = plan, patience, ends_at
        self.ended: End = "budget"
        self._waiting = deque(store.pending())  # proposed, perhaps begun by an earlier process
        self._left = (
            plan.budget - store.spent
        )  # of the budget, once everything handed out has ended

    def ask(self, room: int) -> list[Trial]:
        """At most `room` trials to begin now; none if outcomes must come first, or at the end.

        Trials of a round that exceed the budget stay pending, for a run with a larger budget. An
        asynchronous run proposes no more than its budget allows.
        """
        asked: list[Trial] = []
        while len(asked) < room and self._left > 0 and time.time() < self._ends_at:
            if not self._waiting and not self._propose(room - len(asked)):
                break
            trial = self._waiting.popleft()
            self._left -= trial.cost
            asked.append(trial)
        return asked

    def _propose(self, room: int) -> bool:
        """Propose a round if one is due; returns whether it has trials."""
        store, plan, self.ended = self._store, self._plan, "budget"
        if store.exhausted:
            self.ended = "exhausted"
            return False
        known, count = None, min(room, math.ceil(self._left))
        if plan.schedule == "rounds":
            known, count = store.next_iteration - plan.window + 1, plan.batch_size
            if store.first_open_round < known:
                return False
        if self._patience is not None and store.since_best(plan.n_init, known) >= self._patience:
            self.ended = "patience"
            return False
        suggestion = self._suggest(count, known)
        if not suggestion.archs:
            store.exhaust()
            self.ended = "exhausted"
            return False
        self._waiting += store.propose(suggestion)
        for observer in self._observers:
            observer.proposed(store, suggestion)
        return True

    def _suggest(self, count: int, known: int | None) -> Suggestion:
        """Suggest from the outcomes of rounds before `known`, or of all; the rest is pending."""
        store, seen = self._store, self._store.seen()
        rng = np.random.default_rng([self._plan.seed, store.next_iteration])
        if store.next_iteration == 0:
            return self._optimizer.initial(seen, self._plan.n_init, rng)
        if isinstance(self._optimizer, BayesianOptimizer):
            optimizer, observations = self._optimizer, store.observations(known)
            if self._plan.grace is not None:
                early = store.after(self._plan.grace, known)
                optimizer, observations = with_early_values(optimizer, observations, early)
            return optimizer.suggest(observations, seen, count, rng, store.unknown(known))
        low, rung = store.low_fidelity(), store.rung()
        return self._optimizer.suggest(store.observations(), low, rung, seen, count, rng)
