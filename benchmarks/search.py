"""How good is each strategy under each acquisition function? Best value after 20, 30, 40 trials.

    python benchmarks/search.py --space mobilenetv3
    python benchmarks/search.py --space nasbench201 --table nb201.parquet

Every run is an ordinary run directory, so an interrupted benchmark continues. All strategies start
from the same initial architectures per seed. Prints one table per space (means over seeds of the
best value in percent, test accuracy where there is one) and writes it, with the single runs as CSV,
to benchmarks/results.
"""

import itertools
import multiprocessing
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from nag.cli import command_line, find_space, run
from orchestrator.build import build_executor, build_optimizer
from orchestrator.config import RunConfig, Runtime
from orchestrator.loop import run_study
from orchestrator.store import RunStore

RESULTS = Path(__file__).parent / "results"
ACQS = ("ei", "pi", "its", "ucb")
ORDER = ("guided", "uncond+sort", "mutation+random", "mutation", "random")

app = command_line("python benchmarks/search.py")


@app.default
def main(
    *,
    space: str = "mobilenetv3",
    table: Path | None = None,
    dataset: str | None = None,
    objective: str = "valid",
    score: str = "network",
    guidance: str = "denoised",
    acqs: tuple[str, ...] = ACQS,
    strategies: tuple[str, ...] = ORDER,
    seeds: int = 5,
    budget: int = 40,
    marks: tuple[int, ...] = (20, 30, 40),
    jobs: int = 2,
    runs: Path = Path("runs/search"),
    name: str | None = None,
) -> None:
    """Run {strategy x acquisition x seed}, `jobs` at a time, and tabulate the best values.

    Parameters
    ----------
    name
        Of the result files; by default the space and the data set.
    """
    base = RunConfig(
        space=space,
        table=table,
        dataset=dataset,
        objective=objective,  # type: ignore[arg-type]
        score=score,  # type: ignore[arg-type]
        guidance=guidance,  # type: ignore[arg-type]
        budget=budget,
    )
    configs = [
        replace(base, acq=a, strategy=s, seed=k)  # type: ignore[arg-type]
        for k, a, s in itertools.product(range(seeds), acqs, strategies)
    ]
    console = Console(stderr=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        done = pool.imap_unordered(_one_run, [(config, runs, marks) for config in configs])
        steps = track(done, "searching", total=len(configs), console=console)
        rows = [row for run_rows in steps for row in run_rows]
    frame = pd.DataFrame(rows).sort_values(["acq", "strategy", "seed", "trials"])
    name = name or "-".join(["search", space, *([dataset] if dataset else [])])
    RESULTS.mkdir(exist_ok=True)
    frame.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.4f")
    text = "\n".join(_report(frame, seeds))
    (RESULTS / f"{name}.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


def _one_run(task: tuple[RunConfig, Path, tuple[int, ...]]) -> list[dict[str, Any]]:
    """One row per mark: best value, and the test accuracy of the architecture that has it."""
    config, runs, marks = task
    label = f"{config.strategy}-{config.acq}-seed{config.seed}-{config.hash()[:8]}"
    out = runs / config.space / label
    executor = build_executor(config, Runtime(executor="local", device="cpu"))
    store = RunStore.open(out, config, find_space(config.space))
    run_study(
        build_optimizer(config, executor.generator),
        executor,
        store,
        budget=config.budget,
        n_init=config.n_init,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    trials = pd.DataFrame(store.rows())
    store.close()
    rows = []
    for mark in marks:
        best = trials.loc[trials["value"].iloc[:mark].idxmax()]
        row = {"acq": config.acq, "strategy": config.strategy, "seed": config.seed, "trials": mark}
        rows.append(
            row | {"value": best["value"]} | ({"test": best["test"]} if "test" in best else {})
        )
    return rows


def _report(frame: pd.DataFrame, seeds: int) -> list[str]:
    command = " ".join(["python", *sys.argv])
    machine = f"{platform.machine()}, torch {torch.__version__}, 1 thread a run"
    lines = [f"`{command}`", "", f"Means over {seeds} seeds, percent; {machine}.", ""]
    for value in [name for name in ("value", "test") if name in frame]:
        means = frame.pivot_table(index=["acq", "strategy"], columns="trials", values=value)
        marks = list(means.columns)
        lines += [f"**{'Best value' if value == 'value' else 'Its test accuracy'}**", ""]
        lines += ["| acquisition | strategy | " + " | ".join(f"@{m}" for m in marks) + " |"]
        lines += ["|---|---|" + "---|" * len(marks)]
        for acq in dict.fromkeys(frame["acq"]):
            best = means.loc[acq].max().round(3)
            for strategy in (s for s in ORDER if s in means.loc[acq].index):
                cells = [round(means.loc[(acq, strategy), m], 3) for m in marks]
                shown = [
                    f"**{c:.3f}**" if c == best[m] else f"{c:.3f}"
                    for c, m in zip(cells, marks, strict=True)
                ]
                lines.append(f"| {acq} | {strategy} | " + " | ".join(shown) + " |")
        lines.append("")
    return lines


if __name__ == "__main__":
    run(app)
