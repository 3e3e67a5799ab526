"""The files of a comparison other than its page: CSV, LaTeX, SVG and a manifest."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.comparison.panels import Method
from orchestrator.comparison.statistics import Comparison, mean_interval
from orchestrator.comparison.summary import Level, Settings, Summary
from orchestrator.history.find import CommandSource, Skipped
from orchestrator.history.run import Run

_VALUES = ("value", "test", "predicted_mean", "predicted_std")
TEST_COLUMNS = ("panel", "measure", *(field.name for field in fields(Comparison)))
_OURS = re.compile(
    r"report\.html|\w+\.csv|tables/[^/]+\.tex|figures/[^/]+\.svg|commands/[^/]+/[^/]+\.(csv|md|svg)"
)


def trial_rows(summary: Summary) -> pd.DataFrame:
    """One row per run and trial: its numbers, and the best so far. Accuracies in percent."""
    parts, times = [], summary.panel.value_unit.times
    for method in summary.panel.methods:
        for seed, run in method.runs.items():
            front = {"hypervolume": 100 * summary.progress(run)} if summary.front else {}
            columns = {n: run.columns[n] * (times if n in _VALUES else 1) for n in run.columns}
            parts.append(
                pd.DataFrame(
                    {
                        "panel": summary.panel.name,
                        "method": method.label,
                        "seed": seed,
                        "evaluation": run.ends,
                        "round": run.iteration,
                        "source": run.sources,
                        **columns,
                        "best_value": times * run.of_incumbent("value"),
                        "test_of_best": times * run.of_incumbent("test"),
                        **front,
                        "arch": run.archs,
                        "run": run.record["hash"][:8],
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def summary_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    """One row per method and quantity: mean and interval over seeds, or quartiles."""
    optimum, unit = summary.optimum, summary.panel.unit
    for method in summary.panel.methods:
        about = {"panel": summary.panel.name, "method": method.label}
        quantities: list[tuple[str, int, float, Mapping[int, float]]] = []
        for mark in summary.marks:
            values = summary.at_mark(method, mark)
            quantities.append((unit.label(summary.panel.measure), mark, unit.times, values))
            if optimum and summary.panel.pareto is None:
                regret = {seed: optimum.value - value for seed, value in values.items()}
                quantities.append((unit.of_differences("simple regret"), mark, unit.times, regret))
            if summary.has_test:
                test = summary.at_mark(method, mark, "test")
                name = unit.label(f"test {'accuracy' if unit.sign else 'value'} of the best")
                quantities.append((name, mark, unit.times, test))
        quantities.append(("normalised area", summary.horizon, 1, summary.areas[method.label]))
        for name, mark, times, by_seed in quantities:
            found = mean_interval([times * x for x in by_seed.values()])
            numbers = (
                {} if found is None else dict(zip(("mean", "low", "high"), found[1:], strict=True))
            )
            yield {**about, "quantity": name, "evaluations": mark, "seeds": len(by_seed), **numbers}
        if hits := summary.hits(method):
            low, median, high = hits.quartiles
            yield {
                **about, "quantity": "evaluations to target", "seeds": hits.n,
                "reached": hits.reached, "median": median, "lower_quartile": low,
                "upper_quartile": high,
            }  # fmt: skip


def test_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    """One row per paired test: n seeds, those won, tied and lost by a, and the median of a - b."""
    for measure, found in summary.comparisons.items():
        times = 1 if measure.startswith("area") else summary.panel.unit.times
        for one in found:
            numbers = vars(one) | {"median": times * one.median}
            yield {"panel": summary.panel.name, "measure": measure, **numbers}


def manifest(
    summaries: Sequence[Summary],
    settings: Settings,
    skipped: Sequence[Skipped],
    commands: Sequence[CommandSource],
    command: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """What the report was made from, so that it can be reproduced."""
    return {
        "schema": 1,
        "command": command,
        "versions": dict(versions),
        "settings": {
            **vars(settings),
            "optimum": dict(settings.optimum),
            "target": dict(settings.target),
        },
        "panels": [
            {
                "name": summary.panel.name,
                "settings": dict(summary.panel.facts),
                "methods": {m.label: sorted(m.runs) for m in summary.panel.methods},
                "horizon": summary.horizon,
                "marks": summary.marks,
                "optimum": _level(summary, summary.optimum),
                "target": _level(summary, summary.target),
                "synthetic": summary.panel.synthetic,
            }
            for summary in summaries
        ],
        "data": data_checksums([run for summary in summaries for run in summary.panel.runs]),
        "runs": [
            _run_record(summary, method, run)
            for summary in summaries
            for method in summary.panel.methods
            for run in method.runs.values()
        ],
        "commands": [
            {"path": str(source.path), "panel": source.group, "finished": source.finished}
            for source in commands
        ],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in skipped],
    }


def _level(summary: Summary, level: Level | None) -> dict[str, Any] | None:
    if level is None:
        return None
    unit = summary.panel.unit
    return {"percent" if unit.sign else "value": unit.times * level.value, "source": level.source}


def _run_record(summary: Summary, method: Method, run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "panel": summary.panel.name,
        "method": method.label,
        "seed": run.seed,
        "hash": run.record["hash"],
        "budget": run.budget,
        "evaluations": len(run),
        "failed": run.num_failed,
        "command": run.record.get("command"),
        "versions": run.record.get("versions"),
    }


def data_checksums(runs: Sequence[Run]) -> list[dict[str, str | None]]:
    """Name and SHA-256, as recorded, of the files that runs have read; None if not recorded.

    Files with the same name but different content are all listed.
    """
    found = {
        (str(run.config[setting]), checksum)
        for run in runs
        for setting, checksum in run.config.get("sha256", {}).items()
    }
    return [
        {"name": name, "sha256": checksum}
        for name, checksum in sorted(found, key=lambda file: (file[0], file[1] or ""))
    ]


def remove_earlier(out: Path, kept: Collection[str]) -> None:
    """Remove the files listed in the manifest of an earlier report in `out`, except `kept`.

    Only files that are named like those of a report and are below `out`.
    """
    try:
        listed = json.loads((out / "manifest.json").read_bytes())["files"]
        names = {name for name in listed if _OURS.fullmatch(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in sorted(names.difference(kept)):
        file = out / name
        if file.parent.resolve().is_relative_to(out.resolve()) and file.is_file():
            file.unlink()
            if file.parent != out:
                with suppress(OSError):
                    file.parent.rmdir()  # fails if something else is in it
