"""Acquisition functions against their defining integrals, and what must not change their order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest, norm

from acquisition.functions import (
    ACQUISITIONS,
    ExpectedImprovement,
    IndependentThompsonSampling,
    MultiObjectiveEnsemble,
    ProbabilityOfImprovement,
    TargetLikelihood,
    UpperConfidenceBound,
    dominated,
    log_h,
)
from nag.predictors.base import Prediction

EI, PI, UCB = ExpectedImprovement(), ProbabilityOfImprovement(), UpperConfidenceBound()
DETERMINISTIC = {"ei": EI, "pi": PI, "ucb": UCB}
BORDERS = [-1.0, -8192.0]  # where log_h changes its formula; eps^(-1/4) = 2^13

means = st.floats(-1e3, 1e3)
stds = st.floats(1e-3, 1e3)
few = settings(max_examples=50)


def score(acquisition, mean, std, best=0.0, seed=0):
    """Scores (B,) of means and standard deviations, broadcast against each other."""
    mean, std = np.broadcast_arrays(np.atleast_1d(mean).astype(float), np.asarray(std, float))
    return acquisition(Prediction(mean, std), best=best, rng=np.random.default_rng(seed))


def log_h_by_quadrature(z):
    """log of the integral of u phi(u - z) over u > 0; u = v / |z| keeps its peak in view."""
    scale = max(-z, 1.0)

    def integrand(v):
        return v * math.exp(v * z / scale - (v / scale) ** 2 / 2)

    peak = scale * max(z, 0.0)
    head, _ = quad(integrand, 0, peak + 20, epsabs=0, epsrel=1e-12, limit=200)
    tail, _ = quad(integrand, peak + 20, peak + 120, epsabs=1e-30, epsrel=1e-12)
    return norm.logpdf(z) - 2 * math.log(scale) + math.log(head + tail)


# log h(z) = log(phi(z) + z Phi(z)).


@pytest.mark.parametrize(
    "z", [-1e4, -8193, -8191, -1e3, -300, -30, -6, -2, -1.001, -0.999, -0.1, 0, 0.1, 1, 3, 10]
)
def test_log_h_is_the_logarithm_of_the_expected_excess(z):
    expected = log_h_by_quadrature(float(z))
    assert log_h(np.array([float(z)]))[0] == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("border", BORDERS)
def test_log_h_is_continuous_where_its_formula_changes(border):
    sides = np.array([np.nextafter(border, -np.inf), border, np.nextafter(border, np.inf)])
    assert np.ptp(log_h(sides)) < 1e-7 * max(1, abs(border) / 100)


@pytest.mark.parametrize("border", BORDERS)
def test_log_h_keeps_its_slope_where_its_formula_changes(border):
    """d log h / dz = Phi / h, about -z far below 0."""
    z = border + np.linspace(-0.1, 0.1, 21)
    slope = np.diff(log_h(z)) / np.diff(z)
    middle = (z[1:] + z[:-1]) / 2
    expected = np.exp(norm.logcdf(middle) - log_h(middle))
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_log_h_increases_everywhere():
    far = -np.geomspace(1e6, 1e-3, 20_000)
    z = np.concatenate([far, -far[::-1]])
    assert (np.diff(log_h(z)) > 0).all()


def test_log_h_is_finite_and_right_in_the_far_tail():
    """h -> phi(z) / z^2 for z -> -inf, and h -> z for z -> inf; no warning on the way."""
    z = np.array([-30.0, -1e6, -1e100])
    with np.errstate(all="raise", under="ignore"):
        found = log_h(z)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, norm.logpdf(z) - 2 * np.log(-z), rtol=1e-5)
    np.testing.assert_allclose(log_h(np.array([40.0, 1e6])), np.log([40.0, 1e6]), rtol=1e-12)
    assert np.isfinite(log_h(-np.geomspace(1, 1e100, 100_000))).all()


# Improvement.

CASES = [
    (mean, std, best)
    for mean in (-2.0, 0.3, 1.0)
    for std in (0.1, 1.0, 7.0)
    for best in (-1.0, 0.7)
]


@pytest.mark.parametrize(("mean", "std", "best"), CASES)
def test_improvement_by_quadrature(mean, std, best):
    """EI = E max(f - best, 0) and PI = P(f > best), f ~ N(mean, std^2)."""
    high = max(mean, best) + 12 * std
    points = [mean] if best < mean else None

    def expect(weight):
        return quad(
            lambda f: weight(f) * norm.pdf(f, mean, std), best, high, points=points, epsabs=0
        )[0]

    gain, chance = expect(lambda f: f - best), expect(lambda f: 1.0)
    found = np.exp(score(EI, mean, std, best))
    assert found == pytest.approx(gain, rel=1e-7)
    found = np.exp(score(PI, mean, std, best))
    assert found == pytest.approx(chance, rel=1e-7)


def test_improvement_without_uncertainty_is_the_certain_one():
    """std -> 0: EI = max(mean - best, 0), PI = 1[mean > best]."""
    mean = np.array([0.2, 0.499, 0.501, 0.9])
    gain = np.exp(score(EI, mean, 1e-6, best=0.5))
    np.testing.assert_allclose(gain, [0, 0, 0.001, 0.4], atol=1e-12)
    chance = np.exp(score(PI, mean, 1e-6, best=0.5))
    np.testing.assert_allclose(chance, [0, 0, 1, 1], atol=1e-12)


@pytest.mark.parametrize("acquisition", [EI, PI], ids=["ei", "pi"])
def test_hopeless_candidates_are_still_told_apart(acquisition):
    """Where the improvement itself is 0 in double precision, its logarithm still has an order."""
    z = -np.linspace(30, 3000, 100)
    assert np.exp(score(acquisition, z[50:], 1.0)).max() == 0
    assert (np.diff(score(acquisition, z, 1.0)) < 0).all()


# Confidence bound and Thompson sampling.


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_upper_confidence_bound_is_the_mean_plus_beta_standard_deviations(beta):
    mean, std = np.array([1.0, -2.0, 0.5]), np.array([0.1, 3.0, 1.0])
    found = score(UpperConfidenceBound(beta), mean, std, best=99.0)
    np.testing.assert_allclose(found, mean + beta * std)


def test_the_default_confidence_bound_is_that_of_the_paper():
    assert score(UCB, 1.0, 2.0) == 1.0 + 0.5 * 2.0


def test_thompson_samples_follow_the_marginals_independently():
    n, mean, std = 4_000, np.array([0.0, 5.0, -1.0, 2.0]), np.array([1.0, 0.1, 10.0, 3.0])
    rng = np.random.default_rng(0)
    its = IndependentThompsonSampling()
    draws = np.stack([its(Prediction(mean, std), best=1.0, rng=rng) for _ in range(n)])  # (n, 4)
    for column, m, s in zip(draws.T, mean, std, strict=True):
        assert kstest(column, norm(m, s).cdf).pvalue > 1e-3
    off_diagonal = np.corrcoef(draws.T)[np.triu_indices(4, 1)]
    assert abs(off_diagonal).max() < 4 / math.sqrt(n)
    previous = [np.corrcoef(c[1:], c[:-1])[0, 1] for c in draws.T]  # nor does a draw recall another
    assert max(map(abs, previous)) < 4 / math.sqrt(n)


def test_thompson_samples_are_a_function_of_the_generator():
    its = IndependentThompsonSampling()
    first, again, other = (score(its, np.zeros(5), 1.0, seed=s) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).all()
    assert len(set(first)) == 5  # equal marginals, separate draws


# A target.


def test_the_likelihood_of_a_target_is_the_density_there(rng):
    mean, std = rng.normal(size=50), rng.uniform(0.01, 3, 50)
    expected = norm.logpdf(0.4, mean, std)
    np.testing.assert_allclose(score(TargetLikelihood(0.4), mean, std), expected, rtol=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.4, 0.1), (-1.0, 0.5), (0.7, 2.0)])
def test_it_is_the_expected_improvement_of_a_small_distance(mean, std):
    """E max(d - |f - target|, 0) -> d^2 density, f ~ N(mean, std^2)."""
    d, target = 1e-3, 0.4
    bend = [target]  # of the integrand
    improvement, _ = quad(
        lambda f: (d - abs(f - target)) * norm.pdf(f, mean, std),
        target - d,
        target + d,
        points=bend,
    )
    (found,) = score(TargetLikelihood(target), mean, std)
    assert found + 2 * math.log(d) == pytest.approx(math.log(improvement), abs=1e-3)


def test_uncertainty_helps_to_a_target_only_from_more_than_one_std_away():
    std = np.linspace(0.01, 3, 300)
    found = score(TargetLikelihood(1.0), 0.0, std)
    assert std[np.argmax(found)] == pytest.approx(1.0, abs=0.02)


# Several acquisition functions at once.


def dominated_by_hand(scores):
    """One pair after the other."""
    return [any(all(other >= one) and any(other > one) for other in scores) for one in scores]


@pytest.mark.parametrize("kind", ["distinct", "ties", "equal", "line"])
@pytest.mark.parametrize("size", [0, 1, 2, 40])
def test_what_is_dominated(kind, size, rng):
    scores = {
        "distinct": rng.normal(size=(size, 3)),
        "ties": rng.integers(0, 3, (size, 3)).astype(float),
        "equal": np.ones((size, 3)),
        "line": np.repeat(np.arange(size)[:, None], 3, axis=1).astype(float),
    }[kind]
    assert dominated(scores).tolist() == dominated_by_hand(scores)


def test_the_front_of_ei_pi_and_ucb_comes_first(rng):
    mean, std = rng.normal(size=60), rng.uniform(0.1, 1, 60)
    members = [EI, PI, UpperConfidenceBound(2.0)]
    scores = np.stack([score(f, mean, std, 0.5) for f in members], axis=1)
    worse = np.array(dominated_by_hand(scores))
    found = score(ACQUISITIONS["mace"], mean, std, 0.5)
    assert 1 < (~worse).sum() < 60
    assert found[~worse].min() > found[worse].max()


def test_any_member_of_the_front_may_come_first(rng):
    """Each as often as the others, and nothing else."""
    mean, std = rng.normal(size=30), rng.uniform(0.1, 1, 30)
    mace = MultiObjectiveEnsemble()
    scores = np.stack([score(f, mean, std, 0.5) for f in mace.members], axis=1)
    members = np.flatnonzero(~np.array(dominated_by_hand(scores)))
    n = 2_000
    first = [int(score(mace, mean, std, 0.5, seed=s).argmax()) for s in range(n)]
    counts = np.bincount(first, minlength=30)
    assert set(np.flatnonzero(counts)) == set(members)
    share = 1 / len(members)
    assert abs(counts[members] / n - share).max() < 4 * math.sqrt(share / n)


# Invariances.


@few
@given(
    st.lists(st.tuples(means, stds), min_size=1, max_size=8),
    means,
    st.floats(1e-2, 1e2),
    st.floats(-1e2, 1e2),
)
def test_the_unit_of_the_values_does_not_matter(predictions, best, a, b):
    """Values a y + b: log EI gains log a, log PI stays, UCB moves as the values do."""
    mean, std = np.array(predictions).T
    before = {name: score(f, mean, std, best) for name, f in DETERMINISTIC.items()}
    after = {
        name: score(f, a * mean + b, a * std, a * best + b) for name, f in DETERMINISTIC.items()
    }
    close = {"rtol": 1e-6, "atol": 1e-6}  # z up to 2e6 loses digits to the shift
    np.testing.assert_allclose(after["ei"], before["ei"] + math.log(a), **close)
    np.testing.assert_allclose(after["pi"], before["pi"], **close)
    np.testing.assert_allclose(after["ucb"], a * before["ucb"] + b, **close)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_percent_or_fraction_is_the_same_ranking(name, rng):
    mean, std = rng.normal(0.7, 0.05, 200), rng.uniform(0.001, 0.05, 200)
    fraction = score(DETERMINISTIC[name], mean, std, best=0.75)
    percent = score(DETERMINISTIC[name], 100 * mean, 100 * std, best=75.0)
    assert (np.argsort(fraction) == np.argsort(percent)).all()


def increasing(scores):
    """Never down, but for the rounding of the larger of the two."""
    return (np.diff(scores) >= -1e-12 * np.maximum(1, np.abs(scores[1:]))).all()


@few
@given(means, means, st.lists(stds, min_size=2, max_size=8).map(sorted))
def test_more_uncertainty_never_lowers_expected_improvement(mean, best, std):
    assert increasing(score(EI, mean, np.array(std), best))


@few
@given(means, means, st.lists(stds, min_size=2, max_size=8).map(sorted))
def test_uncertainty_raises_the_probability_only_of_what_is_below_the_best(mean, best, std):
    found = score(PI, mean, np.array(std), best)
    assert increasing(found if mean <= best else found[::-1])


@few
@given(st.lists(means, min_size=2, max_size=8).map(sorted), stds, means)
def test_a_larger_mean_never_lowers_the_score(mean, std, best):
    for acquisition in DETERMINISTIC.values():
        assert increasing(score(acquisition, np.array(mean), std, best))


@few
@given(means, stds, st.lists(means, min_size=2, max_size=8).map(sorted))
def test_a_larger_best_never_raises_the_improvement(mean, std, best):
    for acquisition in (EI, PI):
        scores = np.concatenate([score(acquisition, mean, std, b) for b in best])
        assert increasing(scores[::-1])


# The contract.


ALL = {**ACQUISITIONS, "target": TargetLikelihood(0.3)}


@pytest.fixture(params=ALL.values(), ids=ALL)
def acquisition(request):
    return request.param


def test_the_acquisition_functions_of_the_paper_and_of_hebo_are_there():
    assert set(ACQUISITIONS) == {"ei", "pi", "its", "ucb", "mace"}


@pytest.mark.parametrize("size", [0, 1, 7])
def test_one_finite_score_per_candidate(acquisition, size, rng):
    mean, std = rng.normal(size=size), rng.uniform(0.1, 1, size)
    found = score(acquisition, mean, std, best=0.5)
    assert found.shape == (size,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def test_scores_are_finite_however_certain_or_hopeless(acquisition):
    mean = np.array([-1e3, -1.0, 0.0, 1.0, 1e3])
    for std in (1e-6, 1.0, 1e6):
        assert np.isfinite(score(acquisition, mean, std, best=0.0)).all()


def test_only_the_given_generator_is_used(acquisition, rng):
    mean, std = rng.normal(size=5), rng.uniform(0.1, 1, 5)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = score(acquisition, mean, std)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(2)
    assert (score(acquisition, mean, std) == first).all()


def test_the_prediction_is_not_touched(acquisition, rng):
    mean, std = rng.normal(size=5), rng.uniform(0.1, 1, 5)
    prediction = Prediction(mean.copy(), std.copy())
    acquisition(prediction, best=0.0, rng=rng)
    assert (prediction.mean == mean).all()
    assert (prediction.std == std).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_score_depends_on_its_own_prediction_only(name, rng):
    """Any order, any company, any generator: the same score."""
    mean, std, order = rng.normal(size=9), rng.uniform(0.1, 1, 9), rng.permutation(9)
    acquisition = ACQUISITIONS[name]
    scores = score(acquisition, mean, std)
    assert (score(acquisition, mean[order], std[order]) == scores[order]).all()
    np.testing.assert_allclose(score(acquisition, mean[:2], std[:2]), scores[:2], rtol=1e-14)
    assert (score(acquisition, mean, std, seed=1) == scores).all()
