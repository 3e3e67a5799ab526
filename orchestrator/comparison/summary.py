"""The results of a panel: curves, marks, areas, evaluations to a target, tests, diagnostics.

S seeds, n evaluations, W windows of evaluations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nag.errors import UserError
from orchestrator.comparison.diagnostics import WINDOW, diagnose
from orchestrator.comparison.panels import Method, Panel
from orchestrator.comparison.statistics import (
    Comparison,
    Interval,
    Numbers,
    Ranking,
    area_under,
    censored_quartiles,
    compare_all,
    evaluations_to,
    list_schedule,
    mean_interval,
    pointwise_interval,
    rank_methods,
)
from orchestrator.history.run import Run, best_so_far
from orchestrator.reporting.pareto import Front, best_below
from trainers.rows import PERCENT

MARKS = (30, 50, 100)
_FOUND = "the best value of any run in this report"
_WITHIN, _WITHIN_FRONT = 0.1, 10.0  # of the optimum, where evaluations to the target end
_GRID = 200  # points of a curve over time

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Settings:
    """Settings of the report, the same for every panel except for optimum and target.

    optimum, target: values by panel; accuracies are fractions.
    within: in points, or in the unit of the panel's values; by default 0.1, and 10 for fronts.
    """

    marks: tuple[int, ...] = ()
    horizon: int | None = None
    reference: str | None = None
    optimum: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, float] = field(default_factory=dict)
    within: float | None = None
    workers: tuple[int, ...] = ()

    def check(self, panels: Sequence[Panel]) -> None:
        """Raise UserError for an unknown panel or method, and for an invalid percentage."""
        units = {panel.name: panel.unit for panel in panels}
        fronts = [panel.name for panel in panels if panel.pareto and panel.name in self.optimum]
        if fronts:
            raise UserError(
                f"--optimum cannot be given for {fronts[0]!r}: its runs search for a Pareto front "
                "and are compared with all of them together"
            )
        for option, by_panel in (("optimum", self.optimum), ("target", self.target)):
            for name, level in by_panel.items():
                if name not in units:
                    raise UserError(
                        f"unknown panel {name!r} for --{option}: choose from {', '.join(units)}"
                    )
                shown = level * units[name].times
                if units[name] == PERCENT and not 1 <= shown <= 100:
                    raise UserError(f"--{option} {shown:g} is in percent: it must be 1 to 100")
        labels = sorted({method.label for panel in panels for method in panel.methods})
        if self.reference is not None and self.reference not in labels:
            raise UserError(
                f"unknown method {self.reference!r} for --reference: choose from "
                f"{', '.join(labels)}"
            )


class Level(NamedTuple):
    """A value that curves are measured against, and where it comes from."""

    value: float
    source: str


_ALL = Level(1.0, "the hypervolume of all runs in this report together")


class Hits(NamedTuple):
    """Evaluations to the target: how many runs reached it, and quartiles with censoring."""

    reached: int
    n: int
    quartiles: tuple[float, ...]  # infinite: later than the runs go
    last: int  # evaluations of the longest run that did not reach it


class Curve(NamedTuple):
    """Mean and half-width of its interval over the seeds that have got that far; (n,) each.

    whole: how many points cover all seeds that have begun.
    """

    x: Numbers
    mean: Numbers
    half: Numbers
    whole: int


@dataclass(frozen=True)
class Summary:
    """Everything that the report says about a panel, computed on demand."""

    panel: Panel
    settings: Settings
    best_known: float | None = None  # value of any run of the same task in the report
    front: Front | None = None  # of all runs of the same task, if they search for one

    @cached_property
    def horizon(self) -> int:
        """Number of evaluations over which methods are compared."""
        return self.settings.horizon or self.panel.usual_budget

    @cached_property
    def marks(self) -> tuple[int, ...]:
        """The requested marks, or the usual ones below the horizon, and the horizon."""
        if self.settings.marks:
            return self.settings.marks
        return (*(mark for mark in MARKS if mark < self.horizon), self.horizon)

    @cached_property
    def initial(self) -> int:
        """Size of the initial design: the largest in the panel."""
        return max((int(run.config["n_init"]) for run in self.panel.runs), default=0)

    @cached_property
    def has_test(self) -> bool:
        """Whether the best value has a value on test."""
        return self.panel.pareto is None and any(
            np.isfinite(run.columns["test"]).any() for run in self.panel.runs
        )

    @cached_property
    def optimum(self) -> Level | None:
        """The value that regret is measured against."""
        if self.panel.pareto is not None:
            return None if self.front is None else _ALL
        given, found = self.settings.optimum.get(self.panel.name), self.best_known
        if given is None:
            return None if found is None else Level(found, _FOUND)
        if found is not None and found > given:
            unit = self.panel.unit
            shown = f"{unit.times * given:g} {unit.sign}".rstrip()
            return Level(found, f"{_FOUND}, above the {shown} given")
        return Level(given, "given")

    @cached_property
    def target(self) -> Level | None:
        """The value that evaluations are counted to."""
        given = self.settings.target.get(self.panel.name)
        if given is not None:
            return Level(given, "given")
        if self.optimum is None:
            return None
        unit, within = self.panel.unit, self.settings.within
        if within is None:
            within = _WITHIN if self.panel.pareto is None else _WITHIN_FRONT
        what = "the optimum" if self.optimum.source == "given" else self.optimum.source
        points = f" point{'s' * (within != 1)}" if unit.sign else ""
        return Level(
            self.optimum.value - within / unit.times,
            f"within {within:g}{points} of {what}" if within else what,
        )

    def best_so_far(self, run: Run, name: str = "value") -> Numbers:
        """A number of the best trial after 1, 2, 3, ... evaluations, as far as the run has got.

        For a search for a Pareto front, the hypervolume. If a run has exhausted its space, nothing
        better can follow: its curve continues flat.
        """
        found = self.progress(run) if name == "value" else run.of_incumbent(name)
        curve = run.after_evaluations(found)
        if not (run.exhausted and len(run)):
            return curve
        more = max(self.horizon, self._longest, *self.marks) - len(curve)
        return np.append(curve, np.full(max(more, 0), found[-1]))

    def progress(self, run: Run, order: NDArray[np.int64] | None = None) -> Numbers:
        """(n,) best value or hypervolume after each trial, in this order."""
        order = np.arange(len(run.iteration)) if order is None else order
        values = run.columns["value"][order]
        if self.panel.pareto is not None:
            if self.front is None:
                return np.full(len(values), np.nan)
            return self.front.progress(run.amounts(self.panel.pareto)[order], values)
        return np.append(values, np.nan)[best_so_far(values)]

    def num_at(self, mark: int) -> dict[str, int]:
        """How many runs of each method have reached a mark, with or without a value."""
        return {
            method.label: sum(len(self.best_so_far(run)) >= mark for run in method.runs.values())
            for method in self.panel.methods
        }

    @cached_property
    def without_value(self) -> list[tuple[str, int, int]]:
        """Method, seed and number of initial failures of runs that these keep out of a result."""
        found = [
            (method.label, seed, int(np.isnan(self.best_so_far(run)).sum()))
            for method in self.panel.methods
            for seed, run in method.runs.items()
        ]
        least = min(self.initial + 1, *self.marks)
        return [one for one in found if one[-1] >= least]

    def at_mark(self, method: Method, mark: int, name: str = "value") -> BySeed:
        """A number of the best of the first `mark` trials, for the seeds that got that far."""
        curves = {seed: self.best_so_far(run, name) for seed, run in method.runs.items()}
        found = {s: float(curve[mark - 1]) for s, curve in curves.items() if len(curve) >= mark}
        return {seed: number for seed, number in found.items() if np.isfinite(number)}

    def at_marks(self, mark: int, name: str = "value") -> dict[str, BySeed]:
        """`at_mark` of every method, by label."""
        return {method.label: self.at_mark(method, mark, name) for method in self.panel.methods}

    @cached_property
    def scale(self) -> tuple[float, float]:
        """The values that normalise areas: the mean after the initial design, and the optimum."""
        start = max(self.initial, 1)
        found = [value for values in self.at_marks(start).values() for value in values.values()]
        if not found or self.optimum is None:
            return np.nan, np.nan
        return float(np.mean(found)), self.optimum.value

    @cached_property
    def areas(self) -> Mapping[str, BySeed]:
        """Normalised area under the best-so-far curve, by method and seed."""
        found = {}
        for method in self.panel.methods:
            curves = {seed: self.best_so_far(run) for seed, run in method.runs.items()}
            by_seed = {
                seed: area_under(curve, self.initial, self.horizon, *self.scale)
                for seed, curve in curves.items()
                if len(curve) >= self.horizon > self.initial
            }
            found[method.label] = {s: area for s, area in by_seed.items() if np.isfinite(area)}
        return found

    def hits(self, method: Method) -> Hits | None:
        """Evaluations to the target; a run that ends before reaching it is censored at its end."""
        if self.target is None:
            return None
        times, censored = [], []
        for run in method.runs.values():
            if len(run):
                curve = self.best_so_far(run)
                time = evaluations_to(curve, self.target.value)
                times.append(len(curve) if time is None else time)
                censored.append(time is None)
        if not times:
            return None
        reached = len(times) - sum(censored)
        last = max((time for time, later in zip(times, censored, strict=True) if later), default=0)
        return Hits(reached, len(times), censored_quartiles(times, censored), last)

    @cached_property
    def measures(self) -> Mapping[str, Mapping[str, BySeed]]:
        """The measures that methods are tested on: the area, and what is found at each mark."""
        marks = {f"{self.panel.measure} @{mark}": self.at_marks(mark) for mark in self.marks}
        return {f"area @{self.horizon}": self.areas, **marks}

    @cached_property
    def reference(self) -> str | None:
        """The reference method, if the panel has it."""
        labels = [method.label for method in self.panel.methods]
        return self.settings.reference if self.settings.reference in labels else None

    @cached_property
    def comparisons(self) -> Mapping[str, list[Comparison]]:
        """Paired tests by measure; each measure is one family for Holm's correction."""
        return {name: compare_all(values, self.reference) for name, values in self.measures.items()}

    def pairs(self, mark: int) -> list[Comparison]:
        """Tests of every pair at a mark, regardless of the reference."""
        measure = f"{self.panel.measure} @{mark}"
        known = self.reference is None
        return self.comparisons[measure] if known else compare_all(self.measures[measure])

    @cached_property
    def rankings(self) -> Mapping[str, Ranking]:
        """Mean ranks by measure, for the methods that have any value."""
        found = {}
        for name, values in self.measures.items():
            ranking = rank_methods({label: by_seed for label, by_seed in values.items() if by_seed})
            if ranking is not None:
                found[name] = ranking
        return found

    def leaders(self, values: Mapping[str, BySeed]) -> tuple[str | None, set[str]]:
        """The method with the best mean, and those that no test distinguishes from it; two methods
        without a common seed are not tested.

        Tests every pair, regardless of the reference, because the best is only known afterwards.
        Only considers the methods with the most seeds: other means are not comparable.
        """
        most = max(map(len, values.values()))
        if not most:
            return None, set()
        means = {
            label: np.mean(list(found.values()))
            for label, found in values.items()
            if len(found) == most
        }
        first = max(means, key=lambda label: means[label])
        pairs = [{one.a, one.b} for one in compare_all(values) if one.significant]
        told_apart = set().union(*(pair for pair in pairs if first in pair))
        return first, means.keys() - told_apart - {first}

    def curve(self, method: Method) -> Curve:
        """The best-so-far curve, starting at the end of the initial design."""
        curves = [self.best_so_far(run) for run in method.runs.values() if len(run)]
        start, length = max(self.initial, 1), max(map(len, curves))
        table = np.full((len(curves), length), np.nan)
        for row, curve in zip(table, curves, strict=True):
            row[: len(curve)] = curve
        mean, half = pointwise_interval(table[:, start - 1 :])
        x = np.arange(start, length + 1, dtype=float)
        return Curve(x, mean, half, max(0, min(map(len, curves)) - start + 1))

    @cached_property
    def timed(self) -> bool:
        """Whether every evaluated trial has a training time."""
        runs = [run for run in self.panel.runs if len(run)]
        return bool(runs) and all(
            np.isfinite(run.columns["train_seconds"][np.isfinite(run.columns["value"])]).all()
            for run in runs
        )

    def clock(self, workers: int) -> dict[str, Curve]:
        """Best so far over simulated seconds of training, while every seed of a method is running.

        Starts when all of them have finished their initial design.
        """
        return {
            method.label: self._over_time(runs, workers)
            for method in self.panel.methods
            if (runs := [run for run in method.runs.values() if len(run)])
        }

    def _over_time(self, runs: Sequence[Run], workers: int) -> Curve:
        curves, starts, stops = [], [], []
        for run in runs:
            spent = np.nan_to_num(run.columns["train_seconds"])  # a failed trial takes no time
            at_once = run.config["schedule"] == "async"  # no trial waits for another
            rounds = np.zeros_like(run.iteration) if at_once else run.iteration
            ends = list_schedule(spent, rounds, workers, run.config["window"])
            order = np.argsort(ends, kind="stable")
            curves.append((ends[order], np.append(np.nan, self.progress(run, order))))
            starts.append(ends[: self.initial].max(initial=0.0))
            stops.append(ends.max())
        x = np.linspace(min(max(starts), min(stops)), min(stops), _GRID)
        table = [best[np.searchsorted(ends, x, side="right")] for ends, best in curves]
        return Curve(x, *pointwise_interval(np.array(table)), _GRID)

    def best_below(self) -> dict[str, Curve]:
        """Best value over the most that it may have of the front's quantity.

        Starts where every seed has found one.
        """
        quantity, found = self.panel.pareto, {}
        if quantity is None or self.front is None:
            return {}
        x = np.linspace(self.front.first, self.front.most, _GRID)
        for method in self.panel.methods:
            runs = [run for run in method.runs.values() if len(run)]
            table = np.empty((len(runs), _GRID))
            for row, run in zip(table, runs, strict=True):
                row[:] = best_below(run.amounts(quantity), run.columns["value"], x)
            known = np.isfinite(table).all(0)
            if runs and known.any():
                mean, half = pointwise_interval(table[:, known])
                found[method.label] = Curve(x[known], mean, half, len(mean))
        return found

    @cached_property
    def diagnostics(self) -> dict[str, dict[str, Numbers]]:
        """By method and name, a number for each seed and window, (S, W); NaN if missing.

        Methods that predict nothing and sample no generator only have seconds.
        """
        count = max(1, -(-(self._longest - self.initial) // WINDOW))
        return {
            method.label: _stack([diagnose(run, self.initial, count) for run in runs])
            for method in self.panel.methods
            if (runs := [run for run in method.runs.values() if len(run)])
        }

    @property
    def _longest(self) -> int:
        return max(map(len, self.panel.runs))

    def overall(self, label: str, name: str) -> Interval | None:
        """Mean of a diagnostic over the windows of each seed, then over seeds."""
        table = self.diagnostics.get(label, {}).get(name)
        if table is None:
            return None
        rows = [row[np.isfinite(row)] for row in table]
        return mean_interval([row.mean() for row in rows if len(row)])


def summarise(panels: Sequence[Panel], settings: Settings) -> list[Summary]:
    """A summary of each panel; what is known is from all panels with the same task."""
    runs: dict[str, list[Run]] = {}
    for panel in panels:
        runs.setdefault(panel.task, []).extend(panel.runs)
    fronts = {
        panel.task: _front_of(runs[panel.task], panel.pareto) for panel in panels if panel.pareto
    }
    return [
        Summary(panel, settings, _best_of(runs[panel.task]), fronts.get(panel.task))
        for panel in panels
    ]


def _front_of(runs: Sequence[Run], quantity: str) -> Front | None:
    amounts = np.concatenate([run.amounts(quantity) for run in runs])
    return Front.of(amounts, np.concatenate([run.columns["value"] for run in runs]))


def _best_of(runs: Sequence[Run]) -> float | None:
    values = np.concatenate([run.columns["value"] for run in runs])
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _stack(found: Sequence[Mapping[str, Numbers]]) -> dict[str, Numbers]:
    return {name: np.array([one[name] for one in found]) for name in found[0]}
