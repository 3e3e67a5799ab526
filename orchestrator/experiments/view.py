"""What the user sees while an experiment runs."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from nag.cli import terminal_bar
from nag.errors import counted
from orchestrator.experiments.jobs import Job, Result
from orchestrator.history.trials import Outcome
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore

Watch = Callable[[Collection[Job]], None]  # is told from time to time which jobs are running
_REFRESH_SECONDS = 0.5


class Board:
    """Total progress: a line for every job that has ended and, on a terminal, a bar of trials."""

    def __init__(self, console: Console, jobs: Sequence[Job], root: Path) -> None:
        self._console, self._jobs, self._root = console, jobs, root
        found = {job.label: job.progress(root) for job in jobs}
        self._trials = {label: trials for label, (trials, _) in found.items()}
        self._finished = {label for label, (_, finished) in found.items() if finished}
        self._started, self._before = time.monotonic(), self._done
        self._bar = terminal_bar(console, "trials, time left")
        self._task = self._bar.add_task(self._runs, total=self._total, completed=self._done)

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self._jobs if job.label not in self._finished]

    @property
    def num_finished(self) -> int:
        return len(self._finished)

    def live(self) -> AbstractContextManager[object]:
        """Show a progress bar if there is a terminal for it."""
        return self._bar

    def watch(self, going: Collection[Job]) -> None:
        """Look how far the running jobs have got."""
        for job in going:
            self._trials[job.label], _ = job.progress(self._root)
        self._bar.update(self._task, description=self._runs, completed=self._done)

    def ended(self, job: Job, result: Result) -> None:
        if not result.failed:
            self._finished.add(job.label)
        self.watch([job])
        left = "" if self._console.is_terminal else self._time_left()
        outcome = f"failed: {result.text}" if result.failed else result.text
        self._console.print(f"[{self._runs}] {job.label}: {outcome}, {result.seconds:.0f} s{left}")

    def __str__(self) -> str:
        trials = f", {self._done:,} of {counted(self._total, 'trial')}" if self._total else ""
        return f"{self._runs} finished{trials}, in {self._root}"

    @property
    def _runs(self) -> str:
        return f"{len(self._finished)}/{counted(len(self._jobs), 'run')}"

    @property
    def _total(self) -> int:
        return sum(job.trials for job in self._jobs)

    @property
    def _done(self) -> int:
        return sum(self._trials.values())

    def _time_left(self) -> str:
        """At the pace since the start; empty before there is one."""
        made, left = self._done - self._before, self._total - self._done
        if not made or not left:
            return ""
        seconds = (time.monotonic() - self._started) * left / made
        return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"


class Heartbeat:
    """An `Observer` that calls a function from time to time during a search in this process."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function, self._last = function, time.monotonic()

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        del store, suggestion
        if time.monotonic() - self._last > _REFRESH_SECONDS:
            self._function()
            self._last = time.monotonic()

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        """Nothing: the round is still running."""
