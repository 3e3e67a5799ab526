"""The report of a run: one HTML file that needs nothing else, made from the store alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from scipy.stats import spearmanr

from nag.spaces import Architecture, SearchSpace
from orchestrator.drawing import draw, legend
from orchestrator.figures import draw_calibration, draw_pools, draw_progress, draw_seconds
from orchestrator.store import RunStore
from orchestrator.trial import Outcome, Trial

_NUM_BEST = 5
_RATES = ("validity", "uniqueness", "novelty")
_WHAT_VALUES_ARE: Mapping[str, str] = MappingProxyType(
    {
        "surrogate": "Values are an estimate by the embedded surrogate, not ImageNet training; "
        "see docs/surrogate.md.",
        "table": "Values are looked up in a benchmark table; this run trained no network.",
        "toy": "Values are synthetic: a formula, which measures nothing.",
    }
)


class Finished(NamedTuple):
    """A trial and what became of it."""

    trial: Trial
    outcome: Outcome


@dataclass(frozen=True)
class Calibration:
    """Values as predicted before the evaluation and as then observed, each (n,) fractions."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    observed: NDArray[np.float64]

    @classmethod
    def of(cls, finished: Sequence[Finished]) -> "Calibration":
        """Of the trials that have both."""
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
        """Spearman's; None where ranks mean nothing."""
        if min(len(set(self.mean)), len(set(self.observed))) < 2:
            return None
        return float(spearmanr(self.mean, self.observed).statistic)

    def coverage(self, stds: float) -> float:
        """Share of observations within that many predicted standard deviations."""
        return float(np.mean(np.abs(self.errors) <= stds))


def write_report(store: RunStore) -> Path:
    """Write OUT/report.html, aside and then into place; equal stores give equal reports."""
    path = store.out / "report.html"
    record = json.loads((store.out / "config.json").read_text())
    aside = path.with_suffix(".html.tmp")
    aside.write_text(_render(store, record), encoding="utf-8")
    aside.replace(path)
    return path


def _render(store: RunStore, record: Mapping[str, Any]) -> str:
    finished = [
        Finished(trial, store.outcomes[trial.trial])
        for trial in store.trials
        if trial.trial in store.outcomes
    ]
    environment = Environment(
        loader=PackageLoader("orchestrator"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "millions": _millions, "seconds": _seconds}
    return environment.get_template("report.html").render(
        record=record,
        config=record["config"],
        what_values_are=_WHAT_VALUES_ARE.get(record["config"]["evaluator"]),
        num_finished=len(finished),
        failed=[_row(store.space, pair) for pair in finished if pair.outcome.value is None],
        best=_best(store.space, finished),
        recorded={name for _, outcome in finished for name in outcome.metrics},
        legend=legend(store.space),
        progress=_progress(finished),
        strategies=_by_strategy(finished),
        **_calibration(Calibration.of(finished)),
        **_phases(_seconds_by_phase(store.rounds, finished)),
        **_pools([spent["diagnostics"] for spent in store.rounds]),
    )


def _row(space: SearchSpace, pair: Finished) -> dict[str, Any]:
    """What the template shows of a trial."""
    trial, outcome = pair
    return {"trial": trial, "outcome": outcome, "arch": space.to_str(trial.arch)}


def _best(space: SearchSpace, finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """The best distinct architectures, drawn; the earlier of equals first, as in `store.best`."""
    ranked = sorted(
        (pair for pair in finished if pair.outcome.value is not None),
        key=lambda pair: pair.outcome.value or 0.0,
        reverse=True,
    )
    distinct: dict[Architecture, Finished] = {}
    for pair in ranked:
        distinct.setdefault(pair.trial.arch, pair)
    return [
        {
            **_row(space, pair),
            "drawing": draw(space, pair.trial.arch),
            "json": json.dumps(space.to_config(pair.trial.arch)),
        }
        for pair in list(distinct.values())[:_NUM_BEST]
    ]


def _progress(finished: Sequence[Finished]) -> str | None:
    if all(outcome.value is None for _, outcome in finished):
        return None
    return draw_progress(
        np.array([trial.trial for trial, _ in finished]),
        np.array([outcome.value for _, outcome in finished], dtype=float),
        np.array([trial.strategy == "initial" for trial, _ in finished]),
    )


def _by_strategy(finished: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """What each source of trials brought, in order of appearance."""
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
            "best": max(found, default=None),
        }
    return summary


def _calibration(found: Calibration) -> dict[str, Any]:
    figure = draw_calibration(found.mean, found.std, found.observed) if len(found.mean) else None
    return {"calibration": found, "calibration_figure": figure}


def _seconds_by_phase(
    rounds: Sequence[Mapping[str, Any]], finished: Sequence[Finished]
) -> dict[str, NDArray[np.float64]]:
    """Seconds (R,) of each phase by round; evaluations count where they were proposed."""
    spent = {
        phase: np.array([found["seconds"].get(phase, 0.0) for found in rounds], dtype=float)
        for phase in ("fit", "propose", "select")
    }
    spent["evaluate"] = np.zeros(len(rounds))
    for trial, outcome in finished:
        spent["evaluate"][trial.iteration] += outcome.seconds
    return spent


def _phases(spent: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    totals = {phase: float(seconds.sum()) for phase, seconds in spent.items()}
    figure = draw_seconds(spent) if sum(totals.values()) > 0 else None
    return {"seconds": totals, "seconds_figure": figure, "num_rounds": len(spent["evaluate"])}


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
        "num_filled": int(sum(found.get("filled", 0) for found in pools)),
        "pools_figure": draw_pools(series, sizes) if pools else None,
    }


def _percent(fraction: float | None, digits: int = 3) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def _millions(number: float | None) -> str:
    return "–" if number is None else f"{number / 1e6:.2f}"


def _seconds(seconds: float) -> str:
    """1.23 ms, 12.3 s, 1,234 s."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
