"""How far can a search get in 50 evaluations, whatever its surrogate?

    python benchmarks/limits.py          about 8 minutes

Searches the embedded estimate of ImageNet-1K top-1 on MobileNetV3. Candidates come from evolving
the acquisition function over the whole space, so that only the surrogate matters. The first is the
project's own; the oracles know things about the estimate that no search can know:

* `theta of 600`: the same surrogate, with hyperparameters fitted to 600 other networks;
* `group variances`: 315 features in which the estimate is exactly linear (operators; depth, kernel
  sizes and expand ratios of the stages; products of these), and the mean magnitude of the
  coefficients in each of the three groups;
* `magnitudes`: these features and the magnitude of every coefficient. Only the signs are unknown.

Regret is relative to the best network that any search or hill climb has found.
"""

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from acquisition.functions import ExpectedImprovement
from nag.cli import command_line, run
from nag.errors import UserError
from nag.predictors.base import FittedPredictor, Observations, Prediction
from nag.predictors.gp import GaussianProcess
from nag.spaces import Architecture, find_space
from nag.spaces.mobilenetv3 import stage_numbers
from trainers.evaluators.surrogate import SurrogateEvaluator

SPACE = find_space("mobilenetv3")
ESTIMATE = SurrogateEvaluator()
BEST = 0.778604  # over hill climbs of 20,000 steps and all searches
INITIAL, EVALUATIONS = 10, 60
SHOWN = (20, 30, 40, 50, 60)
GENERATIONS, OFFSPRING, PARENTS = 12, 100, 30  # of the evolution
_OFFSET_VARIANCE, _JITTER = 1e-4, 2e-9  # of accuracies as fractions

Floats = NDArray[np.float64]
Fit = Callable[[Observations, np.random.Generator], FittedPredictor]

app = command_line("python benchmarks/limits.py")


class Features:
    """Operators, stages and products of stages, centred under uniform draws.

    coefficients: (315,) of the estimate. They are not unique, because operators determine stages;
    these explain as much as possible by stages and their products.
    """

    def __init__(self) -> None:
        draws = SPACE.sample(4000, np.random.default_rng(0))
        stages = _stages(draws)
        self.centre, self.scale = stages.mean(0), stages.std(0)
        self.mean = np.zeros(1)
        raw = self(draws)
        self.mean = raw.mean(0)
        self.groups = np.repeat([0, 1, 2], [raw.shape[1] - 135, 15, 120])
        easy = np.where(self.groups == 0, 1.0, 10.0)
        values = ESTIMATE.predict(draws)
        solution, *_ = np.linalg.lstsq(self(draws) * easy, values - values.mean(), rcond=1e-9)
        self.coefficients = solution * easy

    def __call__(self, archs: Sequence[Architecture]) -> Floats:
        """(B, 315)."""
        z = (_stages(archs) - self.centre) / self.scale
        first, second = np.triu_indices(z.shape[1])
        operators = SPACE.encode(archs).double().flatten(1).numpy()
        return np.concatenate([operators, z, z[:, first] * z[:, second]], axis=1) - self.mean


def _stages(archs: Sequence[Architecture]) -> Floats:
    """`stage_numbers` of networks, (B, 15)."""
    return stage_numbers(SPACE.encode(archs).double()).numpy()


@dataclass(frozen=True)
class Oracle:
    """Noise-free Bayesian linear regression on the features of the estimate.

    variance: (315,) of the coefficients.
    """

    features: Features
    variance: Floats

    def fit(self, observations: Observations, rng: np.random.Generator) -> "FittedOracle":
        del rng
        X = self.features(observations.archs)  # (n, 315)
        K = X * self.variance @ X.T + _OFFSET_VARIANCE + _JITTER * np.eye(len(X))
        return FittedOracle(self, X, np.linalg.inv(K), observations.values)


@dataclass(frozen=True)
class FittedOracle:
    oracle: Oracle
    X: Floats
    inverse: Floats
    values: Floats

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        x, prior = self.oracle.features(archs), self.oracle.variance
        k = x * prior @ self.X.T + _OFFSET_VARIANCE
        middle = self.values.mean()
        mean = middle + k @ self.inverse @ (self.values - middle)
        variance = (x**2 * prior).sum(1) + _OFFSET_VARIANCE - ((k @ self.inverse) * k).sum(1)
        return Prediction(mean, np.sqrt(np.maximum(variance, 1e-12)))


