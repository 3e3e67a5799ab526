"""How much of the Pareto front of accuracy and MACs do searches find?

    python -m orchestrator.experiment experiments/pareto.toml --table nb201.parquet --out RUNS
    python benchmarks/pareto.py RUNS

Reported is the hypervolume: the area that the evaluated networks dominate, up to a corner a tenth
of the front's extent beyond its ends, as a share of the area that all networks of all runs together
dominate.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from publish import RESULTS, machine, publish
from scipy.stats import wilcoxon

from nag.cli import command_line, run
from nag.errors import UserError
from orchestrator.comparison.panels import Method, Panel, make_panels
from orchestrator.history.find import find_runs
from orchestrator.history.run import Run, read_run
from orchestrator.reporting.figures import STYLE, to_svg
from orchestrator.reporting.pareto import hypervolume, pareto_front

SHOWN = (20, 30, 50, 100)  # evaluations
BEST_ONLY = "guided, not for the front"

Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # MACs and values, in order of evaluation

app = command_line("python benchmarks/pareto.py RUNS")


@app.default
def main(runs: Path) -> None:
    """Evaluate the runs in a folder and write benchmarks/results/pareto.md and pareto.svg."""
    spaces: dict[str, dict[str, list[Points]]] = {}
    found = [("", read_run(source.path)) for source in find_runs([runs])]
    if not found:
        raise UserError(f"{runs} has no runs: see the head of this file")
    for panel in make_panels(found, split=("pareto",))[0]:
        methods = spaces.setdefault(panel.facts["space"], {})
        for method in panel.methods:
            methods[_label(panel, method)] = [_points(one) for one in method.runs.values()]
    shares = {space: _shares(methods) for space, methods in spaces.items()}
    about = (
        "Hypervolume of the front of accuracy and MACs, % of that of all runs together, after so "
        "many evaluations: mean over seeds, and at the end the two-sided Wilcoxon test against "
        f"guided; {machine()}."
    )
    publish("pareto", about, _tables(shares))
    (RESULTS / "pareto.svg").write_text(_figure(shares))


def _label(panel: Panel, method: Method) -> str:
    return method.label if panel.facts["pareto"] else BEST_ONLY


def _points(one: Run) -> Points:
    table = pq.read_table(str(one.path / "trials.parquet"), columns=["macs", "value"])
    return table["macs"].to_numpy(), table["value"].to_numpy()


def _shares(methods: Mapping[str, list[Points]]) -> dict[str, NDArray[np.float64]]:
    """(seeds, evaluations) of each method, best first."""
    every = [points for several in methods.values() for points in several]
    macs, values = (np.concatenate(column) for column in zip(*every, strict=True))
    front = pareto_front(macs, values)
    most = macs[front[-1]] + 0.1 * np.ptp(macs[front])
    least = values[front[0]] - 0.1 * np.ptp(values[front])
    whole = hypervolume(macs, values, most, least)
    found = {
        name: np.array(
            [
                [hypervolume(m[:n], v[:n], most, least) / whole for n in range(1, len(m) + 1)]
                for m, v in several
            ]
        )
        for name, several in methods.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1][:, -1].mean()))


def _tables(shares: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Iterator[str]:
    for space, methods in shares.items():
        yield f"| {space} | " + " | ".join(map(str, SHOWN)) + " | p |"
        yield "|---" * (len(SHOWN) + 2) + "|"
        for name, found in methods.items():
            means = (f"{100 * found[:, n - 1].mean():.1f}" for n in SHOWN)
            ours = methods["guided"][:, -1]
            p = "" if name == "guided" else f"{wilcoxon(ours, found[:, -1]).pvalue:.2g}"
            yield f"| {name} | " + " | ".join(means) + f" | {p} |"
        yield ""


def _figure(shares: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> str:
    names = dict.fromkeys(name for methods in shares.values() for name in methods)
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(shares), 3.2), layout="constrained")
        for axes, (space, methods) in zip(
            np.atleast_1d(figure.subplots(1, len(shares))), shares.items(), strict=True
        ):
            for name, found in methods.items():
                mean = 100 * found.mean(0)
                axes.plot(
                    np.arange(1, len(mean) + 1), mean, label=name, color=colours[name], lw=1.4
                )
            axes.set(title=space, xlabel="evaluations", xlim=(10, None), ylim=(50, 100))
            axes.set_ylabel("hypervolume, % of all runs")
            axes.legend(fontsize=7, loc="lower right")
        return to_svg(figure, "pareto-hypervolume")


if __name__ == "__main__":
    run(app)
