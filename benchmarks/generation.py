"""Seconds per guided architecture: the reference's network and sampler, ours, and the closed form.

    python benchmarks/generation.py
    python benchmarks/generation.py --full-reference     about half an hour more

MobileNetV3. Guidance comes from a Gaussian process on 100 random architectures, evaluated by the
embedded surrogate; every case climbs its mean + std at the guidance scales that `Calibrated` finds
with the exact score. Each case has its own process, whose peak memory is reported.

(a) is the reference: the `paper` network, its predictor-corrector with 1,000 levels (2,000 score
evaluations), noise-aware guidance at each. It is timed over a few levels, spread over all noise
levels, and scaled up; (b) and (c) run as in the search. On a GPU all networks are compiled.

The first table covers sampling, decoding and removing duplicates; the second the whole proposal of
one round of the search, including fits and the pilot that finds the scales.
"""

import multiprocessing
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from publish import machine, publish

from nag.checkpoint import load_network
from nag.cli import command_line, run
from nag.devices import resolve_device
from nag.errors import UserError, counted
from nag.generate import DEFAULT_SAMPLER, Samples, generate
from nag.generator import (
    DiffusionGenerator,
    GeneratorConfig,
    Guidance,
    GuidanceKind,
    accelerated,
    load_score,
)
from nag.guidance import Ladder, LogDensity, denoised, guided, value
from nag.laws import UniformLaw, sde_of
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.predictors.noise_aware import fit_noise_aware
from nag.samplers import SAMPLERS
from nag.score_net import ScoreNetwork, preset
from nag.sde import VESDE, ScoreFn
from nag.spaces import find_space
from orchestrator.config import RunConfig
from trainers.evaluators.surrogate import SurrogateEvaluator

PAPER_WEIGHTS = Path(__file__).parent / "networks" / "mobilenetv3-paper.safetensors"
SPACE = find_space("mobilenetv3")
REFERENCE = "predictor-corrector"
OURS: tuple[tuple[str, Literal["network", "exact"]], ...] = (
    ("(b) default network", "network"),
    ("(c) exact score", "exact"),
)
KINDS: tuple[GuidanceKind, ...] = ("denoised", "noise-aware")
STEPS = RunConfig().steps
OBSERVATIONS = 100
FULL_BATCH = 256  # for the full reference
PROPOSED = 256

app = command_line("python benchmarks/generation.py")


@dataclass(frozen=True)
class Case:
    """One row of the first table; `timed` of the `levels` are run, the rest is extrapolated."""

    name: str
    score: Literal["paper", "network", "exact"]
    kind: GuidanceKind
    batch: int
    device: str
    threads: int
    weights: Path | None = None  # None: random
    sampler: str = DEFAULT_SAMPLER
    levels: int = STEPS
    timed: int = STEPS
    repeats: int = 1


@dataclass(frozen=True)
class Measured:
    """seconds: for all levels; shares: split into score, guidance, sampler, decode and dedupe."""

    evaluations: int
    seconds: float
    shares: tuple[float, float, float, float]
    validity: float | None  # None: not all levels were run
    mean: float | None
    before: float  # MB, when sampling starts
    peak: float  # MB


