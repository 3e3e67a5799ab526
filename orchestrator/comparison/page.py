"""The page of a comparison and its files: what `python -m orchestrator.report` writes."""

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nag.cli import package_version
from nag.files import write_text
from orchestrator.comparison.checklist import panel_checklist
from orchestrator.comparison.commands import command_section, copied_files
from orchestrator.comparison.diagnostics import RATES, WINDOW
from orchestrator.comparison.figures import (
    Facets,
    Look,
    draw_clock,
    draw_curves,
    draw_diagnostics,
    draw_fronts,
    draw_ranking,
    draw_regret,
    facets,
    family_colours,
    looks,
)
from orchestrator.comparison.files import (
    TEST_COLUMNS,
    manifest,
    remove_earlier,
    summary_rows,
    test_rows,
    trial_rows,
)
from orchestrator.comparison.panels import Method, slugs
from orchestrator.comparison.statistics import Numbers, pointwise_interval
from orchestrator.comparison.summary import Curve, Settings, Summary
from orchestrator.comparison.tables import (
    accuracy_table,
    diagnostics_table,
    overview,
    reference_table,
    regret_table,
    tests_table,
    to_latex,
    values_table,
    win_tie_loss_table,
)
from orchestrator.history.find import CommandSource, Skipped
from orchestrator.reporting.checklist import WHAT_VALUES_ARE
from orchestrator.reporting.figures import standalone
from orchestrator.reporting.pages import page_template
from orchestrator.reporting.view import quantity_of
from orchestrator.storage.location import without_secrets

_PREDICTOR = {
    "Kendall τ": ("tau", 1.0),
    "within ±2 std, %": ("within 2 std", 100.0),
    "NLL, nats": ("nll", 1.0),
}
_ITERATION = {
    "search, s": ("search", 1.0),
    **{f"{rate}, %": (rate, 100.0) for rate in RATES},
}
_CALIBRATED = {"within ±2 std, %": 95.45, "Kendall τ": 0.0}