def surrogates() -> Iterator[tuple[str, Fit]]:
    process = GaussianProcess(SPACE)
    yield "Gaussian process", process.fit

    rng = np.random.default_rng(99)
    known = SPACE.sample(300, rng)
    for _ in range(300):
        parent = known[int(ESTIMATE.predict(known[:300]).argmax())]
        known.append(SPACE.mutate(SPACE.mutate(SPACE.mutate(parent, rng), rng), rng))
    theta = process.fit(Observations(tuple(known), ESTIMATE.predict(known)), rng).theta

    def with_theta(observations: Observations, rng: np.random.Generator) -> FittedPredictor:
        return replace(process.fit(observations, rng), theta=theta)

    yield "oracle: theta of 600", with_theta
    features = Features()
    squares = features.coefficients**2
    means = np.bincount(features.groups, squares) / np.bincount(features.groups)
    yield "oracle: group variances", Oracle(features, means[features.groups]).fit
    yield "oracle: magnitudes", Oracle(features, squares).fit


@app.default
def main(*, seeds: int = 20) -> None:
    """Print a table of simple regret by number of evaluations.

    Parameters
    ----------
    seeds
        Searches per surrogate.
    """
    if seeds < 2:
        raise UserError("--seeds must be at least 2")
    torch.set_num_threads(1)
    print(f"`{' '.join(['python', *sys.argv])}`", end="\n\n")
    print(
        f"{platform.machine()}, {seeds} seeds. Simple regret, points, mean ± standard error, by "
        f"number of evaluations, {INITIAL} of them random; expected improvement.\n"
    )
    print("| surrogate | " + " | ".join(map(str, SHOWN)) + " |\n" + "|---" * (len(SHOWN) + 1) + "|")
    for name, fit in surrogates():
        regrets = 100 * (BEST - np.array([search(fit, seed) for seed in range(seeds)]))
        mean, error = regrets.mean(0), regrets.std(0, ddof=1) / np.sqrt(seeds)
        cells = (f"{mean[n - 1]:.3f} ± {error[n - 1]:.3f}" for n in SHOWN)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def search(fit: Fit, seed: int) -> Floats:
    """(EVALUATIONS,) best values so far."""
    rng = np.random.default_rng([seed, 1])
    archs = SPACE.sample(INITIAL, np.random.default_rng(seed))
    values = ESTIMATE.predict(archs)
    while len(archs) < EVALUATIONS:
        predictor = fit(Observations(tuple(archs), values), rng)
        archs.append(most_promising(predictor, archs, values, rng))
        values = np.append(values, ESTIMATE.predict(archs[-1:]))
    return np.maximum.accumulate(values)


def most_promising(
    predictor: FittedPredictor,
    known: list[Architecture],
    values: Floats,
    rng: np.random.Generator,
) -> Architecture:
    """The largest expected improvement found by evolution from the best and from random ones."""
    acquisition, best = ExpectedImprovement(), float(values.max())

    def scores(archs: list[Architecture]) -> Floats:
        return acquisition(predictor.predict(archs), best=best, rng=rng)

    elite = [known[i] for i in np.argsort(-values, kind="stable")[:10]]
    archs = list(dict.fromkeys(elite + SPACE.sample(OFFSPRING // 2, rng)))
    found = dict(zip(archs, scores(archs), strict=True))
    for _ in range(GENERATIONS):
        parents = sorted(found, key=found.__getitem__, reverse=True)[:PARENTS]
        children: dict[Architecture, None] = {}
        for _ in range(OFFSPRING):
            child = SPACE.mutate(parents[int(len(parents) * rng.random() ** 2)], rng)
            children[SPACE.mutate(child, rng) if rng.random() < 0.4 else child] = None
        new = [arch for arch in children if arch not in found]
        if new:
            found |= dict(zip(new, scores(new), strict=True))
    return max(found.keys() - set(known), key=lambda arch: (found[arch], arch.ops))


if __name__ == "__main__":
    run(app)
