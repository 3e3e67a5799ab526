"""The store of a run: an append-only journal, from which everything else is derived.

    OUT/config.json     configuration, versions, command, machine
    OUT/journal.jsonl   one line per event: a batch proposed, a trial finished
    OUT/trials.parquet  one row per finished trial, rewritten now and then, and at the end

OUT is a folder or a URI; where files cannot be appended to, the journal is a folder of them.
A batch is journalled before it runs and an outcome as soon as it is known, each with a timestamp.
So if a process is killed at any time, the next one finds the trials still to run. `LocalJournal`
and `SegmentJournal` say how much of a journal a crash can lose.
"""

import errno
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nag.errors import UserError, counted
from nag.predictors.base import Observations
from nag.spaces import Architecture, find_space
from orchestrator.config import RunConfig
from orchestrator.history.record import DamagedRunError
from orchestrator.history.trials import History, Outcome, Trial
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.record import (
    RESTORE,
    check_same_run,
    record_of,
    run_record,
    write_record,
)
from orchestrator.search.successes import Successes
from orchestrator.storage.events import Event, Events
from orchestrator.storage.journal import Journal, open_journal, read_journal
from orchestrator.storage.location import Location, reason, write_whole
from trainers.base import FULL_EPOCHS
from trainers.build import unit_of
from trainers.rows import to_parquet

TABLE = "trials.parquet"
COLUMNS = (
    "trial",
    "arch",
    "value",
    "status",
    "error",
    "iteration",
    "strategy",
    "seed",
    "seconds",
    "attempts",
    "predicted_mean",
    "predicted_std",
)
_OFTEN_EMPTY = ("curve", "stopped", "device", "gpu_memory")  # fields of outcomes