def write_comparison(
    summaries: Sequence[Summary],
    settings: Settings,
    skipped: Sequence[Skipped],
    commands: Sequence[CommandSource],
    out: Path,
) -> Path:
    """Write everything below `out`; returns the page. Equal runs give equal files.

    Files of an earlier report there are removed.
    """
    colours = family_colours([m for summary in summaries for m in summary.panel.methods])
    shown = [
        panel_page(i, summary, looks(summary.panel.methods, colours))
        for i, summary in enumerate(summaries, start=1)
    ]
    named = zip(slugs(summary.panel for summary in summaries), shown, strict=True)
    files = _files(summaries, dict(named)) if summaries else {}
    copied = copied_files(commands)
    packages = ("diffusionnag-bo", "numpy", "scipy", "matplotlib", "pandas")
    versions = {"python": platform.python_version()}
    versions |= {package: package_version(package) for package in packages}
    command = shlex.join(["python", *map(without_secrets, sys.orig_argv[1:])])
    record = manifest(summaries, settings, skipped, commands, command, versions)
    record["files"] = sorted([*files, *copied, "report.html"])
    page = page_template("comparison.html").render(
        panels=shown,
        commands=[command_section(source) for source in commands],
        overview=overview(summaries) if summaries else None,
        manifest=record,
        skipped=skipped,
        window=WINDOW,
        guided=any(m.guided for s in summaries for m in s.panel.methods),
    )
    remove_earlier(out, record["files"])
    for name in record["files"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(out / name, text)
    for name, file in copied.items():
        shutil.copyfile(file, out / name)
    write_text(out / "manifest.json", json.dumps(record, indent=1, allow_nan=False))
    write_text(out / "report.html", page)
    return out / "report.html"


def _files(summaries: Sequence[Summary], shown: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The tables and figures of the page by their path below OUT.

    shown: panels of the page, by slug.
    """
    files = {"tables/overview.tex": to_latex(overview(summaries))}
    for slug, panel in shown.items():
        for name, svg in panel["figures"].items():
            files[f"figures/{slug}-{name}.svg"] = standalone(svg)
        for table in panel["tables"].values():
            files[f"tables/{slug}-{table.name}.tex"] = to_latex(table)
    files["curves.csv"] = _csv(pd.concat([trial_rows(summary) for summary in summaries]))
    rows = [row for summary in summaries for row in summary_rows(summary)]
    files["summary.csv"] = _csv(pd.DataFrame(rows))
    rows = [row for summary in summaries for row in test_rows(summary)]
    files["tests.csv"] = _csv(pd.DataFrame(rows, columns=TEST_COLUMNS))
    return files


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.7g")


def panel_page(number: int, summary: Summary, look: Mapping[str, Look]) -> dict[str, Any]:
    """What the template shows for a panel."""
    panel = summary.panel
    tables = {
        "values": values_table(summary),
        "regret": regret_table(summary),
        "accuracy": accuracy_table(summary),
        "reference": reference_table(summary) if summary.reference else None,
        **{
            f"tests {measure}": tests_table(summary, measure)
            for measure in summary.measures
            if not summary.reference
        },
        **{f"win-tie-loss {mark}": win_tie_loss_table(summary, mark) for mark in summary.marks},
        "diagnostics": diagnostics_table(summary),
    }
    unfinished = [
        (method.label, seed, len(run), run.budget)
        for method in panel.methods
        for seed, run in method.runs.items()
        if not run.complete
    ]
    early = [
        (method.label, seed, len(run), run.budget, run.patience)
        for method in panel.methods
        for seed, run in method.runs.items()
        if run.patience is not None and len(run) < run.budget
    ]
    absent = [
        (method.label, missing)
        for method in panel.methods
        if (missing := [seed for seed in panel.seeds if seed not in method.runs])
    ]
    return {
        "id": f"panel-{number}",
        "name": panel.name,
        "what_values_are": WHAT_VALUES_ARE.get(str(panel.facts["evaluator"])),
        "synthetic": panel.synthetic,
        "unit": panel.unit,
        "measure": panel.measure,
        "pareto": None if panel.pareto is None else quantity_of(panel.pareto),
        "num_runs": len(panel.runs),
        "seeds": panel.seeds,
        "methods": [method.label for method in panel.methods],
        "absent": absent,
        "num_absent": sum(len(seeds) for _, seeds in absent),
        "unfinished": unfinished,
        "early": early,
        "without_value": summary.without_value,
        "initial": summary.initial,
        "horizon": summary.horizon,
        "optimum": summary.optimum,
        "target": summary.target,
        "scale": summary.scale if np.isfinite(summary.scale).all() else None,
        "reference": summary.reference,
        "rankings": summary.rankings,
        "measures": list(summary.measures),
        "marks": summary.marks,
        "clocks": summary.settings.workers if summary.timed else (),
        "tables": {name: table for name, table in tables.items() if table is not None},
        "figures": _figures(f"p{number}", summary, look),
        "checklist": panel_checklist(summary),
    }


def _figures(prefix: str, summary: Summary, look: Mapping[str, Look]) -> dict[str, str]:
    """The figures by name, as inline SVG; ids in them begin with `prefix`."""
    panel = summary.panel
    if summary.optimum is None:
        return {}
    mark = "SYNTHETIC" if panel.synthetic else ""
    estimate = ", estimated" if panel.facts["evaluator"] == "surrogate" else ""
    ylabel, unit = f"{panel.unit.label(f'{panel.measure} so far')}{estimate}", panel.unit

    def side_by_side(curves: Mapping[str, Curve]) -> Facets:
        return facets(panel.methods, look, curves)

    begun = [method for method in panel.methods if any(len(run) for run in method.runs.values())]
    lines = side_by_side({method.label: summary.curve(method) for method in begun})
    found = {
        "curves": draw_curves(lines, f"{prefix}-curves", ylabel=ylabel, unit=unit, watermark=mark)
    }
    if panel.pareto is None:
        found["regret"] = draw_regret(
            lines, f"{prefix}-regret", optimum=summary.optimum.value, unit=unit, watermark=mark
        )
    elif below := summary.best_below():  # empty if every method has a seed without any value
        found["fronts"] = draw_fronts(
            side_by_side(below),
            f"{prefix}-fronts",
            quantity=quantity_of(panel.pareto),
            ylabel=f"{panel.value_unit.label('best value')}{estimate}",
            unit=panel.value_unit,
            watermark=mark,
        )
    for measure, ranking in summary.rankings.items():
        name = f"ranks-{measure.replace(' @', '-').replace(' ', '-')}"
        found[name] = draw_ranking(ranking, look, f"{prefix}-{name}", watermark=mark)
    for workers in summary.settings.workers if summary.timed else ():
        name = f"clock-{workers}"
        found[name] = draw_clock(
            side_by_side(summary.clock(workers)),
            f"{prefix}-{name}",
            ylabel=ylabel,
            unit=unit,
            workers=workers,
            watermark=mark,
        )
    for name, quantities in (("predictor", _PREDICTOR), ("iteration", _ITERATION)):
        rows = _diagnostic_rows(summary, begun, quantities, side_by_side)
        if rows:
            found[name] = draw_diagnostics(
                rows, f"{prefix}-{name}", ideal=_CALIBRATED, watermark=mark
            )
    return found


def _diagnostic_rows(
    summary: Summary,
    methods: Sequence[Method],
    quantities: Mapping[str, tuple[str, float]],
    side_by_side: Callable[[Mapping[str, Curve]], Facets],
) -> dict[str, Facets]:
    """Axes by y-axis label, without those that have no data."""
    rows = {}
    for ylabel, (name, unit) in quantities.items():
        curves = {
            method.label: _windows(table * unit, summary.initial)
            for method in methods
            if np.isfinite(table := summary.diagnostics[method.label][name]).any()
        }
        if curves:
            rows[ylabel] = side_by_side(curves)
    return rows


def _windows(table: Numbers, initial: int) -> Curve:
    """A curve over the windows of (S, W), each plotted at its midpoint."""
    x: Numbers = initial + WINDOW * (np.arange(table.shape[1], dtype=float) + 0.5)
    return Curve(x, *pointwise_interval(table), whole=len(x))