@app.default
def main(
    *,
    batches: tuple[int, ...] = (32, 256, 2048),
    paper_weights: Path = PAPER_WEIGHTS,
    reference_levels: int = 10,
    full_reference: bool = False,
    repeats: int = 3,
    device: str = "auto",
    threads: int = 1,
) -> None:
    """Time guided generation and write benchmarks/results/generation.md.

    Parameters
    ----------
    batches
        Batch sizes.
    paper_weights
        Weights of the `paper` network; random ones if there is no such file.
    reference_levels
        How many of the reference's 1,000 levels to time.
    full_reference
        Also run the reference in full, once, on 256 samples.
    repeats
        Runs of everything but the reference; medians are reported.
    device
        cpu, cuda, or auto (cuda if available).
    threads
        CPU threads of PyTorch. A search uses 1: two are slower if the fit waits for a busy core.
    """
    levels = SAMPLERS[REFERENCE].steps
    if not 2 <= reference_levels <= levels or min(repeats, threads, *batches) < 1:
        raise UserError(f"--reference-levels must be 2 to {levels}, the other numbers at least 1")
    chosen = resolve_device(device)
    weights = paper_weights if paper_weights.is_file() else None
    if weights and load_network(weights, SPACE).config != preset("paper", SPACE):
        raise UserError(f"{weights} does not hold a network of the paper preset")
    common: dict[str, Any] = {"device": str(chosen), "threads": threads}
    ours = [
        Case(name, score, kind, 0, repeats=repeats, **common)
        for name, score in OURS
        for kind in KINDS
    ]
    reference = Case(
        "(a) reference",
        "paper",
        "noise-aware",
        0,
        weights=weights,
        sampler=REFERENCE,
        levels=levels,
        timed=reference_levels,
        **common,
    )
    cases = [replace(case, batch=batch) for batch in batches for case in (reference, *ours)]
    if full_reference:
        full = replace(reference, name="(a) in full", timed=reference.levels, batch=FULL_BATCH)
        after = max((i for i, c in enumerate(cases) if c.batch == FULL_BATCH), default=-1)
        cases.insert(after + 1, full)
    which = (
        f"({weights.name})" if weights else "with random weights, which do not affect the timing"
    )
    whose = "tensors on the GPU" if chosen.type == "cuda" else "the process including its libraries"
    about = (
        f"{machine(chosen)}, {counted(threads, 'thread')}; medians of {repeats}, the reference "
        f"run once. Guided by {OBSERVATIONS} observations. (a): the `paper` network {which}, "
        f"{REFERENCE}, noise-aware guidance: {reference.timed} of {reference.levels:,} levels "
        "timed and extrapolated, assuming a validity of 100 %. (b), (c): "
        f"{DEFAULT_SAMPLER}, {STEPS} levels. "
        f"MB: peak memory before and after sampling, of {whose}."
    )
    publish("generation", about, _tables(cases, reference, str(chosen), threads, repeats))


def _tables(
    cases: list[Case], reference: Case, device: str, threads: int, repeats: int
) -> Iterator[str]:
    """Both tables, row by row."""
    yield (
        "| case | guidance | batch | score evaluations | seconds | seconds per valid | speed-up "
        "| validity, % | mean value, % | MB before | peak MB | score, % | guidance, % | sampler, % "
        "| decode + dedupe, % |"
    )
    yield "|" + "---|" * 15
    found: dict[Case, Measured] = {}
    for case in cases:
        found[case] = _alone(measure, case)
        yield _row(case, found[case], found.get(replace(reference, batch=case.batch)))
    yield ""
    yield (
        f"A proposal of {PROPOSED} with {OBSERVATIONS} observations, seconds; "
        f"{counted(threads, 'thread')}, median of {repeats} after one warm-up."
    )
    yield ""
    yield (
        "| score | guidance | fit GP | fit noise-aware | find scales, generate | decode | dedupe "
        "| all | valid, % | distinct |"
    )
    yield "|" + "---|" * 10
    yield from _alone(proposals, device, threads, repeats)


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a separate process. This one stays small: a child's peak starts at its parent's."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def _row(case: Case, found: Measured, baseline: Measured | None) -> str:
    def per_valid(one: Measured) -> float:
        share = 1.0 if one.validity is None else one.validity
        return one.seconds / (case.batch * share) if share else np.nan

    speed_up = per_valid(baseline) / per_valid(found) if baseline else np.nan
    cells = [
        case.name,
        case.kind,
        f"{case.batch:,}",
        f"{found.evaluations:,}",
        _digits(found.seconds),
        _digits(per_valid(found)),
        _digits(speed_up),
        "-" if found.validity is None else f"{100 * found.validity:.2f}",
        "-" if found.mean is None or np.isnan(found.mean) else f"{100 * found.mean:.3f}",
        f"{found.before:,.0f}",
        f"{found.peak:,.0f}",
        *(f"{100 * share:.1f}" for share in found.shares),
    ]
    return "| " + " | ".join(cells) + " |"


