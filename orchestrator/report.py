"""`python -m orchestrator.report`: runs compared, as one page, with its tables and figures."""

import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from cyclopts import Parameter, Token
from jinja2 import Environment, PackageLoader, StrictUndefined

from nag.cli import UserError, WholeNumber, command_line, package_version, run
from nag.quality_report import write_text
from orchestrator.comparison import Method, make_panels
from orchestrator.comparison_checklist import WHAT_VALUES_ARE, panel_checklist
from orchestrator.comparison_figures import (
    Facets,
    Look,
    draw_clock,
    draw_curves,
    draw_diagnostics,
    draw_ranking,
    draw_regret,
    facets,
    family_colours,
    looks,
)
from orchestrator.comparison_files import manifest, summary_rows, test_rows, trial_rows
from orchestrator.comparison_summary import (
    RATES,
    WINDOW,
    Curve,
    Settings,
    Summary,
    summarise,
)
from orchestrator.comparison_tables import (
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
from orchestrator.figures import standalone
from orchestrator.history.find import Skipped, find_runs, read_runs
from orchestrator.statistics import Numbers, pointwise_interval
from orchestrator.storage.location import PathOrURI, without_secrets

app = command_line("python -m orchestrator.report")

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


_REPEATED = Parameter(negative=(), show_default=False)


def _marks(type_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    del type_
    return tuple(int(part) for token in tokens for part in token.value.split(",") if part)


@app.default
def main(
    *runs: PathOrURI,
    out: Path,
    marks: Annotated[tuple[int, ...], Parameter(converter=_marks, n_tokens=1), _REPEATED] = (),
    horizon: WholeNumber | None = None,
    reference: str | None = None,
    optimum: Annotated[tuple[str, ...], _REPEATED] = (),
    target: Annotated[tuple[str, ...], _REPEATED] = (),
    within: float = 0.1,
    workers: Annotated[tuple[int, ...], _REPEATED] = (),
    split: Annotated[tuple[str, ...], _REPEATED] = (),
) -> int:
    """Compare runs: curves, tests and tables in one page, OUT/report.html.

    Runs are read, never written, and may be going on. They are put into panels that can be
    compared: the same space, evaluator, data set, objective, constraints and batch size. Methods of
    a panel are called by what differs between them. Beside the page are curves.csv, summary.csv,
    tests.csv, manifest.json, tables/*.tex and figures/*.svg.

    Examples:

    python -m orchestrator.report runs/ --out report

    python -m orchestrator.report RUNS/experiment-figure3.json --out report --reference guided

    python -m orchestrator.report RUNS --out report --split acq --marks 20,40

    python -m orchestrator.report RUNS --out report --optimum nasbench201-cifar10-test=94.37
    --within 0 --workers 1 --workers 8

    Parameters
    ----------
    runs
        Folders or URIs of runs, searched for config.json and a journal, or an experiment-NAME.json,
        whose panels are kept and whose missing runs are called "not run".
    out
        Folder of the report.
    marks
        Evaluations at which methods are compared, separated by commas. By default 30, 50 and 100 as
        far as the horizon goes, and the horizon.
    horizon
        Evaluations over which the area under a curve is taken; by default the usual budget of the
        runs of a panel.
    reference
        Method to test against every other; by default every pair is tested.
    optimum
        PANEL=VALUE, percent: the best there is, for regret. May be repeated. By default the best
        value that any run of the panel has found.
    target
        PANEL=VALUE, percent: what evaluations are counted to. May be repeated. By default --within
        points of the optimum.
    within
        Percentage points below the optimum that count as reaching it.
    workers
        Adds curves over simulated time on so many workers, where trials have a time of training.
        May be repeated.
    split
        Setting of which each value gets panels of its own, for example acq. May be repeated.
    """
    if not runs:
        raise UserError("name at least one run, or a folder of runs")
    if (out / "config.json").exists() or (out / "journal.jsonl").exists():
        raise UserError(f"--out {out} is a run: choose another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is not a folder")
    for option, numbers in (("marks", marks), ("workers", workers), ("horizon", (horizon or 1,))):
        if any(number < 1 for number in numbers):
            raise UserError(f"--{option} must be at least 1")
    if not within >= 0:
        raise UserError("--within must not be negative")
    settings = Settings(
        tuple(sorted(set(marks))),
        horizon,
        reference,
        _by_panel("optimum", optimum),
        _by_panel("target", target),
        within / 100,
        tuple(dict.fromkeys(workers)),
    )
    members, skipped = read_runs(find_runs(runs))
    panels, twice = make_panels(members, split)
    settings.check(panels)
    page = write_comparison(summarise(panels, settings), settings, [*skipped, *twice], out)
    for path, reason in [*skipped, *twice]:
        sys.stderr.write(f"left out: {path}: {reason}\n")
    finished = sum(run.complete for _, run in members)
    sys.stdout.write(
        f"{len(members)} runs, {finished} of them finished, in {len(panels)} "
        f"panel{'s' if len(panels) > 1 else ''}: {', '.join(p.name for p in panels)}\n"
        f"report: {page}\n"
    )
    return 0


def _by_panel(option: str, given: Sequence[str]) -> dict[str, float]:
    """'PANEL=VALUE' in percent -> the panel and a fraction."""
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise UserError(f"--{option} {text!r} must be PANEL=VALUE with a value in percent")
        found[name] = value / 100
    return found


def write_comparison(
    summaries: Sequence[Summary], settings: Settings, skipped: Sequence[Skipped], out: Path
) -> Path:
    """Write everything below `out`; returns the page. Equal runs give equal files."""
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    colours = family_colours([m for summary in summaries for m in summary.panel.methods])
    shown = [
        panel_page(i, summary, looks(summary.panel.methods, colours))
        for i, summary in enumerate(summaries, start=1)
    ]
    for panel in shown:
        for name, svg in panel["figures"].items():
            write_text(out / "figures" / f"{panel['slug']}-{name}.svg", standalone(svg))
        for table in panel["tables"].values():
            write_text(out / "tables" / f"{panel['slug']}-{table.name}.tex", to_latex(table))
    summed = overview(summaries)
    write_text(out / "tables" / "overview.tex", to_latex(summed))
    _write_csv(pd.concat([trial_rows(summary) for summary in summaries]), out / "curves.csv")
    rows = [row for summary in summaries for row in summary_rows(summary)]
    _write_csv(pd.DataFrame(rows), out / "summary.csv")
    rows = [row for summary in summaries for row in test_rows(summary)]
    _write_csv(pd.DataFrame(rows), out / "tests.csv")
    packages = ("diffusionnag-bo", "numpy", "scipy", "matplotlib", "pandas")
    versions = {"python": platform.python_version()}
    versions |= {package: package_version(package) for package in packages}
    command = shlex.join(["python", *map(without_secrets, sys.orig_argv[1:])])
    record = manifest(summaries, settings, skipped, command, versions)
    write_text(out / "manifest.json", json.dumps(record, indent=1, allow_nan=False))
    environment = Environment(
        loader=PackageLoader("orchestrator"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        panels=shown,
        overview=summed,
        manifest=record,
        skipped=skipped,
        window=WINDOW,
        guided=any(m.guided for s in summaries for m in s.panel.methods),
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    write_text(path, frame.to_csv(index=False, float_format="%.7g").rstrip("\n"))


def panel_page(number: int, summary: Summary, look: Mapping[str, Look]) -> dict[str, Any]:
    """What the template shows of a panel."""
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
    absent = [
        (method.label, missing)
        for method in panel.methods
        if (missing := [seed for seed in panel.seeds if seed not in method.runs])
    ]
    return {
        "id": f"panel-{number}",
        "name": panel.name,
        "slug": panel.slug,
        "what_values_are": WHAT_VALUES_ARE.get(str(panel.facts["evaluator"])),
        "synthetic": panel.synthetic,
        "num_runs": len(panel.runs),
        "seeds": panel.seeds,
        "methods": [method.label for method in panel.methods],
        "absent": absent,
        "num_absent": sum(len(seeds) for _, seeds in absent),
        "unfinished": unfinished,
        "initial": summary.initial,
        "horizon": summary.horizon,
        "optimum": summary.optimum,
        "target": summary.target,
        "scale": summary.scale,
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
    """By name, as inline SVG; ids in it begin with `prefix`."""
    panel = summary.panel
    if summary.optimum is None:
        return {}
    mark = "SYNTHETIC" if panel.synthetic else ""
    estimate = ", estimated" if panel.facts["evaluator"] == "surrogate" else ""
    ylabel = f"best value so far, %{estimate}"

    def side_by_side(curves: Mapping[str, Curve]) -> Facets:
        return facets(panel.methods, look, curves)

    begun = [method for method in panel.methods if any(len(run) for run in method.runs.values())]
    lines = side_by_side({method.label: summary.curve(method) for method in begun})
    found = {
        "curves": draw_curves(lines, f"{prefix}-curves", ylabel=ylabel, watermark=mark),
        "regret": draw_regret(
            lines,
            f"{prefix}-regret",
            optimum=summary.optimum.value,
            watermark=mark,
        ),
    }
    for measure, ranking in summary.rankings.items():
        name = f"ranks-{measure.replace(' @', '-').replace(' ', '-')}"
        found[name] = draw_ranking(ranking, look, f"{prefix}-{name}", watermark=mark)
    for workers in summary.settings.workers if summary.timed else ():
        name = f"clock-{workers}"
        found[name] = draw_clock(
            side_by_side(summary.clock(workers)),
            f"{prefix}-{name}",
            ylabel=ylabel,
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
    """Axes by the label of y, without those that nothing is known for."""
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
    """A curve over the windows of (S, W), each at its middle."""
    x: Numbers = initial + WINDOW * (np.arange(table.shape[1], dtype=float) + 0.5)
    return Curve(x, *pointwise_interval(table), whole=len(x))


if __name__ == "__main__":
    run(app)
