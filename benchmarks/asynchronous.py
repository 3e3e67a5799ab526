"""Does not waiting cost evaluations? Asynchronous search and rounds with 16 simulated workers.

    python benchmarks/asynchronous.py --table nb201.parquet

Searches with the exact score and EI on NAS-Bench-201 (test accuracy on CIFAR-10 and CIFAR-100) and
MobileNetV3 (estimated ImageNet-1K top-1). Values are looked up; a simulated clock decides which
evaluations end first. Durations are the training times of the table, or log-normal for MobileNetV3
(sigma 1: one in twenty takes more than five times the median).

Reported are the evaluations until the mean best value over seeds reaches that of the sequential
search after 50 or 100, and the simulated time until then relative to the sequential search.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jobs import run_all
from numpy.typing import NDArray
from publish import machine, publish
from simulated import SimulatedWorkers, log_normal, utilisation

from nag.cli import command_line, run
from nag.errors import UserError
from nag.generator import DiffusionGenerator
from orchestrator.build import build_optimizer, make_evaluator, plan_of
from orchestrator.config import RunConfig
from orchestrator.history.trials import Outcome, Trial
from orchestrator.search.loop import run_study
from orchestrator.search.store import RunStore

GOALS = (50, 100)  # evaluations of the sequential search

app = command_line("python benchmarks/asynchronous.py")


@dataclass(frozen=True)
class Mode:
    """A way to keep workers busy."""

    name: str
    workers: int
    settings: dict[str, object]


MODES = (
    Mode("sequential", 1, {}),
    Mode("async, 16 workers", 16, {"schedule": "async"}),
    Mode("rounds of 16, window 2, 16 workers", 16, {"batch_size": 16, "window": 2}),
)


def duration(trial: Trial, outcome: Outcome) -> float:
    """Training seconds from the table; without one, heavy-tailed seconds with mean 1."""
    return outcome.metrics.get("train_seconds") or log_normal(1.0, 1.0)(trial, outcome)


class Found(NamedTuple):
    """Results by number of outcomes, in order of arrival."""

    best: NDArray[np.float64]
    at: NDArray[np.float64]  # simulated seconds
    utilisation: float


@dataclass
class _Recorder:
    executor: SimulatedWorkers
    values: list[float]
    at: list[float]

    def proposed(self, store: RunStore, suggestion: object) -> None:
        """Nothing to record."""

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        self.values.append(outcome.value or 0.0)
        self.at.append(self.executor.clock)


def kept(config: RunConfig, workers: int, keep: Path) -> Found:
    """The result of a run, from its file in `keep` if there is one."""
    path = keep / f"{config.hash()[:24]}-{config.budget}-{workers}.npz"
    if not path.exists():
        aside = path.with_suffix(".tmp.npz")
        np.savez(aside, **search(config, workers)._asdict())
        aside.replace(path)
    with np.load(path) as file:
        return Found(file["best"], file["at"], float(file["utilisation"]))


def search(config: RunConfig, workers: int) -> Found:
    """One run in a temporary directory."""
    torch.set_num_threads(1)
    generator = DiffusionGenerator(config.generator("cpu"))
    asynchronous = config.schedule == "async"
    executor = SimulatedWorkers(
        generator, make_evaluator(config), workers, duration, asynchronous=asynchronous
    )
    recorder = _Recorder(executor, [], [])
    with (
        tempfile.TemporaryDirectory() as out,
        closing(RunStore.open(Path(out), config)) as store,
    ):
        run_study(build_optimizer(config, generator), executor, store, plan_of(config), (recorder,))
    best = np.maximum.accumulate(recorder.values)
    return Found(best, np.array(recorder.at), utilisation(executor.spans, workers))


@app.default
def main(
    *,
    table: Path | None = None,
    datasets: tuple[str, ...] = ("cifar10", "cifar100"),
    seeds: int = 20,
    budget: int = 150,
    jobs: int | None = None,
    keep: Path | None = None,
) -> None:
    """Run the comparison and write benchmarks/results/asynchronous.md.

    Parameters
    ----------
    table
        NAS-Bench-201 as a parquet file; without it only MobileNetV3 is searched.
    datasets
        Data sets of the table.
    seeds
        Runs per mode.
    budget
        Evaluations per run.
    jobs
        Runs at a time; by default one per CPU.
    keep
        Folder for finished runs; repeating the command with it continues.
    """
    if seeds < 1 or budget < max(GOALS):
        raise UserError(f"--seeds must be at least 1, --budget at least {max(GOALS)}")
    problems = {"MobileNetV3": RunConfig(score="exact", budget=budget)}
    if table is not None:
        for dataset in datasets:
            problems[f"NAS-Bench-201, {dataset}"] = RunConfig(
                space="nasbench201",
                table=table,
                dataset=dataset,
                objective="test",
                score="exact",
                budget=budget,
            )
    cases = [
        (problem, mode, replace(config, **mode.settings, seed=seed))  # type: ignore[arg-type]
        for problem, config in problems.items()
        for mode in MODES
        for seed in range(seeds)
    ]
    one: Callable[[RunConfig, int], Found] = search
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        one = partial(kept, keep=keep.resolve())
    searches = [partial(one, config.absolute(), mode.workers) for _, mode, config in cases]
    found = run_all(searches, jobs, "runs")
    results: dict[str, dict[str, list[Found]]] = {
        problem: {mode.name: [] for mode in MODES} for problem in problems
    }
    for (problem, mode, _), result in zip(cases, found, strict=True):
        results[problem][mode.name].append(result)
    about = f"{seeds} seeds, {budget} evaluations; {machine()}."
    publish("asynchronous", about, _table(results))


def _table(results: dict[str, dict[str, list[Found]]]) -> Iterator[str]:
    """Results by problem and mode."""
    yield (
        "| problem | mode | goal: the sequential best of | evaluations | ratio "
        "| simulated time, sequential = 1 | utilisation, % |"
    )
    yield "|---|---|---|---|---|---|---|"
    for problem, by_mode in results.items():
        yield from _rows(problem, by_mode)


def _rows(problem: str, by_mode: dict[str, list[Found]]) -> Iterator[str]:
    curves = {name: np.mean([f.best for f in runs], axis=0) for name, runs in by_mode.items()}
    times = {name: np.mean([f.at for f in runs], axis=0) for name, runs in by_mode.items()}
    for evaluations in GOALS:
        goal = curves["sequential"][evaluations - 1]
        needed = {name: int(np.argmax(curve >= goal)) + 1 for name, curve in curves.items()}
        one = needed["sequential"]
        for name, curve in curves.items():
            use = 100 * np.mean([f.utilisation for f in by_mode[name]])
            found = f"more than {len(curve)} | – | –"
            if curve[-1] >= goal:
                time = times[name][needed[name] - 1] / times["sequential"][one - 1]
                found = f"{needed[name]} | {needed[name] / one:.2f} | {time:.3f}"
            yield f"| {problem} | {name} | {evaluations} | {found} | {use:.0f} |"


if __name__ == "__main__":
    run(app)