def _digits(number: float) -> str:
    """Three significant digits, or all those before the decimal point."""
    if np.isnan(number):
        return "-"
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


class Stopwatch:
    """Times every call of the functions it wraps; synchronises with a GPU at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = self.now()
            out = function(*args, **kwargs)
            self.laps[name].append(self.now() - started)
            return out

        return timed

    def total(self, *names: str) -> float:
        return sum(sum(self.laps[name]) for name in names)


class TimedSpace:
    """The space, with a stopwatch on decoding."""

    def __init__(self, watch: Stopwatch) -> None:
        self.decode = watch.wrap("decode", SPACE.decode)
        self.check = watch.wrap("check", SPACE.check)

    def __getattr__(self, name: str) -> Any:
        return getattr(SPACE, name)


def observed() -> Observations:
    archs = tuple(SPACE.sample(OBSERVATIONS, np.random.default_rng(0)))
    return Observations(archs, SurrogateEvaluator().predict(archs))


def measure(case: Case) -> Measured:
    """Run a case; to be called in a process of its own, for the peak memory."""
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    score, sde = _load(case, device)
    log_density, scale = _guidance(case, sde, device)
    watch = Stopwatch(device)
    gpu = device.type == "cuda"

    def sample(steps: int, watched: bool) -> tuple[Samples, float]:
        wrap = watch.wrap if watched else lambda name, function: function
        tilted = guided(wrap("score", score), SPACE, sde, log_density=log_density, scale=scale)
        samples = generate(
            TimedSpace(watch) if watched else SPACE,
            wrap("guided", tilted),
            sde,
            case.batch,
            seed=0,
            sampler=case.sampler,
            steps=steps,
            batch_size=case.batch,
            device=device,
            progress=_progress(case, steps),
        )
        started = perf_counter()
        _ = samples.unique
        dedupe = perf_counter() - started
        watch.laps["dedupe"].append(dedupe)
        return samples, samples.seconds + dedupe

    before = _peak(device)
    sample(3 if gpu else 2, watched=False)  # a CUDA graph is compiled, recorded, then replayed
    seconds, parts = [], []
    for _ in range(case.repeats):
        watch.laps.clear()
        samples, watched = sample(case.timed, watched=True)
        parts.append(_parts(watch, watched, case.levels / case.timed))
        # a stopwatch makes the CPU wait for the GPU, so there the total is from a run without one
        total = sample(case.timed, watched=False)[1] if gpu else watched
        decode = parts[-1][-1]
        seconds.append((total - decode) * case.levels / case.timed + decode)
    middle = np.median(parts, axis=0)
    complete = case.timed == case.levels
    return Measured(
        evaluations=samples.score_evaluations * case.levels // case.timed,
        seconds=median(seconds),
        shares=tuple((middle / middle.sum()).tolist()),
        validity=samples.validity if complete else None,
        mean=_mean_value(samples) if complete else None,
        before=before,
        peak=_peak(device),
    )


def _peak(device: torch.device) -> float:
    """Peak memory so far, MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _parts(watch: Stopwatch, total: float, scale: float) -> list[float]:
    """Seconds in score, guidance, sampler, and decode + dedupe."""
    score, both = watch.total("score"), watch.total("guided")
    decode = watch.total("decode", "check", "dedupe")
    return [score * scale, (both - score) * scale, (total - both - decode) * scale, decode]


def _mean_value(samples: Samples) -> float:
    return float(SurrogateEvaluator().predict(samples.valid).mean()) if samples.valid else np.nan