class RunStore:
    """State of one run. Open it with `RunStore.open`, which also locks it.

    What every round asks for is updated trial by trial, so rounds do not get slower as a run grows,
    except for the copy that `observations` makes.

    config: of the run, as in config.json.
    unit: of the values, in files and where they are shown.
    history: the content of the journal.
    """

    def __init__(self, out: Location, config: Mapping[str, Any], journal: Journal | None) -> None:
        self.out, self.config = out, config
        self.space, self.unit = find_space(config["space"]), unit_of(config["evaluator"])
        self.history = History(self.space)
        target = config["target"]
        self._target = None if target is None else target / self.unit.times
        self.best: tuple[Trial, float] | None = None  # of full fidelity; the first if tied
        self._pending: dict[int, Trial] = {}
        self._seen: dict[Architecture, None] = {}
        self._full, self._low = Successes(), Successes()
        self._curves: dict[int, Sequence[float]] = {}  # of trials that were trained
        self._epochs = 0  # spent on the outcomes
        self._num_saved = 0  # outcomes that outlive this process
        self._journal = journal  # None: read-only

    @classmethod
    def open(
        cls, out: Location, config: RunConfig, command: Sequence[str] | None = None
    ) -> "RunStore":
        """Create the run or continue it; raises UserError when `out` holds another run.

        command: to be recorded; by default that of this process.
        """
        check_same_run(out, config)
        try:
            record = run_record(config, command or sys.orig_argv)
            journal = open_journal(out)
            store = cls(out, record["config"], journal)
            try:
                check_same_run(out, config)  # locked now: nobody else can change it
                store._replay(journal.replay())
                store._check()
                write_record(out / "config.json", record)
            except BaseException:
                store.close()
                raise
        except OSError as error:
            raise UserError(f"cannot write to {out}: {reason(error)}") from error
        return store

    def _check(self) -> None:
        """Raise UserError if going on would lose data that is there; called before any write."""
        budget = self.config["budget"]
        if (tabled := num_tabled(self.out)) > self.num_finished:
            raise UserError(
                f"the journal of {self.out} is incomplete, with {self.num_finished} of the "
                f"{counted(tabled, 'trial')} in {TABLE}: {RESTORE.format(self.out)}"
            )
        if self.spent > budget and record_of(self.out)["config"]["budget"] > budget:
            raise UserError(
                f"{self.out} has {float(self.spent):.10g} evaluations, more than --budget {budget}"
            )

    @classmethod
    def read(cls, out: Location) -> "RunStore":
        """The run as it is now, even while another process continues it; raises UserError.

        Nothing is locked or written.
        """
        store = cls(out, record_of(out)["config"], None)
        try:
            store._replay((str(out / file), events) for file, events in read_journal(out))
        except OSError as error:
            raise UserError(f"cannot read the journal of {out}: {reason(error)}") from error
        return store

    @property
    def trials(self) -> Sequence[Trial]:
        return self.history.trials

    @property
    def outcomes(self) -> dict[int, Outcome]:
        return self.history.outcomes

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """The seconds and diagnostics of each round."""
        return self.history.rounds

    @property
    def exhausted(self) -> bool:
        """Whether the space holds no more architectures to propose."""
        return self.history.exhausted

    @property
    def patience(self) -> int | None:
        """The patience that has ended the run; None if it goes on, or ended otherwise."""
        return self.history.patience

    def merit(self, value: float) -> float:
        """What the best trial maximises: its value or, with a target, its closeness to that."""
        return value if self._target is None else -abs(value - self._target)

    @property
    def num_finished(self) -> int:
        return len(self.outcomes)

    @property
    def next_iteration(self) -> int:
        return len(self.rounds)

    @property
    def spent(self) -> Fraction:
        """The cost of the outcomes, in evaluations of full fidelity."""
        return Fraction(self._epochs, FULL_EPOCHS)

    def pending(self) -> list[Trial]:
        """Trials proposed but without an outcome, in order."""
        return list(self._pending.values())

    def seen(self) -> Set[Architecture]:
        """Everything ever proposed, failed trials included; a live view."""
        return self._seen.keys()

    @property
    def first_open_round(self) -> int:
        """The first round with a trial that has no outcome; the next round if all have one."""
        first = next(iter(self._pending.values()), None)
        return self.next_iteration if first is None else first.iteration

    def observations(self, before: int | None = None) -> Observations:
        """The successful full-fidelity trials of the rounds before `before`, or of all.

        Ordered by trial number, whatever order they finished in.
        """
        return self._full.between(0, self._end(before))

    def unknown(self, before: int | None = None) -> tuple[Architecture, ...]:
        """What else was proposed: without an outcome, or in round `before` or later."""
        end = self._end(before)
        open_ends = [trial for trial in self._pending.values() if trial.trial < end]
        return tuple(trial.arch for trial in (*open_ends, *self.trials[end:]))

    def after(self, epoch: int, before: int | None = None) -> Observations:
        """Values of the trials of rounds before `before` after that epoch of their training."""
        end = self._end(before)
        found = sorted(
            (number, curve[epoch - 1])
            for number, curve in self._curves.items()
            if number < end and len(curve) >= epoch
        )
        archs = tuple(self.trials[number].arch for number, _ in found)
        return Observations(archs, np.array([value for _, value in found], dtype=float))

    def low_fidelity(self) -> Observations:
        """The successful low-fidelity trials, in the same order as `observations`."""
        return self._low.between(0, len(self.trials))

    def rung(self) -> Observations:
        """Those of the last round, if that was one of low fidelity."""
        return self._low.between(self._end(len(self.rounds) - 1), len(self.trials))

    def since_best(self, first: int, before: int | None = None) -> int:
        """How many full-fidelity trials come after the best of them and after the first `first`.

        By trial number; in the rounds before `before`, or in all.
        """
        ended = [
            self.outcomes[trial.trial]
            for trial in self.trials[: self._end(before)]
            if trial.epochs is None and trial.trial in self.outcomes
        ]
        merits = [
            -math.inf if end.value is None or end.stopped is not None else self.merit(end.value)
            for end in ended
        ]
        best = int(np.argmax(merits)) if merits else -1
        return max(len(merits) - max(best + 1, first), 0)

    def _end(self, before: int | None) -> int:
        """How many trials the rounds before `before` have, or all rounds."""
        first = self.history.first
        if before is None or before >= len(first):
            return len(self.trials)
        return first[max(before, 0)] if first else 0

    def propose(self, suggestion: Suggestion) -> list[Trial]:
        """Turn a suggestion into trials; they are in the journal before this returns."""
        first, iteration, seed = len(self.trials), self.next_iteration, self.config["seed"]
        fidelity = {} if suggestion.epochs is None else {"epochs": suggestion.epochs}
        trials = [
            {
                "trial": first + i,
                "iteration": iteration,
                "arch": self.space.to_str(arch),
                "strategy": suggestion.strategy,
                "seed": int(np.random.SeedSequence([seed, first + i]).generate_state(1)[0]),
                "predicted_mean": predicted[0] if predicted else None,
                "predicted_std": predicted[1] if predicted else None,
                **fidelity,
            }
            for i, (arch, predicted) in enumerate(
                zip(suggestion.archs, suggestion.predicted, strict=True)
            )
        ]
        self._append(
            {
                "event": "proposed",
                "trials": trials,
                "seconds": dict(suggestion.seconds),
                "diagnostics": dict(suggestion.diagnostics),
            },
            worth=sum(suggestion.seconds.values()),
        )
        self._begin(proposed := self.history.trials[first:])
        return proposed

    def record(self, outcome: Outcome) -> None:
        """Journal an outcome before returning; a second one for the same trial is ignored."""
        if outcome.trial not in self.outcomes:
            event = {"event": "finished", **asdict(outcome)}
            for name in _OFTEN_EMPTY:
                if not event[name]:
                    del event[name]
            self._append(event, worth=outcome.seconds)
            self._finish(outcome)

    def exhaust(self) -> None:
        """Record that there is nothing left to propose."""
        if not self.exhausted:
            self._append({"event": "exhausted"}, worth=0.0)

    def lose_patience(self, after: int) -> None:
        """Record that the run ends after this many evaluations without a better one."""
        if self.patience != after:
            self._append({"event": "patience", "after": after}, worth=0.0)

    def compact(self) -> None:
        """Save the journal, and rewrite trials.parquet from it."""
        with self._writing() as journal:
            journal.sync()
            self._num_saved = self.num_finished
            write_whole(self.out / TABLE, to_parquet(self.rows(), COLUMNS))

    def rows(self) -> list[dict[str, Any]]:
        """One row per finished trial, in order, accuracies in percent.

        With `epochs` if not all trials are of full fidelity (for which it is None); and where they
        exist, the training `curve`, the epoch after which training was `stopped`, the `device` on
        which latency was measured, and `gpu_memory`, the share of a GPU's memory that was used.
        """
        rows, written = [], self.unit.written
        one_fidelity = all(trial.epochs is None for trial in self.trials)
        for trial in self.trials:
            outcome = self.outcomes.get(trial.trial)
            if outcome is None:
                continue
            row = {**vars(trial), **vars(outcome), "arch": self.space.to_str(trial.arch)}
            metrics = row.pop("metrics")
            if one_fidelity:
                del row["epochs"]
            row["curve"] = [self.unit.times * value for value in outcome.curve]
            for name in _OFTEN_EMPTY:
                if not row[name]:
                    del row[name]
            for name in ("predicted_mean", "predicted_std"):
                row[name] = None if row[name] is None else self.unit.times * row[name]
            row |= written({"value": row["value"]})
            rows.append(row | {name: x for name, x in written(metrics).items() if name not in row})
        return rows

    def close(self) -> None:
        if self._journal is not None:
            with self._writing() as journal:
                journal.close()

    def _append(self, event: Event, worth: float) -> None:
        event["at"] = round(time.time(), 3)
        with self._writing() as journal:
            journal.append(event, worth)
        self.history.apply(event)
        if journal.saved:
            self._num_saved = self.num_finished

    @contextmanager
    def _writing(self) -> Iterator[Journal]:
        """A failed write becomes a UserError that says what is saved and what to do."""
        if self._journal is None:
            raise ValueError("this run was opened read-only")
        try:
            yield self._journal
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            mend = "free some space" if full else "fix this"
            raise UserError(
                f"cannot write to {self.out}: {reason(error)}; "
                f"{counted(self._num_saved, 'trial is', 'trials are')} saved; {mend} and repeat "
                "the command"
            ) from error

    def _replay(self, files: Iterable[tuple[str, Events]]) -> None:
        """Rebuild the state; damage is a UserError."""
        try:
            self.history.replay(files)
        except DamagedRunError as error:
            raise UserError(f"{error}: {RESTORE.format(self.out)}") from None
        self._begin(self.trials)
        for outcome in self.outcomes.values():
            self._finish(outcome)
        self._num_saved = self.num_finished

    def _begin(self, trials: Sequence[Trial]) -> None:
        self._pending.update((trial.trial, trial) for trial in trials)
        self._seen.update((trial.arch, None) for trial in trials)

    def _finish(self, outcome: Outcome) -> None:
        trial, value = self._pending.pop(outcome.trial), outcome.value
        self._epochs += trial.work
        if value is None:
            return
        if outcome.curve:
            self._curves[trial.trial] = outcome.curve
        if outcome.stopped is not None:
            return
        (self._full if trial.epochs is None else self._low).add(trial, value)
        if trial.epochs is None and (
            self.best is None
            or (self.merit(value), -trial.trial) > (self.merit(self.best[1]), -self.best[0].trial)
        ):
            self.best = trial, value


def num_tabled(out: Location) -> int:
    """Trials in the table of a run; 0 if there is no readable one. Raises OSError."""
    try:
        return pq.read_metadata(pa.BufferReader((out / TABLE).read_bytes())).num_rows
    except (FileNotFoundError, pa.ArrowException):
        return 0
