"""The loop: suggest, journal, evaluate, journal, again. All state is in the store."""

from time import perf_counter
from typing import Protocol

import numpy as np

from orchestrator.bayesopt import BayesianOptimizer, Suggestion
from orchestrator.store import RunStore
from orchestrator.trial import Executor, Outcome

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
    optimizer: BayesianOptimizer,
    executor: Executor,
    store: RunStore,
    *,
    budget: int,
    n_init: int,
    batch_size: int,
    seed: int,
    observers: tuple[Observer, ...] = (),
) -> None:
    """Run until `budget` trials are finished or the space is exhausted.

    Safe to call again on the same store: it continues. Round i draws its randomness from (seed, i)
    and sees the outcomes of all earlier rounds in the order of their trials, so the trials depend
    neither on the number of workers nor on who finished first.
    """
    compact_at = perf_counter()
    while store.num_finished < budget:
        batch = store.pending()
        if not batch:
            suggestion = _suggest(optimizer, store, n_init, batch_size, seed)
            if not suggestion.archs:
                break
            batch = store.propose(suggestion)
            for observer in observers:
                observer.proposed(store, suggestion)
        # What the budget leaves of a batch stays pending: a longer run goes on with it.
        for outcome in executor.run(batch[: budget - store.num_finished]):
            store.record(outcome)
            for observer in observers:
                observer.finished(store, outcome)
        if (started := perf_counter()) >= compact_at:
            store.compact()
            ended = perf_counter()
            compact_at = ended + (ended - started) / _COMPACTION_SHARE
    store.compact()


def _suggest(
    optimizer: BayesianOptimizer,
    store: RunStore,
    n_init: int,
    batch_size: int,
    seed: int,
) -> Suggestion:
    rng = np.random.default_rng([seed, store.next_iteration])
    if store.next_iteration == 0:
        return optimizer.initial(store.seen(), n_init, rng)
    return optimizer.suggest(store.observations(), store.seen(), batch_size, rng)
