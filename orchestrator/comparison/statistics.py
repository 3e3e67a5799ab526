"""Statistics of search runs: intervals, censored quantiles, paired tests, ranks, schedules.

S seeds, M methods, n trials. Larger is better. Nothing here depends on what a run is.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95  # of every interval
ALPHA = 1 - LEVEL  # of every test
_DIGITS = 11  # to which values are compared; later ones may be rounding errors

Numbers = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean over seeds and its interval; the ends are NaN for a single seed."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return self.mean - self.low


def mean_interval(values: ArrayLike) -> Interval | None:
    """Student's t-interval of the mean of (S,) at LEVEL; None without a value."""
    found = np.asarray(values, dtype=float)
    if not len(found):
        return None
    means, halves = pointwise_interval(found[:, None])
    mean, half = float(means[0]), float(halves[0])
    return Interval(len(found), mean, mean - half, mean + half)


def pointwise_interval(curves: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and half-width (n,) of Student's t-interval over the seeds of (S, n).

    NaN marks a seed that has not got that far: each point is over the others. The mean is NaN
    without any seed, the half-width with fewer than two.
    """
    known = np.isfinite(curves)
    count = known.sum(axis=0)
    total = np.where(known, curves, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    squares = np.where(known, (curves - mean) ** 2, 0.0).sum(axis=0)
    free = np.maximum(count - 1, 1)
    error = np.sqrt(squares / free / np.maximum(count, 1))
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, free) * error
    return mean, np.where(count > 1, half, np.nan)


def area_under(curve: Numbers, start: int, stop: int, low: float, high: float) -> float:
    """Mean of a best-so-far curve over evaluations start + 1 ... stop, on a scale from 0 to 1.

    0 is a curve that stays at `low`, 1 one that is at `high` from the first of them on; the scale
    is the same for all compared curves. NaN if low and high are equal.
    """
    if not high > low:
        return np.nan
    return float(np.mean((curve[start:stop] - low) / (high - low)))


def evaluations_to(curve: Numbers, target: float) -> int | None:
    """How many evaluations a best-so-far curve needs to reach the target; None if it never does."""
    reached = curve >= target - abs(target) * 10.0**-_DIGITS
    return int(np.argmax(reached)) + 1 if reached.any() else None


def censored_quartiles(times: Sequence[float], censored: Sequence[bool]) -> tuple[float, ...]:
    """Quartiles of times (S,) of which some are censored, "later than this" (Kaplan-Meier, 1958).

    Without censoring the median is the usual one: if the share falls exactly between two times,
    it is their mean. Infinite if too few times are known.
    """
    left = scipy.stats.ecdf(
        scipy.stats.CensoredData.right_censored(times, np.asarray(censored, dtype=bool))
    ).sf
    found = []
    for share in (0.25, 0.5, 0.75):
        over = left.probabilities - (1 - share)
        ends = [left.quantiles[met] for met in (over < 1e-12, over < -1e-12)]
        found.append(float(np.mean([end[0] if len(end) else np.inf for end in ends])))
    return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """Compares a with b over the seeds that both have."""

    a: str
    b: str
    n: int
    wins: int  # of a
    ties: int
    losses: int
    median: float  # of a - b
    excess: float  # of the ranks of a's wins over those of its losses
    p: float  # two-sided
    p_holm: float = np.nan

    @property
    def significant(self) -> bool:
        return self.p_holm < ALPHA

    @property
    def a_is_better(self) -> bool:
        """By the criterion of the test: a few large wins may outweigh many small losses."""
        return self.excess > 0

    def reversed(self) -> "Comparison":
        return Comparison(
            self.b, self.a, self.n, self.losses, self.ties, self.wins, -self.median, -self.excess,
            self.p, self.p_holm,
        )  # fmt: skip


def compare(a: str, b: str, first: Mapping[int, float], second: Mapping[int, float]) -> Comparison:
    """Wilcoxon's signed-rank test on values by seed."""
    seeds = sorted(first.keys() & second.keys())
    pairs = np.array([(first[seed], second[seed]) for seed in seeds]).reshape(-1, 2)
    differences = np.round(pairs[:, 0] - pairs[:, 1], _decimals(pairs))
    wins, losses = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    ties = len(seeds) - wins - losses
    median = float(np.median(differences)) if seeds else np.nan
    excess, p = signed_rank_test(differences)
    return Comparison(a, b, len(seeds), wins, ties, losses, median, excess, p)


def _decimals(values: Numbers) -> int:
    """How many decimals of values, typically as large as these, are no rounding errors."""
    size = float(np.median(np.abs(values))) if values.size else 0.0
    return _DIGITS - math.ceil(math.log10(size or 1.0))


def signed_rank_test(differences: Numbers) -> tuple[float, float]:
    """Signed-rank test of (S,) differences (Wilcoxon, 1945).

    Returns the rank sum of positive differences minus that of negative ones, and the two-sided p.
    Zero differences are dropped, as in the original. The p-value is exact, even with ties: the
    distribution of the rank sum of one sign, with both signs equally likely for each rank, is built
    up rank by rank.
    """
    kept = differences[differences != 0]
    # doubled, so that they are whole numbers
    ranks = (2 * scipy.stats.rankdata(np.abs(kept))).astype(int)
    share = np.zeros(ranks.sum() + 1)
    share[0] = 1.0
    for rank in ranks:
        share[rank:] += share[: len(share) - rank].copy()
        share /= 2
    found = ranks[kept > 0].sum()
    p = float(min(1.0, 2 * min(share[: found + 1].sum(), share[found:].sum())))
    return float(found - ranks.sum() / 2), p


def compare_all(
    values: Mapping[str, Mapping[int, float]], reference: str | None = None
) -> list[Comparison]:
    """Tests every pair of methods, or the reference against all others, with Holm's correction.

    values: by method, by seed. Pairs without a common seed are left out.
    """
    names = list(values)
    if reference is None:
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    else:
        pairs = [(reference, b) for b in names if b != reference and reference in values]
    found = [compare(a, b, values[a], values[b]) for a, b in pairs]
    found = [one for one in found if one.n]
    corrected = holm([one.p for one in found])
    return [
        Comparison(**{**vars(one), "p_holm": p}) for one, p in zip(found, corrected, strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm, 1979)."""
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    adjusted = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p, dtype=float)[order]))
    found = np.empty(len(p))
    found[order] = adjusted
    return found.tolist()


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over seeds, 1 is best, and the tests of their differences (Demsar, 2006).

    p: of Friedman's test that all methods are equal.
    critical_difference: of Nemenyi's test, at ALPHA.
    """

    names: tuple[str, ...]  # by rising mean rank
    ranks: tuple[float, ...]
    n: int
    p: float
    critical_difference: float

    def cliques(self) -> list[tuple[int, int]]:
        """The maximal groups (first, last) of two or more methods that do not differ."""
        ends = [
            max(j for j, rank in enumerate(self.ranks) if rank - low <= self.critical_difference)
            for low in self.ranks
        ]
        return [(i, end) for i, end in enumerate(ends) if end > i and (i == 0 or end > ends[i - 1])]


def rank_methods(values: Mapping[str, Mapping[int, float]]) -> Ranking | None:
    """Ranks over the seeds that all methods have; None with under three methods or two seeds."""
    if len(values) < 3:
        return None
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if len(seeds) < 2:
        return None
    table = np.array([[by_seed[seed] for by_seed in values.values()] for seed in seeds])
    table = np.round(table, _decimals(table))  # (S, M)
    ranks = scipy.stats.rankdata(-table, axis=1)
    alike = bool((ranks == ranks[0, 0]).all())
    p = 1.0 if alike else float(scipy.stats.friedmanchisquare(*table.T).pvalue)
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    names = list(values)
    return Ranking(
        tuple(names[i] for i in order),
        tuple(float(means[i]) for i in order),
        len(seeds),
        p,
        nemenyi_difference(len(names), len(seeds)),
    )


def nemenyi_difference(methods: int, seeds: int) -> float:
    """Smallest difference of two mean ranks that is significant at ALPHA (Nemenyi, 1963)."""
    q = scipy.stats.studentized_range.ppf(LEVEL, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * seeds)))


def list_schedule(
    seconds: Numbers, rounds: NDArray[np.int64], workers: int, window: int = 1
) -> Numbers:
    """When each of n trials ends, given a number of workers.

    Trials start in order, each on the first worker that is free; those of round i only once all
    rounds up to i - window have ended.
    """
    ends = np.empty(len(seconds))
    free = [0.0] * workers
    for i, (spent, number) in enumerate(zip(seconds, rounds, strict=True)):
        before = ends[: np.searchsorted(rounds, number - window, side="right")]
        ends[i] = max(heapq.heappop(free), before.max(initial=0.0)) + spent
        heapq.heappush(free, ends[i])
    return ends
