"""How many evaluations does it take to find the best, and how certain is that number?

    python benchmarks/evaluations.py RUNS/experiment-scratch.json

Prints Markdown: for each panel and method the median number of evaluations until the largest value
that any run has found, its 95 % bootstrap interval over seeds (10,000 resamples), the medians of 20
seeds each, and a paired Wilcoxon test of the panel's first method against each other one. A run
that has not found that value counts as one evaluation more than its length, so two such runs tie.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from nag.cli import command_line, run
from nag.errors import UserError
from orchestrator.comparison.panels import Method, make_panels
from orchestrator.comparison.statistics import compare, evaluations_to
from orchestrator.comparison.summary import Settings, Summary, summarise
from orchestrator.history.find import find_runs
from orchestrator.history.run import read_run
from orchestrator.storage.location import PathOrURI

_RESAMPLES, _BLOCK = 10_000, 20

app = command_line("python benchmarks/evaluations.py")


@app.default
def main(*runs: PathOrURI) -> None:
    """Print a table of each panel of the runs, or of an experiment-NAME.json."""
    found = [(source.group, read_run(source.path)) for source in find_runs(list(runs))]
    if not found:
        raise UserError("name at least one run, or a folder of runs")
    panels, _ = make_panels(found)
    for summary in summarise(panels, Settings(within=0.0)):
        sys.stdout.write("\n".join(table(summary)) + "\n\n")


def table(summary: Summary) -> list[str]:
    """A row for each method."""
    names = ["method", "seeds", "median", "interval", f"each {_BLOCK} seeds", "found", "p"]
    lines = [summary.panel.name, "", _row(names), _row(["---"] * len(names))]
    times = {method.label: evaluations(summary, method) for method in summary.panel.methods}
    first = summary.panel.methods[0].label
    for method in summary.panel.methods:
        by_seed = times[method.label]
        t, ends = np.array(list(by_seed.values())), max(map(len, method.runs.values()))
        low, high = interval(t)
        blocks = [np.median(t[i : i + _BLOCK]) for i in range(0, len(t), _BLOCK)]
        p = compare(first, method.label, times[first], by_seed).p
        lines.append(
            _row(
                [
                    method.label,
                    str(len(t)),
                    f"{np.median(t):g}",
                    f"{low:g} to {high:g}",
                    ", ".join(f"{block:g}" for block in blocks),
                    f"{np.mean(t <= ends):.0%}",
                    "" if method.label == first else f"{p:.3f}",
                ]
            )
        )
    return lines


def evaluations(summary: Summary, method: Method) -> dict[int, float]:
    """By seed, evaluations until the target; one more than the run's length if not reached."""
    assert summary.target is not None
    found = {}
    for seed, one in method.runs.items():
        reached = evaluations_to(summary.best_so_far(one), summary.target.value)
        found[seed] = float(reached or len(one) + 1)
    return found


def interval(times: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile bootstrap of the median of (S,) at 95 % (Efron, 1979)."""
    drawn = np.random.default_rng(0).choice(times, (_RESAMPLES, len(times)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run(app)
