"""What do few steps cost? Samplers and schedules, by distance to the distribution they target.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --score network     the shipped network, at a few settings

MobileNetV3. First unguided: every stage should have depth 2, 3 or 4 with probability 1/3 and every
operator probability 1/9. Worst deviations over stages, depths and operators are in points. The
distances are those of `nag.metrics`, with their ratio to the distance of as many independent draws:
1 means that this many samples reveal no error.

Then guided by an additive reward R, random with standard deviation 1 over the space, at scales k:
the distribution must be p(A) exp(k R . A), which is known exactly. The distance is the total
variation of a node's operator, averaged over nodes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from publish import machine, publish
from torch import Tensor

from nag.cli import command_line, run
from nag.errors import UserError
from nag.exact_score import posterior
from nag.generate import DEFAULT_SAMPLER, Samples, generate
from nag.generator import GeneratorConfig, load_score
from nag.guidance import Ladder, guided
from nag.metrics import distances, noise
from nag.samplers import SAMPLERS, SCHEDULES
from nag.sde import VESDE, ScoreFn
from nag.spaces import Architecture, find_space

SPACE = find_space("mobilenetv3")
REFERENCE = "predictor-corrector"
QUICK = ("ancestral", "heun", "dpm++2m", "dpm++2m-sde")
SCALES = (1.0, 3.0, 10.0)

app = command_line("python benchmarks/sampling.py")


class Case(NamedTuple):
    sampler: str
    schedule: str
    steps: int
    num: int

    def __str__(self) -> str:
        return f"{self.sampler} | {self.schedule} | {self.steps:,}"


@app.default
def main(*, score: Literal["exact", "network"] = "exact", num: int = 10_000, seed: int = 0) -> None:
    """Sample MobileNetV3 with every sampler and write benchmarks/results/sampling[-network].md.

    Parameters
    ----------
    score
        The closed form, or the shipped network.
    num
        Samples per case; fewer if guided or with the reference sampler.
    seed
        Seed of samples and reward.
    """
    if num < 20:
        raise UserError("--num must be at least 20")
    torch.set_num_threads(1)
    fn, sde = load_score(GeneratorConfig(SPACE.name, score), SPACE, torch.device("cpu"))
    about = (
        f"{'Closed form' if score == 'exact' else 'Shipped network'}; {machine()}, 1 thread. "
        '"× noise": ratio to the distance of the same number of independent draws.'
    )
    name = "sampling" if score == "exact" else "sampling-network"
    publish(name, about, _tables(fn, sde, score, num, seed))


def _tables(
    score: ScoreFn, sde: VESDE, kind: Literal["exact", "network"], num: int, seed: int
) -> Iterator[str]:
    """Both tables, row by row."""
    yield (
        "| sampler | schedule | steps | score evaluations | samples | validity, % "
        "| depth 2 / 3 / 4, % | worst depth, points | worst operator, points "
        "| node | × noise | pair | × noise | joint | × noise | seconds | per 1,000 |"
    )
    yield "|" + "---|" * 17
    for case in _unguided(kind, num):
        yield _unguided_row(case, _sample(case, score, sde, seed))
    reward = _reward(seed)
    yield ""
    yield "Guided by an additive reward of standard deviation 1, at scale k."
    yield ""
    yield (
        "| sampler | schedule | steps | score evaluations | samples | k | validity, % "
        "| mean reward | of the law | node | × noise | seconds | per 1,000 |"
    )
    yield "|" + "---|" * 13
    for case in _guided(kind, num):
        for k in SCALES:
            tilted = guided(
                score,
                SPACE,
                sde,
                log_density=lambda v, sigma: (v * reward).sum((1, 2)),
                scale=Ladder(k, k),
            )
            yield _guided_row(case, k, reward, _sample(case, tilted, sde, seed))


def _unguided(kind: str, num: int) -> Iterator[Case]:
    evaluations = (10, 20, 35, 50, 100) if kind == "exact" else (20, 50)
    for sampler in QUICK:
        for schedule in _schedules(kind, sampler):
            for n in evaluations:
                yield Case(sampler, schedule, _steps(sampler, n), num)
    if kind == "exact":
        for schedule in SCHEDULES:
            yield Case(REFERENCE, schedule, SAMPLERS[REFERENCE].steps, num // 5)


def _guided(kind: str, num: int) -> Iterator[Case]:
    """Half as many samples: an evaluation costs several times as much."""
    for sampler in QUICK if kind == "exact" else (DEFAULT_SAMPLER,):
        for schedule in _schedules(kind, sampler):
            for n in (20, 50):
                yield Case(sampler, schedule, _steps(sampler, n), num // 2)
    if kind == "exact":
        yield Case(REFERENCE, "geometric", SAMPLERS[REFERENCE].steps, num // 20)


def _schedules(kind: str, sampler: str) -> Sequence[str]:
    return tuple(SCHEDULES) if kind == "exact" or sampler == DEFAULT_SAMPLER else ("geometric",)


def _steps(sampler: str, evaluations: int) -> int:
    """Heun's method calls the score twice per step, except for the last."""
    return (evaluations + 1) // 2 if sampler == "heun" else evaluations


