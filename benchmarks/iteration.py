"""Seconds of one search iteration (fit, propose, score) by strategy and observations.

    python benchmarks/iteration.py

Everything that `BayesianOptimizer.suggest` does, in one process; medians over repeats, after one
warm-up. The cost of evaluations is not included: they run elsewhere. A round of guided is one of
guided-gen after an improvement, and one of mutation otherwise.
"""

import platform
import sys
from pathlib import Path
from statistics import median

import numpy as np
import torch

from nag.cli import command_line, find_space, run
from nag.generator import DiffusionGenerator
from nag.predictors.base import Observations
from orchestrator.build import build_optimizer
from orchestrator.config import RunConfig
from trainers.evaluators.surrogate import SurrogateEvaluator

RESULTS = Path(__file__).parent / "results"
STRATEGIES = (
    ("guided-gen", "denoised"),
    ("guided-gen", "noise-aware"),
    ("uncond+sort", "denoised"),
    ("mutation+random", "denoised"),
)

app = command_line("python benchmarks/iteration.py")


@app.default
def main(
    *, observations: tuple[int, ...] = (20, 100, 200, 1000), repeats: int = 3, threads: int = 1
) -> None:
    """Time iterations on MobileNetV3 with the embedded surrogate, pool of 100."""
    torch.set_num_threads(threads)
    space = find_space("mobilenetv3")
    archs = tuple(space.sample(max(observations), np.random.default_rng(0)))
    values = SurrogateEvaluator().predict(archs)
    machine = f"{platform.machine()}, torch {torch.__version__}, {threads} thread(s)"
    lines = [f"`{' '.join(['python', *sys.argv])}`", "", f"{machine}; median of {repeats}.", ""]
    lines += ["| strategy | guidance | observations | fit s | propose s | score s | all s |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for strategy, guidance in STRATEGIES:
        config = RunConfig(strategy=strategy, guidance=guidance, threads=threads)  # type: ignore[arg-type]
        optimizer = build_optimizer(config, DiffusionGenerator(config.generator("auto")))
        for n in observations:
            seen = Observations(archs[:n], values[:n])
            rounds = [
                optimizer.suggest(seen, set(seen.archs), 1, np.random.default_rng(i)).seconds
                for i in range(repeats + 1)
            ][1:]
            phases = [median(r[p] for r in rounds) for p in ("fit", "propose", "select")]
            times = " | ".join(f"{s:.2f}" for s in (*phases, sum(phases)))
            shown = guidance if strategy == "guided-gen" else ""
            lines.append(f"| {strategy} | {shown} | {n} | {times} |")
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "iteration.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    run(app)
