"""The loop: suggest, journal, evaluate, journal, again. All state is in the store."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from time import perf_counter
from typing import Protocol

import numpy as np

from orchestrator.bayesopt import BayesianOptimizer, Suggestion
from orchestrator.halving import SuccessiveHalving
from orchestrator.store import RunStore
from orchestrator.trial import Executor, Outcome, Trial

Optimizer = BayesianOptimizer | SuccessiveHalving

_COMPACTION_SHARE = 0.05  # of the time, at most, goes to rewriting the table of trials


class Observer(Protocol):
    """Is told what happens; must not change it."""

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        """A batch was suggested and journalled."""
        ...

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        """A trial has an outcome."""
        ...


def run_study(
    optimizer: Optimizer,
    executor: Executor,
    store: RunStore,
    *,
    budget: int,
    n_init: int,
    batch_size: int,
    seed: int,
    observers: tuple[Observer, ...] = (),
) -> None:
    """Run until `budget` evaluations are spent or the space is exhausted.

    A trial of low fidelity is a part of an evaluation. The last trial begins before the budget is
    spent, so a part of an evaluation may be spent beyond it.

    Safe to call again on the same store: it continues. Round i draws its randomness from (seed, i)
    and sees the outcomes of all earlier rounds in the order of their trials, so the trials depend
    neither on the number of workers nor on who finished first.
    """
    compact_at = perf_counter()
    while store.spent < budget:
        batch = store.pending()
        if not batch:
            suggestion = _suggest(optimizer, store, n_init, batch_size, seed)
            if not suggestion.archs:
                break
            batch = store.propose(suggestion)
            for observer in observers:
                observer.proposed(store, suggestion)
        # What the budget leaves of a batch stays pending: a longer run goes on with it.
        for outcome in executor.run(list(_affordable(batch, budget - store.spent))):
            store.record(outcome)
            for observer in observers:
                observer.finished(store, outcome)
        if (started := perf_counter()) >= compact_at:
            store.compact()
            ended = perf_counter()
            compact_at = ended + (ended - started) / _COMPACTION_SHARE
    store.compact()


def _affordable(batch: Iterable[Trial], left: Fraction) -> Iterator[Trial]:
    """The trials that begin, in order, before `left` evaluations are spent."""
    for trial in batch:
        if left <= 0:
            break
        yield trial
        left -= trial.cost


def _suggest(
    optimizer: Optimizer,
    store: RunStore,
    n_init: int,
    batch_size: int,
    seed: int,
) -> Suggestion:
    rng = np.random.default_rng([seed, store.next_iteration])
    if store.next_iteration == 0:
        return optimizer.initial(store.seen(), n_init, rng)
    if isinstance(optimizer, BayesianOptimizer):
        return optimizer.suggest(store.observations(), store.seen(), batch_size, rng)
    return optimizer.suggest(
        store.observations(), store.low_fidelity(), store.rung(), store.seen(), batch_size, rng
    )
