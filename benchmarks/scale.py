"""How many workers can one driver keep busy? Real Ray tasks, and workers on a simulated clock.

    python benchmarks/scale.py

First, what Ray itself costs: evaluations that do nothing, and evaluations that sleep, on a local
Ray with as many CPUs as there are workers. Second, what several generators gain on a pool of
thousands, with the trained network on this machine's cores. Then guided searches on MobileNetV3
with 1 to 256 workers, whose evaluations take log-normal times with mean 60 s, on a simulated clock
that also counts the real seconds of the driver (fit, generate, select, journal). Their sigma is
0.28 (that of the training times of NAS-Bench-201's cells), 0.5 or 1 (one in twenty takes more than
three times the mean). Utilisation is the share of the workers' time spent evaluating, from when all
have work until the last trial begins.
"""

import heapq
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from publish import machine, publish
from simulated import Duration, SimulatedWorkers, log_normal, utilisation

from nag.cli import command_line, run
from nag.errors import UserError
from nag.generator import DiffusionGenerator, Generator, Guidance, Part
from nag.guidance import Ladder
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.spaces import Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from orchestrator.build import build_optimizer, plan_of
from orchestrator.config import RunConfig
from orchestrator.history.trials import Trial
from orchestrator.runtime import Runtime
from orchestrator.search.loop import run_study
from orchestrator.search.store import RunStore
from trainers.base import Measurement
from trainers.evaluators.surrogate import SurrogateEvaluator

MEAN_SECONDS = 60.0
SIGMAS = (0.28, 0.5, 1.0)
_STARTING = 20  # at most this many rounds until all processes have started

app = command_line("python benchmarks/scale.py")


@dataclass(frozen=True)
class Asleep:
    """Sleeps for log-normal times (sigma 1) and reports when."""

    mean: float

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        started = time.time()
        if self.mean:
            z = np.random.default_rng(seed).standard_normal()
            time.sleep(self.mean * float(np.exp(z - 0.5)))
        return Measurement(0.5, {"started": started, "ended": time.time(), "pid": os.getpid()})


@app.default
def main(
    *,
    workers: tuple[int, ...] = (1, 16, 64, 256),
    real: tuple[int, ...] = (1, 16, 64),
    per_worker: int = 4,
    seconds: float = 4.0,
    samples: int = 2048,
) -> None:
    """Measure and write benchmarks/results/scale.md.

    Parameters
    ----------
    workers
        Numbers of simulated workers.
    real
        Numbers of real worker processes, which sleep.
    per_worker
        Evaluations per worker, 60 at least.
    seconds
        Mean sleep of a real evaluation.
    samples
        Size of the pool that several generators make.
    """
    if min(*workers, *real, per_worker, samples) < 1 or seconds <= 0:
        raise UserError("all numbers must be at least 1")
    torch.set_num_threads(1)
    rows = _tables(workers, real, per_worker, seconds, samples)
    publish("scale", f"{machine()}, 1 thread.", rows)


def _tables(
    workers: tuple[int, ...], real: tuple[int, ...], per_worker: int, seconds: float, samples: int
) -> Iterator[str]:
    yield "| Ray tasks | evaluations | ms per evaluation beyond sleep | utilisation, % |"
    yield "|---|---|---|---|"
    yield from _real(real, per_worker, seconds)
    yield ""
    yield "| generators | samples | seconds | times as fast as one |"
    yield "|---|---|---|---|"
    yield from _generators(samples)
    yield ""
    yield (
        "| workers | schedule | durations, sigma | evaluations | utilisation, % "
        "| driver, % of the time | driver, s per evaluation |"
    )
    yield "|---|---|---|---|---|---|---|"
    for count in workers:
        yield from _simulated(count, max(60, per_worker * count))
    yield ""
    yield "Utilisation, %, of N workers by round size, if the driver took no time:"
    yield ""
    yield "| rounds of | window | " + " | ".join(f"sigma {s:g}" for s in SIGMAS) + " |"
    yield "|---|---|" + "---|" * len(SIGMAS)
    yield from _waiting(64)


def _real(counts: tuple[int, ...], per_worker: int, seconds: float) -> Iterator[str]:
    from orchestrator.executors.ray_core import RayExecutor  # Ray is slow to import

    config = RunConfig(score="exact")
    for count in counts:
        n = max(20, per_worker * count)
        runtime = Runtime(workers=count, device="cpu", dashboard=False)
        with closing(RayExecutor(config, runtime, partial(Asleep, 0.0))) as executor:
            _evaluate(executor, 2 * count)  # workers start
            started = time.perf_counter()
            _evaluate(executor, 1000)
            idle = 1000 * (time.perf_counter() - started) / 1000
        with closing(RayExecutor(config, runtime, partial(Asleep, seconds))) as executor:
            for _ in range(_STARTING):
                if len({pid for *_, pid in _evaluate(executor, 2 * count)}) == count:
                    break
            spans = [(start, end) for start, end, _ in _evaluate(executor, n)]
        use = 100 * utilisation(spans, count)
        yield f"| {count} | 1000 and {n} | {idle:.1f} | {use:.1f} |"


