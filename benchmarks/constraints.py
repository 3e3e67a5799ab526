"""Do guided samples satisfy constraints, and are they better than those that rejection leaves?

    python benchmarks/constraints.py

MobileNetV3. A Gaussian process on 100 random architectures, evaluated by the embedded surrogate,
guides 256 samples of 20 levels (denoised guidance) under each constraint; each seed has its own
observations and samples. Scale 0 is the constraint without a predictor; `auto` uses the scales that
`Calibrated` finds with a pilot, whose cost no other row has. Rejection draws as many unguided
samples with as many score evaluations and discards the infeasible ones.

Feasible: share of the valid samples. Values: surrogate values of the feasible samples.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from publish import machine, publish

from nag.calibration import Calibrated
from nag.cli import command_line, run
from nag.errors import UserError, counted
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance
from nag.guidance import Ladder
from nag.predictors.base import FittedPredictor, Observations
from nag.predictors.gp import GaussianProcess
from nag.properties import Constraint, satisfied
from nag.spaces import find_space
from orchestrator.config import RunConfig
from trainers.constraints import build_constraints
from trainers.evaluators.surrogate import SurrogateEvaluator

SPACE = find_space("mobilenetv3")
OBSERVATIONS = 100
CONSTRAINTS = (
    ("macs<=250e6",),
    ("params<=4.5e6",),
    ("macs<=180e6",),
    ("macs<=250e6", "params<=4.5e6"),
)
SCALES = ("auto", "0", "1", "10", "100")
REJECTION = "rejection"

app = command_line("python benchmarks/constraints.py")


class Found(NamedTuple):
    """Results of one batch; nan if no sample is feasible."""

    validity: float
    feasible: float  # share of the valid ones
    distinct: float  # among the feasible ones
    mean: float
    best: float
    seconds: float


@app.default
def main(
    *,
    num: int = 256,
    seeds: int = 5,
    draws: int = 100_000,
    scores: tuple[Literal["exact", "network"], ...] = ("exact", "network"),
    threads: int = 1,
) -> None:
    """Guide under constraints and write benchmarks/results/constraints.md.

    Parameters
    ----------
    num
        Samples per batch.
    seeds
        Batches per row.
    draws
        Uniform draws to measure how rare feasible architectures are.
    scores
        The closed form, the shipped network, or both.
    threads
        CPU threads.
    """
    if min(num, seeds, draws, threads) < 1:
        raise UserError("all numbers must be at least 1")
    steps = RunConfig().steps
    generators = {
        score: DiffusionGenerator(
            GeneratorConfig(SPACE.name, score, steps=steps, device="cpu", threads=threads)
        )
        for score in scores
    }
    about = (
        f"{num} samples, {steps} levels, means over {counted(seeds, 'seed')} (best: mean of the "
        f"best of each seed); uniform feasible: share of {draws:,} uniform samples; {machine()}, "
        f"{counted(threads, 'thread')}."
    )
    publish("constraints", about, _table(generators, num, seeds, draws))


def _table(
    generators: dict[str, DiffusionGenerator], num: int, seeds: int, draws: int
) -> Iterator[str]:
    yield (
        "| constraint | uniform feasible, % | score | scale | validity, % | feasible, % "
        "| distinct feasible | mean value, % | best value, % | seconds |"
    )
    yield "|" + "---|" * 10
    uniform = SPACE.sample(draws, np.random.default_rng(0))
    fitted = [_fit(seed) for seed in range(seeds)]
    for texts in CONSTRAINTS:
        constraints = build_constraints(SPACE, texts, None, None)
        share = satisfied(constraints, uniform).mean()
        for score, generator in generators.items():
            for scale in (REJECTION, *SCALES):
                batches = [
                    _batch(generator, observations, predictor, constraints, scale, num, seed)
                    for seed, (observations, predictor) in enumerate(fitted)
                ]
                yield (
                    f"| {', '.join(texts)} | {100 * share:.3g} | {score} | {scale} "
                    f"| {_cells(batches)} |"
                )


def _fit(seed: int) -> tuple[Observations, FittedPredictor]:
    rng = np.random.default_rng(seed)
    archs = tuple(SPACE.sample(OBSERVATIONS, rng))
    observations = Observations(archs, SurrogateEvaluator().predict(archs))
    return observations, GaussianProcess(SPACE).fit(observations, rng)


def _batch(
    generator: DiffusionGenerator,
    observations: Observations,
    predictor: FittedPredictor,
    constraints: tuple[Constraint, ...],
    scale: str,
    num: int,
    seed: int,
) -> Found:
    started = perf_counter()
    guidance = None
    if scale != REJECTION:
        ladder = Calibrated() if scale in ("auto", "0") else Ladder(float(scale), float(scale))
        guidance = Guidance(
            None if scale == "0" else predictor,
            observations,
            scale=ladder,
            constraints=constraints,
        )
    samples = generator.generate(num, seed=seed, guidance=guidance)
    seconds = perf_counter() - started
    keep = satisfied(constraints, samples.valid)
    feasible = [arch for arch, ok in zip(samples.valid, keep, strict=True) if ok]
    values = SurrogateEvaluator().predict(feasible) if feasible else np.array([np.nan])
    return Found(
        samples.validity,
        len(feasible) / max(len(samples.valid), 1),
        len(set(feasible)),
        float(values.mean()),
        float(values.max()),
        seconds,
    )


def _cells(batches: Sequence[Found]) -> str:
    """Means over seeds; values over the seeds with a feasible sample, and how many those are."""
    table = np.array(batches)  # (seeds, fields)
    some = ~np.isnan(table[:, 3])
    validity, feasible, distinct, seconds = table[:, [0, 1, 2, 5]].mean(0)
    missed = "" if some.all() else f" ({some.sum()} of {len(some)} seeds)"
    mean, best = table[some][:, 3:5].mean(0) if some.any() else (np.nan, np.nan)
    return (
        f"{100 * validity:.2f} | {100 * feasible:.2f} | {distinct:.0f} | {100 * mean:.3f}{missed} "
        f"| {100 * best:.3f}{missed} | {seconds:.2f}"
    )


if __name__ == "__main__":
    run(app)
