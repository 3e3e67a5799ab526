"""Guidance tilts the law behind noise by k times a log density; what that does to samples."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from toy_law import LOG_WEIGHTS, POINTS, gradient, noisy, rewards

from nag.exact_score import exact_score, exact_score_of_samples, posterior
from nag.generate import generate
from nag.guidance import Ladder, Norms, denoised, guided, improvement, target, value
from nag.laws import UniformLaw, sde_of
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.properties import Constraint, Property, shadow_prices
from nag.sde import uncentre
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.toy import TOY

torch.set_num_threads(1)

SDE = sde_of(UniformLaw(TOY))
REWARD = torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).double()
COST = Property("cost", TOY, 1.0, np.random.default_rng(6).standard_normal((4, 3)))


class AdditivePredictor:
    """Synthetic stand-in of a surrogate: an additive mean, and a std that grows with the layers."""

    def relaxed(self, x):
        return (x * REWARD).sum((1, 2)), 0.2 + 0.1 * x.sum((1, 2))


def additive(v, sigma):
    return (v * REWARD).sum((1, 2))


READING = denoised(AdditivePredictor())
LOG_DENSITIES = {
    "any": lambda v, sigma: (v.square().sum((1, 2)) / sigma).sin() + v[:, 0, 0] * v[:, 1, 2],
    "value": value(READING),
    "optimistic value": value(READING, optimism=2.0),
    "improvement": improvement(READING, best=1.0),
    "target": target(READING, wanted=0.5),
}


def enumerated(x, sigma, log_tilt=0.0):
    """P(A | x_t) of the law tilted by log_tilt (144,) or (B, 144), by enumeration: (B, 144)."""
    distance = (x[:, None] - POINTS).square().sum((2, 3))
    return (LOG_WEIGHTS + log_tilt - distance / (2 * sigma[:, None] ** 2)).softmax(1)


def mean_of(p):
    """E[x_0 | x_t] (B, 4, 3) from P(A | x_t) (B, 144)."""
    return torch.einsum("ba,anf->bnf", p, POINTS)


def tilted_score(x, sigma, reward):
    """The exact score plus (E_R - E) / sigma^2, by enumeration; reward (B, 4, 3)."""
    tilt = torch.einsum("anf,bnf->ba", uncentre(POINTS), reward)
    shift = mean_of(enumerated(x, sigma, tilt)) - mean_of(enumerated(x, sigma))
    return exact_score(TOY, SDE)(x, SDE.time(sigma)) + shift / sigma[:, None, None] ** 2


def guide(x, sigma, score=None, **options):
    """The guided score, computed as in `generate`."""
    with torch.no_grad():
        return guided(score or exact_score(TOY, SDE), TOY, SDE, **options)(x, SDE.time(sigma))


# The guided score.


@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_guidance_tilts_the_law_by_k_times_the_gradient(name):
    """R = k grad_V g at V = E[V | x_t], a scale k to each sample of the batch."""
    log_density, scale = LOG_DENSITIES[name], Ladder(0.5, 8.0)
    x, sigma = noisy(9, low=0.5)
    found = guide(x, sigma, log_density=log_density, scale=scale)
    assert not found.requires_grad
    k = scale(9, x.device).double()[:, None, None]
    v = (mean_of(enumerated(x, sigma)) + 1) / 2
    reward = k * gradient(lambda u: log_density(u, sigma), v)
    torch.testing.assert_close(found, tilted_score(x, sigma, reward), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_weak_guidance_is_that_of_the_paper(name):
    """s + k grad_x g(E[V | x_t]), Eq. 9, to first order in k: the difference falls as k^2."""
    log_density = LOG_DENSITIES[name]
    x, sigma = noisy(9, low=0.5)
    plain = exact_score(TOY, SDE)(x, SDE.time(sigma))
    paper = gradient(lambda u: log_density(posterior(TOY, u, sigma), sigma), x)
    errors = [
        (guide(x, sigma, log_density=log_density, scale=Ladder(k, k)) - plain - k * paper).norm()
        for k in (1e-2, 1e-3)
    ]
    assert errors[0] < 0.1 * 1e-2 * paper.norm()
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("k", [0.3, 1.0, 30.0])
def test_an_additive_log_density_gives_the_score_of_the_tilted_law(k):
    x, sigma = noisy(64)
    found = guide(x, sigma, log_density=additive, scale=Ladder(k, k))
    expected = exact_score(TOY, SDE, k * REWARD)(x, SDE.time(sigma))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_the_strongest_guidance_stays_among_the_architectures(name):
    """The denoised estimate is a mean of architectures, whatever k is."""
    x, sigma = noisy(64)
    score = guide(x, sigma, log_density=LOG_DENSITIES[name], scale=Ladder(1e3, 1e6))
    v = uncentre(x + sigma[:, None, None] ** 2 * score)
    assert v.min() > -1e-5
    assert v.sum(-1).max() < 1 + 1e-5


def test_guidance_is_added_to_any_score():
    """The same to the uniform law, to five architectures, and to a score that is guided already."""
    x, sigma = noisy(16)
    t = SDE.time(sigma)
    options = {"log_density": LOG_DENSITIES["any"], "scale": Ladder(1, 4)}
    plain = exact_score(TOY, SDE)
    added = guide(x, sigma, **options) - plain(x, t)
    for score in (
        exact_score_of_samples(POINTS[:5], SDE),
        guided(plain, TOY, SDE, log_density=additive),
    ):
        torch.testing.assert_close(guide(x, sigma, score, **options) - score(x, t), added)


def test_norms_are_summed_over_evaluations():
    x, sigma = noisy(8)
    norms, plain = Norms(), exact_score(TOY, SDE)(x, SDE.time(sigma))
    assert norms.ratio == 0
    scores, guidances = [], []
    for name in ("any", "value"):
        found = guide(x, sigma, log_density=LOG_DENSITIES[name], norms=norms)
        scores.append(plain.flatten(1).norm(dim=1).mean())
        guidances.append((found - plain).flatten(1).norm(dim=1).mean())
    torch.testing.assert_close(norms.score, sum(scores))
    torch.testing.assert_close(norms.guidance, sum(guidances))
    assert norms.ratio == pytest.approx(float(sum(guidances) / sum(scores)))


# Constraints.


@pytest.mark.parametrize("name", ["none", "additive", "any"])
def test_a_constraint_takes_its_price_off_the_reward(name):
    """Alone, or off what the predictor promises."""
    x, sigma = noisy(16)
    constraint = Constraint(COST, COST.offset - 0.5)
    log_density = {"none": None, "additive": additive, "any": LOG_DENSITIES["any"]}[name]
    reward = torch.zeros_like(x)
    if log_density:
        reward = 2 * gradient(lambda u: log_density(u, sigma), posterior(TOY, x, sigma))
    price = shadow_prices(TOY, [constraint], x, sigma, reward)
    assert price.abs().max() > 0.1
    found = guide(x, sigma, log_density=log_density, scale=Ladder(2, 2), constraints=[constraint])
    torch.testing.assert_close(found, tilted_score(x, sigma, reward - price), rtol=1e-5, atol=1e-6)


def test_a_constraint_that_holds_anyway_changes_nothing():
    x, sigma = noisy(16)
    slack = Constraint(COST, 100.0)
    norms = Norms()
    found = guide(x, sigma, constraints=[slack], norms=norms)
    torch.testing.assert_close(found, exact_score(TOY, SDE)(x, SDE.time(sigma)))
    assert float(norms.guidance) == norms.ratio == 0
    steered, both = (
        guide(x, sigma, log_density=additive, constraints=constraints)
        for constraints in ([], [slack])
    )
    torch.testing.assert_close(both, steered)


# Log densities.


def test_the_denoised_value_of_an_additive_predictor_is_its_conditional_mean():
    """mu(E[V | x_t]) = E[mu(V) | x_t], by enumeration."""
    x, sigma = noisy(20)
    found = value(READING)(posterior(TOY, x, sigma), sigma)
    torch.testing.assert_close(found, enumerated(x, sigma) @ rewards(REWARD))


@pytest.fixture
def read():
    """V and sigma of 20 denoised architectures, and what the predictor reads there."""
    x, sigma = noisy(20)
    v = posterior(TOY, x, sigma)
    return v, sigma, *AdditivePredictor().relaxed(v)


def test_value_is_the_mean_and_optimism_counts_the_std(read):
    v, sigma, mean, std = read
    torch.testing.assert_close(value(READING)(v, sigma), mean)
    torch.testing.assert_close(value(READING, optimism=2.0)(v, sigma), mean + 2 * std)


def test_improvement_is_the_log_probability_of_beating_the_best(read):
    """log Phi((mean - best) / std), finite even where the probability underflows."""
    v, sigma, mean, std = read
    expected = norm.logsf(0.3, mean, std)
    assert improvement(READING, 0.3)(v, sigma).numpy() == pytest.approx(expected)
    for best in (-100.0, 100.0):
        log_density = improvement(READING, best)
        assert log_density(v, sigma).isfinite().all()
        assert gradient(lambda u, g=log_density: g(u, sigma), v).isfinite().all()


def test_target_is_the_log_density_at_the_value_wanted(read):
    """Up to a constant; highest where the mean is the target."""
    v, sigma, mean, std = read
    found = target(READING, 0.5)(v, sigma).numpy()
    assert found == pytest.approx(norm.logpdf(0.5, mean, std) - norm.logpdf(0, 0, std))
    assert np.argmax(found * std.square().numpy()) == np.argmin((mean - 0.5).abs().numpy())


def test_target_is_not_reached_by_uncertainty(read):
    """Where the std grows with the architecture, only the mean is followed."""
    v, sigma, mean, std = read
    found = gradient(lambda u: target(READING, 0.5)(u, sigma), v)
    expected = (0.5 - mean)[:, None, None] / std[:, None, None] ** 2 * REWARD
    torch.testing.assert_close(found, expected)


def test_readings_are_told_sigma():
    x, sigma = noisy(5)
    log_density = value(lambda v, sigma: (sigma, torch.ones_like(sigma)))
    torch.testing.assert_close(log_density(posterior(TOY, x, sigma), sigma), sigma)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(number):
    with pytest.raises(ValueError, match="best must be finite"):
        improvement(READING, number)
    with pytest.raises(ValueError, match="the target must be finite"):
        target(READING, number)


# Scales.


def test_ladder_is_geometric_from_low_to_high():
    scale = Ladder(0.5, 32.0)(7, torch.device("cpu"))
    torch.testing.assert_close(scale, torch.tensor([0.5, 1, 2, 4, 8, 16, 32]))
    assert Ladder(2, 2)(3, torch.device("cpu")).tolist() == [2, 2, 2]
    assert Ladder(2, 8)(1, torch.device("cpu")).tolist() == [2]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-1, 1), (2, 1), (math.nan, 1), (1, math.nan), (1, math.inf)]
)
def test_impossible_scales_are_refused(low, high):
    with pytest.raises(
        ValueError, match="guidance scales must be finite and satisfy 0 < low <= high"
    ):
        Ladder(low, high)


# Samples.


@pytest.fixture(scope="module")
def synthetic():
    """Additive values of MobileNetV3 with unit variance, and a GP fitted on 20 of them."""
    rng = np.random.default_rng(0)
    reward = torch.from_numpy(rng.standard_normal((20, 9)))
    uniform = MOBILENETV3.encode(MOBILENETV3.sample(2_000, rng)).double()
    spread = (uniform * reward).sum((1, 2)).std().item()

    def true(archs):
        return ((MOBILENETV3.encode(archs).double() * reward).sum((1, 2)) / spread).numpy()

    archs = tuple(MOBILENETV3.sample(20, rng))
    return true, GaussianProcess(MOBILENETV3).fit(Observations(archs, true(archs)), rng)


def draw(true, log_density, k):
    """True values of 256 samples in 20 steps."""
    sde = sde_of(UniformLaw(MOBILENETV3))
    score = exact_score(MOBILENETV3, sde)
    if k:
        scale = Ladder(k, k)
        score = guided(score, MOBILENETV3, sde, log_density=log_density, scale=scale)
    made = generate(MOBILENETV3, score, sde, 256, seed=0, steps=20)
    assert made.validity >= 0.99
    return true(made.valid)


@pytest.mark.parametrize("form", ["value", "optimistic value", "improvement"])
def test_guidance_by_a_surrogate_raises_the_true_value(form, synthetic):
    true, predictor = synthetic
    reading = denoised(predictor)
    log_density = {
        "value": value(reading),
        "optimistic value": value(reading, optimism=1.0),
        "improvement": improvement(reading, 1.0),
    }[form]
    plain, weak, strong = (draw(true, log_density, k) for k in (0, 0.01, 10.0))
    error = np.hypot(plain.std(), strong.std()) / math.sqrt(256)
    assert strong.mean() > plain.mean() + 5 * error
    assert abs(weak.mean() - plain.mean()) < 3 * error  # no guidance, no gain


@pytest.mark.parametrize("wanted", [-1.5, 1.5])
def test_guidance_to_a_target_goes_there(wanted, synthetic):
    """In predicted value, on either side of the mean."""
    _, predictor = synthetic
    log_density = target(denoised(predictor), wanted)

    def predicted(archs):
        return predictor.relaxed(MOBILENETV3.encode(archs))[0].numpy()

    plain, near = (np.abs(draw(predicted, log_density, k) - wanted).mean() for k in (0, 10.0))
    assert near < 0.4 * plain
