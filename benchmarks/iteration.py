"""Seconds of one search iteration (fit, propose, score) by strategy and observations.

    python benchmarks/iteration.py

Everything that `BayesianOptimizer.suggest` does, in one process; medians over repeats, after one
warm-up. The cost of evaluations is not included: they run elsewhere. A round of guided is one of
guided-gen after an improvement, and one of mutation otherwise.
"""

from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from publish import machine, publish

from nag.cli import command_line, run
from nag.errors import counted
from nag.generator import DiffusionGenerator
from nag.predictors.base import Observations
from nag.spaces import find_space
from orchestrator.build import build_optimizer
from orchestrator.config import RunConfig
from trainers.evaluators.surrogate import SurrogateEvaluator

SPACE = find_space("mobilenetv3")
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
    about = f"{machine()}, {counted(threads, 'thread')}; median of {repeats}."
    publish("iteration", about, _rows(observations, repeats, threads))


def _rows(observations: tuple[int, ...], repeats: int, threads: int) -> Iterator[str]:
    archs = tuple(SPACE.sample(max(observations), np.random.default_rng(0)))
    values = SurrogateEvaluator().predict(archs)
    yield "| strategy | guidance | observations | fit s | propose s | score s | all s |"
    yield "|---|---|---|---|---|---|---|"
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
            yield f"| {strategy} | {shown} | {n} | {times} |"


if __name__ == "__main__":
    run(app)