def _sample(case: Case, score: ScoreFn, sde: VESDE, seed: int) -> Samples:
    return generate(
        SPACE,
        score,
        sde,
        case.num,
        seed=seed,
        sampler=case.sampler,
        steps=case.steps,
        schedule=case.schedule,
    )


def _unguided_row(case: Case, made: Samples) -> str:
    v = SPACE.encode(made.valid)  # (B, 20, 9)
    depth = v.sum(-1).unflatten(1, (5, 4)).sum(-1)  # (B, 5)
    shares = torch.stack([(depth == d).float().mean(0) for d in (2, 3, 4)])  # (3, 5)
    operators = v.sum((0, 1)) / v.sum()  # (9,)
    found = astuple(distances(SPACE, made.archs))
    against = " | ".join(
        f"{100 * one:.2f} | {one / expected:.2f}"
        for one, expected in zip(found, _noise(case.num), strict=True)
    )
    return (
        f"| {case} | {made.score_evaluations:,} | {case.num:,} | {100 * made.validity:.2f} "
        f"| {' / '.join(f'{100 * s:.1f}' for s in shares.mean(1).tolist())} "
        f"| {100 * (shares - 1 / 3).abs().max().item():.2f} "
        f"| {100 * (operators - 1 / 9).abs().max().item():.2f} | {against} "
        f"| {_seconds(made)} |"
    )


def _guided_row(case: Case, k: float, reward: Tensor, made: Samples) -> str:
    law = _node_law(k * reward)
    v = SPACE.encode(made.valid)
    exact = (law[:, :-1] * reward.numpy()).sum()
    distance = _variation(_cells(made.archs), law)
    return (
        f"| {case} | {made.score_evaluations:,} | {case.num:,} | {k:g} "
        f"| {100 * made.validity:.2f} | {(v * reward).sum((1, 2)).mean().item():.3f} "
        f"| {exact:.3f} | {100 * distance:.2f} | {distance / _node_noise(law, case.num):.2f} "
        f"| {_seconds(made)} |"
    )


def _seconds(made: Samples) -> str:
    return f"{made.seconds:.1f} | {1000 * made.seconds / len(made.archs):.3f}"


@cache
def _noise(num: int) -> tuple[float, float, float]:
    return astuple(noise(SPACE, num, np.random.default_rng(0)))


def _reward(seed: int) -> Tensor:
    """(N, F), random, scaled so that the rewards of random architectures have std 1."""
    reward = torch.randn(SPACE.shape, generator=torch.Generator().manual_seed(seed))
    v = SPACE.encode(SPACE.sample(50_000, np.random.default_rng(seed)))
    return reward / (v * reward).sum((1, 2)).std()


def _node_law(reward: Tensor) -> NDArray[np.float64]:
    """(N, F + 1) operator probabilities of each node under the tilted law, "absent" last."""
    x = torch.zeros(1, *SPACE.shape, dtype=torch.float64)
    p = posterior(SPACE, x, torch.tensor([math.inf]).double(), reward.double())[0].numpy()
    absent = (1 - p.sum(1, keepdims=True)).clip(0)
    return np.concatenate([p, absent], axis=1)


def _cells(archs: Sequence[Architecture | None]) -> NDArray[np.float64]:
    """(N, F + 1) shares; invalid samples count towards none of them."""
    v = SPACE.encode([arch for arch in archs if arch is not None]).double()  # (B, N, F)
    present = v.sum(0).numpy()
    absent = len(v) - present.sum(1, keepdims=True)
    return np.concatenate([present, absent], axis=1) / len(archs)


def _variation(shares: NDArray[np.float64], law: NDArray[np.float64]) -> float:
    """Total variation, mean over nodes; mass missing from the shares counts as an error."""
    missing = 1 - shares.sum(1)
    return float(0.5 * (np.abs(shares - law).sum(1) + missing).mean())


def _node_noise(law: NDArray[np.float64], num: int, repeats: int = 50) -> float:
    """The distance that `num` independent draws are expected to have."""
    rng = np.random.default_rng(0)
    p = law / law.sum(1, keepdims=True)
    return float(np.mean([_variation(rng.multinomial(num, p) / num, law) for _ in range(repeats)]))


if __name__ == "__main__":
    run(app)
