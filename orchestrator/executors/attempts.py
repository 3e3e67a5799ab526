"""Which trials are tried again, and which of those must run alone."""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from orchestrator.history.trials import Outcome, Trial
from orchestrator.search.trial import Ask


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial.

    alone: with no other evaluation of the run, because the last attempt ran out of memory.
    """

    trial: Trial
    number: int = 1
    alone: bool = False

    def result(
        self, outcome: Outcome, *, lost: bool = False, retries: int = 0
    ) -> "Outcome | Attempt":
        """The outcome of the trial, or the next attempt if this one ended with `outcome`.

        A trial that ran out of memory is tried once more, alone; one lost with its worker up to
        `retries` times.
        """
        if outcome.out_of_memory and not self.alone:
            return Attempt(self.trial, self.number + 1, alone=True)
        if lost and not outcome.out_of_memory and self.number <= retries:
            return replace(self, number=self.number + 1)
        return replace(outcome, attempts=outcome.attempts + self.number - 1)


def to_begin(
    ask: Ask, limit: int, running: Collection[Attempt], again: deque[Attempt]
) -> Iterator[Attempt]:
    """Attempts to begin now: retries first, then new trials; those that must be alone, alone.

    running: a view, to which the caller adds each attempt as it is yielded.
    """
    if any(attempt.alone for attempt in running):
        return
    if any(attempt.alone for attempt in again):
        if not running:
            alone = next(attempt for attempt in again if attempt.alone)
            again.remove(alone)
            yield alone
        return
    while again:
        yield again.popleft()
    free = limit - len(running)
    if free > 0:
        yield from map(Attempt, ask(free))
