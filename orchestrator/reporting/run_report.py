"""The report of a run: one self-contained HTML file, made from the store alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from nag.errors import UserError, counted
from nag.files import utf8
from nag.spaces import Architecture, SearchSpace
from orchestrator.history.run import best_so_far, known_config
from orchestrator.history.trials import SEARCH, Outcome, Trial
from orchestrator.reporting.checklist import (
    WHAT_VALUES_ARE,
    Answer,
    of_low_fidelity,
    reported,
    searched_on,
)
from orchestrator.reporting.drawing import draw, legend
from orchestrator.reporting.figures import (
    draw_calibration,
    draw_curves,
    draw_guidance,
    draw_hypervolume,
    draw_pareto,
    draw_pools,
    draw_progress,
    draw_seconds,
)
from orchestrator.reporting.pages import page_template
from orchestrator.reporting.pareto import Front, pareto_front
from orchestrator.reporting.view import quantities, quantity_of
from orchestrator.search.record import record_of
from orchestrator.search.store import RunStore
from orchestrator.storage.location import Location, reason, write_whole
from trainers.constraints import parse_constraint
from trainers.rows import Unit

_NUM_BEST = 5
_NUM_FRONT = 10
_RELOAD_SECONDS = 20
_RATES = ("validity", "uniqueness", "novelty", "feasible")


class Finished(NamedTuple):
    """A trial and its outcome."""

    trial: Trial
    outcome: Outcome

    @property
    def is_full(self) -> bool:
        """Whether its value comes from a complete evaluation."""
        return self.trial.epochs is None and self.outcome.stopped is None


@dataclass(frozen=True)
class Calibration:
    """Values as predicted before the evaluation and as observed afterwards, each (n,)."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    observed: NDArray[np.float64]

    @classmethod
    def of(cls, finished: Sequence[Finished]) -> "Calibration":
        """From the trials that have both."""
        rows = [
            (trial.predicted_mean, trial.predicted_std, outcome.value)
            for trial, outcome in finished
            if None not in (trial.predicted_mean, trial.predicted_std, outcome.value)
        ]
        return cls(*np.array(rows, dtype=float).reshape(-1, 3).T)

    @property
    def errors(self) -> NDArray[np.float64]:
        """(n,) observed - predicted, in predicted standard deviations."""
        return (self.observed - self.mean) / self.std

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean((self.observed - self.mean) ** 2)))

    @property
    def rank_correlation(self) -> float | None:
        """Kendall's tau-b; None if it is undefined."""
        if min(len(set(self.mean)), len(set(self.observed))) < 2:
            return None
        return float(scipy.stats.kendalltau(self.mean, self.observed).statistic)

    def coverage(self, stds: float) -> float:
        """Share of observations within that many predicted standard deviations."""
        return float(np.mean(np.abs(self.errors) <= stds))


class Limit(NamedTuple):
    """A constraint as a limit on a metric that the run has recorded."""

    metric: str
    at_most: bool
    amount: float

    def __str__(self) -> str:
        quantity = quantity_of(self.metric)
        amount = f"{self.amount / quantity.one:g} {quantity.unit}".rstrip()
        return f"{quantity.label} {'≤' if self.at_most else '≥'} {amount}"

    def satisfied(self, outcome: Outcome) -> bool:
        amount = outcome.metrics.get(self.metric)
        if amount is None:
            return False
        return amount <= self.amount if self.at_most else amount >= self.amount