def _progress(case: Case, steps: int) -> Callable[[int], None]:
    """Reports progress at every tenth of a run of the reference in full."""
    done, full = 0, case.sampler == REFERENCE and steps == case.levels

    def report(samples: int) -> None:
        nonlocal done
        done += 1
        if full and done % (case.levels // 10) == 0:
            sys.stderr.write(f"{case.name}: {done} of {case.levels} levels\n")

    return report


def _load(case: Case, device: torch.device) -> tuple[ScoreFn, VESDE]:
    if case.score != "paper":
        return load_score(GeneratorConfig(SPACE.name, case.score), SPACE, device)
    if case.weights is not None:
        network = load_network(case.weights, SPACE, device=device)
        return accelerated(network, device), network.sde
    torch.manual_seed(0)
    network = ScoreNetwork(SPACE, sde_of(UniformLaw(SPACE)), preset("paper", SPACE))
    return accelerated(network.to(device).eval().requires_grad_(False), device), network.sde


def _guidance(case: Case, sde: VESDE, device: torch.device) -> tuple[LogDensity, Ladder]:
    """What to climb and the scales, the same for all cases of one kind."""
    observations = observed()
    predictor = GaussianProcess(SPACE).fit(observations, np.random.default_rng(0))
    guidance = Guidance(predictor, observations, kind=case.kind)
    config = GeneratorConfig(
        SPACE.name, "exact", steps=STEPS, device=case.device, threads=case.threads
    )
    scales = DiffusionGenerator(config).generate(1, seed=0, guidance=guidance).diagnostics
    reading = denoised(predictor)
    if case.kind == "noise-aware":
        rng = np.random.default_rng([0, 1])
        reading = fit_noise_aware(SPACE, sde, observations, predictor, rng).to(device)
    ladder = Ladder(scales["scale_low"], scales["scale_high"])
    return value(reading, guidance.optimism), ladder


def proposals(device: str, threads: int, repeats: int) -> list[str]:
    """The rows of the second table, measured alternately."""
    observations, surrogate = observed(), GaussianProcess(SPACE)
    watch = Stopwatch(torch.device(device))
    rounds: dict[tuple[str, GuidanceKind], list[tuple[list[float], Samples]]] = defaultdict(list)
    generators = {}
    for score in ("network", "exact"):
        config = GeneratorConfig(SPACE.name, score, steps=STEPS, device=device, threads=threads)
        generators[score] = DiffusionGenerator(config)
        generators[score].space = TimedSpace(watch)  # type: ignore[assignment]
    for seed in range(repeats + 1):
        for score, generator in generators.items():
            for kind in KINDS:
                done = _propose(generator, surrogate, observations, kind, seed, watch)
                rounds[score, kind].append(done)
    return list(_proposal_rows(rounds))


def _propose(
    generator: DiffusionGenerator,
    surrogate: GaussianProcess,
    observations: Observations,
    kind: GuidanceKind,
    seed: int,
    watch: Stopwatch,
) -> tuple[list[float], Samples]:
    """Seconds of each phase, and the samples."""
    watch.laps.clear()
    started = watch.now()
    predictor = surrogate.fit(observations, np.random.default_rng(seed))
    fitted = watch.now()
    guidance = Guidance(predictor, observations, kind=kind)
    with patch("nag.generator.fit_noise_aware", watch.wrap("noise-aware", fit_noise_aware)):
        samples = generator.generate(PROPOSED, seed=seed, guidance=guidance)
    generated = watch.now()
    _ = samples.unique
    done = watch.now()
    noise_aware = watch.total("noise-aware")
    decode = watch.laps["decode"][-1] + watch.laps["check"][-1]  # of the last batch, not the pilot
    phases = [
        fitted - started,
        noise_aware,
        generated - fitted - noise_aware - decode,
        decode,
        done - generated,
        done - started,
    ]
    return phases, samples


def _proposal_rows(
    rounds: dict[tuple[str, GuidanceKind], list[tuple[list[float], Samples]]],
) -> Iterator[str]:
    for (score, kind), (_, *kept) in rounds.items():
        phases = np.median([phases for phases, _ in kept], axis=0)
        shown = " | ".join(f"{seconds:.3f}" for seconds in phases)
        validity = np.mean([samples.validity for _, samples in kept])
        distinct = np.mean([len(samples.unique) for _, samples in kept])
        yield f"| {score} | {kind} | {shown} | {100 * validity:.2f} | {distinct:.0f} |"


if __name__ == "__main__":
    run(app)
