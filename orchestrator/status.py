"""`python -m orchestrator.status`: the progress of a run that another process drives."""

import time
from collections.abc import Iterator
from contextlib import suppress

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from nag.cli import command_line, plain_console, run
from nag.errors import counted
from orchestrator.reporting.view import after
from orchestrator.search.store import RunStore
from orchestrator.storage.journal import in_use
from orchestrator.storage.location import PathOrURI

app = command_line(
    "python -m orchestrator.status",
    "python -m orchestrator.status runs/mobilenetv3-guided-ei-seed0 --watch",
    "python -m orchestrator.status s3://bucket/run",
)

_NUM_LAST = 8  # outcomes and pending trials shown
_NUM_RATE = 20  # last outcomes, from which the rate is computed
_UNWRAPPED = 10_000  # columns without a terminal, so that no line is wrapped
_POLL_SECONDS = 1.0
_SHARE = 0.1  # of the time, at most, is spent reading


@app.default
def main(out: PathOrURI, *, watch: bool = False) -> None:
    """Show how a run is going, without writing anything there.

    Parameters
    ----------
    out
        The --out of a run, a folder or URI, whichever machine drives it.
    watch
        Keep refreshing until the run has ended or Ctrl-C.
    """
    console = plain_console(stderr=False)
    if not console.is_terminal:
        console.width = _UNWRAPPED
    store = RunStore.read(out)
    if not watch:
        console.print(display(store, time.time()))
        return
    with suppress(KeyboardInterrupt), Live(display(store, time.time()), console=console) as live:
        pause = _POLL_SECONDS
        while not finished(store):
            time.sleep(pause)
            started = time.perf_counter()
            store = RunStore.read(out)
            live.update(display(store, time.time()))
            pause = max(_POLL_SECONDS, (time.perf_counter() - started) / _SHARE)


def finished(store: RunStore) -> bool:
    """Whether the run has ended: by its budget, its space or its patience."""
    exhausted = store.exhausted and not store.pending()
    return _left(store) == 0 or exhausted or store.patience is not None


def _left(store: RunStore) -> float:
    """Evaluations until the budget is spent."""
    return max(float(store.config["budget"] - store.spent), 0.0)


def _rate(store: RunStore, now: float) -> float | None:
    """Evaluations per second over the last few outcomes; None if there are too few."""
    ends = sorted((at, trial) for trial, at in store.history.finished_at.items())[-_NUM_RATE:]
    if len(ends) < 2 or now <= ends[0][0]:
        return None
    return float(sum(store.trials[trial].cost for _, trial in ends[1:])) / (now - ends[0][0])


def display(store: RunStore, now: float) -> RenderableType:
    """Everything about a run, with times relative to `now`, in seconds since the epoch."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, fact in _facts(store, now):
        facts.add_row(name, fact)
    return Group(facts, *([_last(store, now)] if store.outcomes else []))


def _facts(store: RunStore, now: float) -> Iterator[tuple[str, RenderableType]]:
    config = store.config
    names = ("space", "evaluator", "dataset", "surrogate", "strategy", "acq")
    parts = [str(config[name]) for name in names if config[name] not in (None, "none")]
    if config["target"] is not None:
        parts[-1] += f" {config['target']:g} {store.unit.sign}".rstrip()
    yield "run", str(store.out)
    parts += config["constraint"]
    parts += [f"pareto {config['pareto']}"] if config.get("pareto") else []
    yield "search", ", ".join((*parts, f"seed {config['seed']}"))
    failed = sum(outcome.value is None for outcome in store.outcomes.values())
    budget = counted(config["budget"], "evaluation")
    yield "progress", f"{float(store.spent):.10g} of {budget}, {failed} failed"
    if store.exhausted:
        yield "", "the space is exhausted"
    if store.patience is not None:
        without = counted(store.patience, "evaluation")
        yield "", f"ended after {without} without a better one"
    yield "", ProgressBar(config["budget"], float(store.spent), width=40)
    if store.best is not None:
        trial, value = store.best
        found = f"{store.unit.text(value)}, trial {trial.trial} ({trial.strategy})"
        yield "best", f"{found}, {_ago(store.history.finished_at[trial.trial], now)}"
        yield "", store.space.to_str(trial.arch)
    if not finished(store):
        rate = _rate(store, now)
        if not in_use(store.out):
            yield "rate", "0, as no process drives the run: repeat its command to continue"
        elif rate:
            left = duration(_left(store) / rate)
            yield "rate", f"{60 * rate:.3g} evaluations a minute, {left} left at this rate"
    if pending := store.pending():
        since = [
            f"trial {trial.trial}, {_ago(store.history.proposed_at[trial.iteration], now)}"
            for trial in pending[:_NUM_LAST]
        ]
        more = ["…"] if len(pending) > _NUM_LAST else []
        yield "pending", f"{len(pending)}, proposed: " + "; ".join(since + more)
    phases = store.history.seconds().items()
    yield "seconds", ", ".join(f"{phase} {spent.sum():.1f}" for phase, spent in phases)
    if events := [*store.history.proposed_at, *store.history.finished_at.values()]:
        yield "last event", _ago(max(events), now)


def _last(store: RunStore, now: float) -> Table:
    """The last outcomes, in order of arrival."""
    values = map(store.unit.label, ("value", "predicted"))
    table = Table("trial", "strategy", *values, "seconds", "ended", "error")
    for trial, outcome in list(store.outcomes.items())[-_NUM_LAST:]:
        proposal = store.trials[trial]
        table.add_row(
            str(trial),
            proposal.strategy,
            f"{store.unit.number(outcome.value)}{after(proposal, outcome)}",
            store.unit.number(proposal.predicted_mean),
            f"{outcome.seconds:.1f}",
            _ago(store.history.finished_at[trial], now),
            outcome.error or "",
        )
    return table


def duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 5 min, 3 d 4 h; never negative, even if clocks differ."""
    seconds = max(seconds, 0.0)
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86_400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _ago(at: float, now: float) -> str:
    return f"{duration(now - at)} ago"


if __name__ == "__main__":
    run(app)
