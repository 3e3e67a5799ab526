"""The checklist for compared runs: see `orchestrator.reporting.checklist`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.comparison.summary import Summary
from orchestrator.history.run import Run
from orchestrator.history.trials import PHASES, SEARCH
from orchestrator.reporting.checklist import (
    NOT_RECORDED,
    Answer,
    of_low_fidelity,
    reported,
    searched_on,
)

_NOT_SHARED = {
    "seed",
    "budget",
    "space",
    "evaluator",
    "dataset",
    "objective",
    "constraint",
    "sha256",  # manifest.json has them
}


def panel_checklist(summary: Summary) -> list[Answer]:
    """The checklist of all runs of a panel together."""
    panel, runs = summary.panel, summary.panel.runs
    config = {**runs[0].config, "pareto": panel.pareto}
    spent = {phase: sum(float(run.seconds[phase].sum()) for run in runs) for phase in PHASES}
    search = sum(spent[phase] for phase in SEARCH)
    trained = sum(float(np.nansum(run.columns["train_seconds"])) for run in runs)
    random = [m.label for m in panel.methods if m.family == "random-search"]
    return [
        Answer("Search objective", searched_on(config)),
        Answer("Reported", reported(config, summary.has_test)),
        Answer("Search space", f"{config['space']}{_limits(config)}"),
        Answer("Seeds", f"{len(panel.seeds)}: {_ranges(panel.seeds)}"),
        Answer("Budget per run", f"{_join(run.budget for run in runs)} evaluations"),
        Answer("Initial design", _initial(summary)),
        Answer("Evaluations per round", str(config["batch_size"])),
        Answer("Compared with random search", ", ".join(random) or "no random-search run here"),
        Answer("Performance over time", f"yes: {panel.measure} after every evaluation"),
        Answer(
            "Cost, evaluations",
            f"{sum(len(run) for run in runs):,}, {sum(run.num_failed for run in runs):,} of them "
            "failed" + of_low_fidelity(sum(run.num_low for run in runs)),
        ),
        Answer(
            "Cost, seconds",
            f"{search:,.0f} of search ({', '.join(SEARCH)}), {spent['evaluate']:,.0f} of evaluation"
            + (f"; {trained:,.0f} of training according to the table" if trained else ""),
        ),
        Answer("Hardware", _join(run.record.get("machine", NOT_RECORDED) for run in runs)),
        Answer("Tuning of the methods", NOT_RECORDED),
        Answer("Settings shared by all runs", _shared(runs)),
        Answer("Versions", "; ".join(dict.fromkeys(_versions(run.record) for run in runs))),
    ]


def _initial(summary: Summary) -> str:
    counts = _join(run.config["n_init"] for run in summary.panel.runs)
    designs: dict[int, set[tuple[str, ...]]] = {}
    for method in summary.panel.methods:
        for seed, run in method.runs.items():
            if len(run) >= summary.initial:
                designs.setdefault(seed, set()).add(run.archs[: summary.initial])
    differ = [seed for seed, found in designs.items() if len(found) > 1]
    same = (
        "the same for all methods with the same seed"
        if not differ
        else f"not the same for all methods with seed {_ranges(sorted(differ))}"
    )
    return f"{counts} random architectures, counted as evaluations; {same}"


def _limits(config: Mapping[str, Any]) -> str:
    limits = config["constraint"]
    return f" with {' and '.join(limits)}" if limits else ""


def _shared(runs: Sequence[Run]) -> str:
    keys = set.intersection(*(set(run.config) for run in runs)) - _NOT_SHARED
    return ", ".join(
        f"{key} {runs[0].config[key]}"
        for key in sorted(keys)
        if runs[0].config[key] not in (None, [])
        and len({repr(run.config[key]) for run in runs}) == 1
    )


def _versions(record: Mapping[str, Any]) -> str:
    versions = record.get("versions") or {}
    return ", ".join(f"{name} {number}" for name, number in versions.items()) or NOT_RECORDED


def _join(numbers: Iterable[object]) -> str:
    return " or ".join(map(str, sorted(set(numbers), key=str)))


def _ranges(numbers: Sequence[int]) -> str:
    """0-4, 7, 9-10."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        else:
            groups.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in groups)
