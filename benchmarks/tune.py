"""What a trial costs on top of its evaluation, with Ray Tune and with our own executor.

    python benchmarks/tune.py

Wall-clock seconds per trial, two at a time, from the tenth trial to the last. Evaluations are of
the toy space, take microseconds, and use pre-drawn random architectures.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from publish import machine, publish
from ray import tune

from nag.cli import command_line, run
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.tune import BOSearcher
from trainers.evaluators.toy import ToyEvaluator

TRIALS, FIRST = 40, 10
SETTINGS = {"space": "toy", "score": "exact", "n_init": TRIALS, "budget": TRIALS}

app = command_line("python benchmarks/tune.py")


@app.default
def main() -> None:
    """Time trials without any work and write benchmarks/results/tune.md."""
    about = f"{machine()}, Ray {ray.__version__}. Wall-clock seconds per trial without any work, "
    about += f"two at a time, from trial {FIRST} to the last of {TRIALS}."
    publish("tune", about, _rows())


def _rows() -> Iterator[str]:
    yield "| | seconds per trial |"
    yield "|---|---|"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        for reuse in (True, False):
            yield _row(f"`BOSearcher`, `reuse_actors={reuse}`", of_searcher(folder, reuse))
        ray.shutdown()
        for executor in ("tune", "ray"):
            yield _row(f"`run_bo --executor {executor}`", of_run_bo(folder, executor))


def _row(label: str, ends: list[float]) -> str:
    return f"| {label} | {(ends[-1] - ends[FIRST]) / (len(ends) - FIRST - 1):.3f} |"


def train(config: dict[str, str]) -> None:
    found = ToyEvaluator().evaluate(TOY.from_str(config["arch"]), seed=0)
    tune.report({"value": found.value})


class Clock(tune.Callback):
    """Records when trials ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_trial_complete(
        self, iteration: int, trials: list, trial: object, **info: object
    ) -> None:
        self.ends.append(time.perf_counter())


def of_searcher(folder: Path, reuse_actors: bool) -> list[float]:
    clock = Clock()
    tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=BOSearcher(RunConfig(**SETTINGS), metric="value", mode="max", max_t=1),
            num_samples=TRIALS,
            max_concurrent_trials=2,
            reuse_actors=reuse_actors,
        ),
        run_config=tune.RunConfig(
            name=str(reuse_actors), storage_path=str(folder), callbacks=[clock], verbose=0
        ),
    ).fit()
    return clock.ends


def of_run_bo(folder: Path, executor: str) -> list[float]:
    """When trials ended, from polling the journal every few milliseconds."""
    journal, out = folder / executor / "journal.jsonl", str(folder / executor)
    options = [part for name, x in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", x)]
    options += ["--workers", 2, "--executor", executor, "--no-dashboard", "--out", out]
    command = [sys.executable, "-m", "orchestrator.run_bo", *map(str, options)]
    ends: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(ends) < TRIALS:
            count = journal.read_bytes().count(b'"finished"') if journal.exists() else 0
            ends += [time.perf_counter()] * (count - len(ends))
            time.sleep(0.003)
    return ends


if __name__ == "__main__":
    run(app)