def write_report(store: RunStore, live: bool = False) -> Location:
    """Write OUT/report.html atomically; equal stores give equal reports. Raises UserError.

    live: the run is in progress, and the page reloads itself.
    """
    path = store.out / "report.html"
    try:
        record = record_of(store.out)
        write_whole(path, utf8(_render(store, record, live)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    return path


def _render(store: RunStore, record: Mapping[str, Any], live: bool) -> str:
    finished = [
        Finished(trial, store.outcomes[trial.trial])
        for trial in store.trials
        if trial.trial in store.outcomes
    ]
    full = [pair for pair in finished if pair.is_full]
    spent = store.history.seconds()
    limits = [Limit(*parse_constraint(text)) for text in record["config"]["constraint"]]
    return page_template(
        "run.html", percent=_percent, seconds=_seconds, value=store.unit.number
    ).render(
        record=record,
        reload_seconds=_RELOAD_SECONDS if live else None,
        config=record["config"],
        unit=store.unit,
        what_values_are=WHAT_VALUES_ARE.get(record["config"]["evaluator"]),
        evaluations=f"{float(store.spent):.10g}",
        patience=store.patience,
        num_low=len(finished) - len(full),
        failed=[_row(store.space, pair) for pair in finished if pair.outcome.value is None],
        best=_best(store, full),
        recorded={name for _, outcome in finished for name in outcome.metrics},
        quantities=quantities(record["config"]),
        limits=limits,
        pareto=_pareto(full, limits, record["config"].get("pareto"), store.unit),
        legend=legend(store.space),
        progress=_progress(store, full),
        curves=_curves(store, finished),
        strategies=_by_strategy(store, full),
        checklist=_checklist(record, store, finished, spent),
        **_calibration(Calibration.of(full), store.unit),
        **_phases(spent),
        **_pools([found["diagnostics"] for found in store.rounds]),
    )


def _row(space: SearchSpace, pair: Finished) -> dict[str, Any]:
    """What the template shows for a trial."""
    trial, outcome = pair
    return {"trial": trial, "outcome": outcome, "arch": space.to_str(trial.arch)}


def _best(store: RunStore, finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """The best distinct architectures, drawn; the earlier of equals first, as in `store.best`."""
    ranked = sorted(
        (pair for pair in finished if pair.outcome.value is not None),
        key=lambda pair: store.merit(pair.outcome.value or 0.0),
        reverse=True,
    )
    distinct: dict[Architecture, Finished] = {}
    for pair in ranked:
        distinct.setdefault(pair.trial.arch, pair)
    return [
        {
            **_row(store.space, pair),
            "drawing": draw(store.space, pair.trial.arch),
            "json": json.dumps(store.space.to_config(pair.trial.arch)),
        }
        for pair in list(distinct.values())[:_NUM_BEST]
    ]


def _progress(store: RunStore, finished: Sequence[Finished]) -> str | None:
    if all(outcome.value is None for _, outcome in finished):
        return None
    values = np.array([outcome.value for _, outcome in finished], dtype=float)
    best = best_so_far(np.array([store.merit(value) for value in values]))
    return draw_progress(
        np.array([trial.trial for trial, _ in finished]),
        values,
        np.append(values, np.nan)[best],
        np.array([trial.strategy == "initial" for trial, _ in finished]),
        store.unit,
    )


def _curves(store: RunStore, finished: Sequence[Finished]) -> str | None:
    """Curves of all trainings, complete or not; the best is chosen among the complete ones."""
    trained = [pair for pair in finished if pair.outcome.curve]
    if not trained:
        return None
    whole = [i for i, pair in enumerate(trained) if pair.is_full and pair.outcome.value is not None]
    best = max(whole, key=lambda i: store.merit(trained[i].outcome.value or 0.0), default=None)
    return draw_curves([pair.outcome.curve for pair in trained], best, store.unit)


def _pareto(
    finished: Sequence[Finished], limits: Sequence[Limit], minimised: str | None, unit: Unit
) -> list[dict[str, Any]]:
    """Value against each minimised or constrained quantity, or against MACs if there is none."""
    first = () if minimised is None else (minimised,)
    names = dict.fromkeys((*first, *(limit.metric for limit in limits))) or {"macs": None}
    return [
        _trade_off(name, pairs, limits, None if name == minimised else _NUM_FRONT, unit)
        for name in names
        if (pairs := [pair for pair in finished if _measured(pair.outcome, name)])
    ]


def _measured(outcome: Outcome, metric: str) -> bool:
    return outcome.value is not None and np.isfinite(outcome.metrics.get(metric, np.nan))


def _trade_off(
    name: str, pairs: Sequence[Finished], limits: Sequence[Limit], top: int | None, unit: Unit
) -> dict[str, Any]:
    """A figure, and the Pareto front or its upper end, best first.

    top: how much of the front to list; None for all of a front that was searched for, whose
        hypervolume is drawn, too.
    """
    quantity = quantity_of(name)
    amounts = np.array([pair.outcome.metrics[name] for pair in pairs]) / quantity.one
    values = np.array([pair.outcome.value for pair in pairs], dtype=float)
    feasible = [all(limit.satisfied(pair.outcome) for limit in limits) for pair in pairs]
    front = pareto_front(amounts, values)
    figure = draw_pareto(
        str(quantity),
        amounts,
        values,
        np.array([pair.trial.strategy == "initial" for pair in pairs]),
        front=front,
        best=int(np.argmax(np.where(feasible, values, -np.inf))) if any(feasible) else None,
        limits=[
            (limit.amount / quantity.one, limit.at_most) for limit in limits if limit.metric == name
        ],
        unit=unit,
    )
    growth, whole = None, Front.of(amounts, values)
    if top is None and whole is not None:
        trials = np.array([pair.trial.trial for pair in pairs])
        growth = draw_hypervolume(trials, whole.progress(amounts, values))
    upper = [pairs[i] for i in front[::-1][:top]]
    return {
        "name": name, "figure": figure, "growth": growth, "front": upper, "num_front": len(front)
    }  # fmt: skip


def _by_strategy(store: RunStore, finished: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """The results of each source of trials, in order of appearance."""
    sources: dict[str, list[float | None]] = {}
    for trial, outcome in finished:
        sources.setdefault(trial.strategy, []).append(outcome.value)
    summary = {}
    for name, values in sources.items():
        found = [value for value in values if value is not None]
        summary[name] = {
            "trials": len(values),
            "failed": len(values) - len(found),
            "median": float(np.median(found)) if found else None,
            "best": max(found, key=store.merit, default=None),
        }
    return summary


def _calibration(found: Calibration, unit: Unit) -> dict[str, Any]:
    figure = None
    if len(found.mean):
        figure = draw_calibration(found.mean, found.std, found.observed, unit)
    return {"calibration": found, "calibration_figure": figure}


def _phases(spent: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    totals = {phase: float(seconds.sum()) for phase, seconds in spent.items()}
    figure = draw_seconds(spent) if sum(totals.values()) > 0 else None
    return {"seconds": totals, "seconds_figure": figure, "num_rounds": len(spent["evaluate"])}


def _checklist(
    record: Mapping[str, Any],
    store: RunStore,
    finished: Sequence[Finished],
    spent: Mapping[str, NDArray[np.float64]],
) -> list[Answer]:
    """The checklist of one run, in brief; the report also shows its record."""
    config = known_config(record)
    failed = sum(outcome.value is None for _, outcome in finished)
    low_fidelity = sum(not pair.is_full for pair in finished)
    has_test = any("test" in outcome.metrics for _, outcome in finished)
    search = sum(float(spent[phase].sum()) for phase in SEARCH)
    return [
        Answer("Search objective", searched_on(config)),
        Answer("Reported", reported(config, has_test)),
        Answer("Seed", f"{config['seed']}; one run does not show the spread over seeds"),
        Answer(
            "Budget",
            f"{counted(config['budget'], 'evaluation')}, including the initial design of "
            f"{config['n_init']}",
        ),
        Answer(
            "Cost, evaluations",
            f"{float(store.spent):.10g}, {failed} of them failed" + of_low_fidelity(low_fidelity),
        ),
        Answer(
            "Cost, seconds",
            f"{search:,.1f} of search (fit, propose, select), "
            f"{spent['evaluate'].sum():,.1f} of evaluation",
        ),
        Answer("Hardware", record["machine"]),
    ]


def _pools(diagnostics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Rates and sizes by round, and their means over the rounds that have them."""
    pools = [found for found in diagnostics if "pool" in found]
    series = {
        name: np.array([found.get(name, np.nan) for found in diagnostics], dtype=float)
        for name in (*_RATES, "pool")
    }
    means = {
        name: float(np.nanmean(numbers))
        for name, numbers in series.items()
        if np.isfinite(numbers).any()
    }
    sizes = series.pop("pool")
    return {
        "pool_means": means,
        "pool_rates": _RATES,
        "num_pools": len(pools),
        "num_generated": int(sum(found.get("generated", 0) for found in pools)),
        "num_near": int(sum(found.get("near", 0) for found in pools)),
        "num_filled": int(sum(found.get("filled", 0) for found in pools)),
        "pools_figure": draw_pools(series, sizes) if pools else None,
        **_guidance(diagnostics),
    }


def _guidance(diagnostics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Strength of guidance by round, and medians over the rounds that have it."""
    series = {
        name: np.array([found.get(name, np.nan) for found in diagnostics], dtype=float)
        for name in ("scale_low", "scale_high", "norm_ratio")
    }
    if not all(np.isfinite(numbers).any() for numbers in series.values()):
        return {"guidance": None, "guidance_figure": None}
    usual = {name: float(np.nanmedian(numbers)) for name, numbers in series.items()}
    return {"guidance": usual, "guidance_figure": draw_guidance(*series.values())}


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}"


def _seconds(seconds: float) -> str:
    """1.23 ms, 12.3 s, 1,234 s."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