def _generators(samples: int) -> Iterator[str]:
    """Guided samples in parts of 512, with given scales."""
    from orchestrator.executors.ray_core import RayExecutor

    config = RunConfig()
    archs = MOBILENETV3.sample(50, np.random.default_rng(0))
    observed = Observations(archs, SurrogateEvaluator().predict(archs))
    predictor = GaussianProcess(MOBILENETV3).fit(observed, np.random.default_rng(0))
    guidance = Guidance(predictor, observed, scale=Ladder(1.0, 30.0))
    parts = [Part(512, seed) for seed in range(-(-samples // 512))]
    one = 0.0
    for count in range(1, 1 + min(os.cpu_count() or 1, len(parts))):
        runtime = Runtime(workers=1, generators=count, dashboard=False)
        with closing(RayExecutor(config, runtime, partial(Asleep, 0.0))) as executor:
            took = min(_generate(executor.generator, parts, guidance) for _ in range(3))
        one = one or took
        yield f"| {count} | {512 * len(parts):,} | {took:.1f} | {one / took:.2f} |"


def _generate(generator: Generator, parts: Sequence[Part], guidance: Guidance) -> float:
    started = time.perf_counter()
    generator.generate_parts(parts, guidance)
    return time.perf_counter() - started


def _evaluate(executor: object, n: int) -> list[tuple[float, float, float]]:
    """(start, end, process) of n evaluations."""
    archs = MOBILENETV3.sample(n, np.random.default_rng(0))
    trials = iter([Trial(i, 0, arch, "initial", seed=i) for i, arch in enumerate(archs)])
    outcomes = executor.run(lambda room: [*islice(trials, min(room, n))])  # type: ignore[attr-defined]
    return [(o.metrics["started"], o.metrics["ended"], o.metrics["pid"]) for o in outcomes]


def _simulated(workers: int, n: int) -> Iterator[str]:
    settings: list[tuple[str, dict[str, object], float]] = [
        ("async", {"schedule": "async"}, 1.0),
        ("rounds of N, window 2", {"batch_size": workers, "window": 2}, 0.28),
        ("rounds of 2N, window 2", {"batch_size": 2 * workers, "window": 2}, 0.5),
        ("rounds of N, window 2", {"batch_size": workers, "window": 2}, 1.0),
        ("rounds of N", {"batch_size": workers}, 1.0),
    ]
    if workers == 1:
        settings = [("rounds of 1", {}, 1.0)]
    for name, settings_of, sigma in settings:
        pool = max(100, 2 * workers)
        config = RunConfig(score="exact", budget=n, pool_size=pool, **settings_of)  # type: ignore[arg-type]
        found = _search(config, workers, log_normal(MEAN_SECONDS, sigma))
        yield (
            f"| {workers} | {name} | {sigma:g} | {n} "
            f"| {100 * utilisation(found.spans, workers):.1f} "
            f"| {100 * found.driver / found.clock:.2f} | {found.driver / n:.3f} |"
        )


def _waiting(workers: int) -> Iterator[str]:
    """The modelled cost of waiting for the slowest trial of a round: means over 20 seeds."""
    for times, window in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (1, 4), (1, 8)):
        shown = []
        for sigma in SIGMAS:
            found = [_rounds(workers, times * workers, window, sigma, seed) for seed in range(20)]
            shown.append(f"{100 * np.mean(found):.0f}")
        yield f"| {'N' if times == 1 else f'{times} N'} | {window} | {' | '.join(shown)} |"


def _rounds(workers: int, batch: int, window: int, sigma: float, seed: int) -> float:
    """Utilisation of a search of 60 evaluations per worker."""
    z = np.random.default_rng(seed).standard_normal((60 * workers // batch, batch))
    free = [0.0] * workers
    ends: list[float] = []  # of rounds
    seconds = np.exp(sigma * z - sigma**2 / 2)
    for number, row in enumerate(seconds):
        begin = max(ends[: max(0, number - window + 1)], default=0.0)
        last = begin
        for took in row:
            end = max(heapq.heappop(free), begin) + took
            heapq.heappush(free, end)
            last = max(last, end)
        ends.append(last)
    return float(seconds.sum() / (workers * max(free)))


def _search(config: RunConfig, workers: int, duration: Duration) -> SimulatedWorkers:
    generator = DiffusionGenerator(config.generator("cpu"))
    executor = SimulatedWorkers(
        generator,
        SurrogateEvaluator(),
        workers,
        duration,
        asynchronous=config.schedule == "async",
        driver_works=True,
    )
    with (
        tempfile.TemporaryDirectory() as out,
        closing(RunStore.open(Path(out), config)) as store,
    ):
        run_study(build_optimizer(config, generator), executor, store, plan_of(config))
    return executor


if __name__ == "__main__":
    run(app)
