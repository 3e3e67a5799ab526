"""`python -m orchestrator.report`: compare runs on one page, with tables and figures."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from nag.cli import WholeNumber, command_line, run
from nag.errors import UserError, counted
from orchestrator.comparison.page import write_comparison
from orchestrator.comparison.panels import make_panels
from orchestrator.comparison.summary import Settings, summarise
from orchestrator.history.find import find_commands, find_runs, read_runs
from orchestrator.storage.location import PathOrURI

app = command_line(
    "python -m orchestrator.report",
    "python -m orchestrator.report runs/ --out report",
    "python -m orchestrator.report RUNS/experiment-figure3.json --out report --reference guided",
    "python -m orchestrator.report RUNS --out report --split acq --marks 20,40",
    "python -m orchestrator.report RUNS --out report --workers 1,8",
)

_REPEATED = Parameter(negative=(), show_default=False)


def _whole_numbers(type_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    del type_
    try:
        return tuple(int(part) for token in tokens for part in token.value.split(",") if part)
    except ValueError:
        given = ",".join(token.value for token in tokens)
        raise ValueError(f"{given!r} must be whole numbers separated by commas") from None


_WholeNumbers = Annotated[
    tuple[int, ...], Parameter(converter=_whole_numbers, n_tokens=1), _REPEATED
]


@app.default
def main(
    *runs: PathOrURI,
    out: Path,
    marks: _WholeNumbers = (),
    horizon: WholeNumber | None = None,
    reference: str | None = None,
    optimum: Annotated[tuple[str, ...], _REPEATED] = (),
    target: Annotated[tuple[str, ...], _REPEATED] = (),
    within: float | None = None,
    workers: _WholeNumbers = (),
    split: Annotated[tuple[str, ...], _REPEATED] = (),
) -> None:
    """Compare runs: curves, tests and tables in one page, OUT/report.html.

    Runs are only read, and may still be in progress. They are grouped into panels that can be
    compared: the same space, evaluator, data set, objective, constraints and batch size. Searches
    for a Pareto front are compared by its hypervolume, others by the best value. Methods in a panel
    are named by how they differ. Written beside the page: curves.csv, summary.csv,
    tests.csv, manifest.json, and the folders tables (LaTeX) and figures (SVG).

    Parameters
    ----------
    runs
        Folders or URIs, searched for runs (config.json and a journal), or an experiment-NAME.json,
        whose panels are kept and whose missing runs are listed as "not run". The page also shows
        the output of an experiment's commands.
    out
        Folder of the report.
    marks
        Numbers of evaluations at which to compare methods, separated by commas. By default 30, 50
        and 100, up to the horizon, and the horizon itself.
    horizon
        Number of evaluations over which the area under a curve is taken; by default the most common
        budget in a panel.
    reference
        Method to test against every other; by default every pair is tested.
    optimum
        PANEL=VALUE, or VALUE for all, accuracies in percent: the best possible value, for regret.
        May be repeated. By default, and if a run exceeds it, the best value that any run of the
        same task has found.
    target
        PANEL=VALUE, or VALUE for all, accuracies in percent: the value to reach, up to which
        evaluations are counted. May be repeated. By default --within points below the optimum.
    within
        Percentage points below the optimum that count as reaching it; for values that are not
        accuracies, in their own unit. By default 0.1, and for hypervolumes 10.
    workers
        Adds curves over simulated time on this many workers (several, separated by commas), if
        trials have training times.
    split
        Setting to split panels by, one for each value, for example acq. May be repeated.
    """
    if not runs:
        raise UserError("name at least one run, or a folder of runs")
    if (out / "config.json").exists() or (out / "journal.jsonl").exists():
        raise UserError(f"--out {out} is a run: choose another folder")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise UserError(f"--out {out} is not a folder")
    horizons = () if horizon is None else (horizon,)
    for option, numbers in (("marks", marks), ("workers", workers), ("horizon", horizons)):
        if any(number < 1 for number in numbers):
            raise UserError(f"--{option} must be at least 1")
    if within is not None and not 0 <= within < math.inf:
        raise UserError("--within must be 0 or more points")
    optima, targets = _by_panel("optimum", optimum), _by_panel("target", target)
    sources, commands = find_runs(runs), find_commands(runs)
    if not sources and not any(command.finished for command in commands):
        raise UserError(
            f"no runs in {', '.join(map(str, runs))}: a run is a folder with config.json and "
            "journal.jsonl"
        )
    members, skipped = read_runs(sources) if sources else ([], [])
    panels, twice = make_panels(members, split)
    for levels, fitting in ((optima, [p for p in panels if not p.pareto]), (targets, panels)):
        if "" in levels:  # for all panels that are not named
            of_all = levels.pop("")
            for panel in fitting:
                levels.setdefault(panel.name, of_all)
        times = {panel.name: panel.unit.times for panel in panels}
        levels.update({name: level / times.get(name, 1) for name, level in levels.items()})
    settings = Settings(
        tuple(sorted(set(marks))),
        horizon,
        reference,
        optima,
        targets,
        within,
        tuple(dict.fromkeys(workers)),
    )
    settings.check(panels)
    left_out = [*skipped, *twice]
    page = write_comparison(summarise(panels, settings), settings, left_out, commands, out)
    for path, reason in left_out:
        sys.stderr.write(f"left out: {path}: {reason}\n")
    if panels:
        compared = [run for panel in panels for run in panel.runs]
        finished = sum(run.complete for run in compared)
        sys.stdout.write(
            f"{counted(len(compared), 'run')}, {finished} finished, in "
            f"{counted(len(panels), 'panel')}: {', '.join(p.name for p in panels)}\n"
        )
    if commands:
        finished = sum(one.finished for one in commands)
        sys.stdout.write(f"{counted(len(commands), 'command')}, {finished} finished\n")
    sys.stdout.write(f"report: {page}\n")


def _by_panel(option: str, given: Sequence[str]) -> dict[str, float]:
    """'PANEL=VALUE', or 'VALUE' for "" -> the panel and the number."""
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"--{option} {text!r} must be PANEL=VALUE or VALUE, accuracies in percent"
            )
        found[name] = value
    return found


if __name__ == "__main__":
    run(app)
