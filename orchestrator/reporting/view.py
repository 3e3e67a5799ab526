"""What the user sees during a run: a live line on a terminal, plain lines elsewhere."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from nag.cli import terminal_bar
from orchestrator.history.trials import Outcome, Trial
from orchestrator.reporting.pareto import pareto_front
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore
from orchestrator.storage.location import Location
from trainers.base import FULL_EPOCHS
from trainers.constraints import parse_constraint


class Quantity(NamedTuple):
    """The label of a metric and the unit in which it is shown."""

    label: str
    unit: str = ""
    one: float = 1.0  # size of the unit
    digits: str = ".2f"

    def __str__(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def number(self, amount: float | None) -> str:
        return "–" if amount is None else f"{amount / self.one:{self.digits}}"

    def text(self, amount: float) -> str:
        return f"{self.number(amount)} {self.unit}".rstrip()


QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {
        "macs": Quantity("MACs", "M", 1e6),
        "params": Quantity("params", "M", 1e6),
        "latency": Quantity("latency", "ms"),
    }
)


def quantity_of(metric: str) -> Quantity:
    """How a metric is shown, including user-defined ones."""
    return QUANTITIES.get(metric, Quantity(metric, digits="g"))


def quantities(config: Mapping[str, Any]) -> dict[str, Quantity]:
    """What to show of trials, where known, by metric: the usual ones, and those of the search."""
    searched = [parse_constraint(text)[0] for text in config["constraint"]]
    searched += filter(None, [config.get("pareto")])
    return {name: quantity_of(name) for name in (*QUANTITIES, *searched)}


class View:
    """An `Observer` that shows progress."""

    def __init__(self, console: Console, budget: int) -> None:
        self._console, self._budget = console, budget
        self._started = time.monotonic()
        self._progress = terminal_bar(console)
        self._task = self._progress.add_task("searching", total=budget)

    @contextmanager
    def live(self, store: RunStore) -> Iterator[None]:
        """Show a progress bar during the run if there is a terminal for it."""
        self._progress.update(self._task, completed=float(store.spent))
        with self._progress:
            yield

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        shares = [
            f"{label} {100 * suggestion.diagnostics[name]:.1f} %"
            for name, label in (("validity", "valid"), ("feasible", "feasible"))
            if name in suggestion.diagnostics
        ]
        note = f"  pool {', '.join(shares)}" if shares else ""
        self._progress.update(self._task, description=f"{_best(store)}{note}")

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        trial, best = store.trials[outcome.trial], _best(store)
        self._progress.update(self._task, completed=float(store.spent), description=best)
        if outcome.value is None:
            self._console.print(f"trial {trial.trial} failed: {outcome.error}")
        elif not self._console.is_terminal:
            self._console.print(
                f"[{float(store.spent):.10g}/{self._budget}] trial {trial.trial} {trial.strategy}  "
                f"value {store.unit.text(outcome.value)}{after(trial, outcome)}  {best}  "
                f"{time.monotonic() - self._started:.0f} s"
            )


def after(trial: Trial, outcome: Outcome) -> str:
    """The note on a value that does not come from a complete training."""
    if outcome.stopped is not None:
        return f" after epoch {outcome.stopped}"
    return "" if trial.epochs is None else f" after {trial.epochs}/{FULL_EPOCHS} of a training"


def _best(store: RunStore) -> str:
    best = store.best
    return "no value yet" if best is None else f"best {store.unit.text(best[1])}"


def print_result(console: Console, store: RunStore, report: Location) -> None:
    """Print the best architecture or the Pareto front, and where the report is."""
    if store.best is None:
        if store.num_finished:
            console.print(f"no evaluation succeeded; see {store.out / 'trials.parquet'}")
        return
    constraints, pareto = store.config["constraint"], store.config.get("pareto")
    kept = f" with {', '.join(constraints)}" if constraints else ""
    if pareto is None:
        trial = store.best[0]
        lines = [
            f"best architecture{kept} (trial {trial.trial}): {_numbers(store, trial)}",
            f"  {store.space.to_str(trial.arch)}",
            f"  {json.dumps(store.space.to_config(trial.arch))}",
        ]
    else:
        lines = [f"Pareto front{kept}:"]
        for trial in _front(store, pareto):
            arch = store.space.to_str(trial.arch)
            lines.append(f"  {_numbers(store, trial)} (trial {trial.trial}): {arch}")
    lines += [f"trials: {store.out / 'trials.parquet'}", f"report: {report}"]
    for line in lines:
        console.print(line)


def _numbers(store: RunStore, trial: Trial) -> str:
    """The value of a trial, and what else is known of it."""
    outcome = store.outcomes[trial.trial]
    numbers = [f"value {store.unit.text(outcome.value or 0.0)}"]
    if "test" in outcome.metrics:
        numbers.append(f"test {store.unit.text(outcome.metrics['test'])}")
    numbers += [
        f"{quantity.label} {quantity.text(outcome.metrics[name])}"
        for name, quantity in quantities(store.config).items()
        if name in outcome.metrics
    ]
    return ", ".join(numbers)


def _front(store: RunStore, name: str) -> list[Trial]:
    """The trials on the Pareto front of the value and a metric, by increasing metric."""
    known = [
        (trial, outcome.metrics[name], outcome.value)
        for trial in store.trials
        if (outcome := store.outcomes.get(trial.trial)) is not None and outcome.value is not None
    ]
    trials, amounts, values = zip(*known, strict=True)
    return [trials[i] for i in pareto_front(np.array(amounts), np.array(values))]
