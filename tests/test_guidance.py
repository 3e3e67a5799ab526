"""Guidance adds k times the gradient of a log density; what that does to samples."""

import math

import numpy as np
import pytest
import torch
from toy_law import LOG_WEIGHTS, POINTS, noisy, rewards

from nag.exact_score import exact_score, posterior, uniform_law_sde
from nag.generate import generate
from nag.guidance import (
    Ladder,
    denoised_improvement,
    denoised_value,
    guided,
    noise_aware_value,
)
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.toy import TOY

torch.set_num_threads(1)

SDE = uniform_law_sde(TOY)
REWARD = torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).double()


class AdditivePredictor:
    """Synthetic stand-in of a surrogate: an additive mean, the std 0.5 everywhere."""

    def relaxed(self, x):
        return (x * REWARD).sum((1, 2)), x.new_full((len(x),), 0.5)


def finite_differences(function, x, h=1e-5):
    """Numerical gradient of each entry of function(x) (B,) with respect to its own x."""
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            step = torch.zeros_like(x)
            step[:, i, j] = h
            out[:, i, j] = (function(x + step) - function(x - step)) / (2 * h)
    return out


LOG_DENSITIES = {
    "any": lambda x, t: (x.square().sum((1, 2)) * t).sin() + x[:, 0, 0] * x[:, 1, 2],
    "value": denoised_value(TOY, AdditivePredictor(), SDE),
    "improvement": denoised_improvement(TOY, AdditivePredictor(), SDE, best=1.0),
    "noise-aware": noise_aware_value(lambda x, sigma: (x.sum((1, 2)) / sigma).tanh(), SDE),
}


@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_guided_score_is_the_score_plus_k_times_the_gradient(name):
    log_density = LOG_DENSITIES[name]
    score, scale = exact_score(TOY, SDE), Ladder(0.5, 8.0)
    x, sigma = noisy(9, low=0.5)
    t = SDE.time(sigma)
    with torch.no_grad():  # as in `generate`
        found = guided(score, log_density, scale)(x, t)
        gradient = finite_differences(lambda u: log_density(u, t), x)
    assert not found.requires_grad
    k = scale(9, x.device)[:, None, None]
    torch.testing.assert_close(found, score(x, t) + k * gradient, rtol=1e-6, atol=1e-6)


def test_guidances_can_be_stacked():
    x, sigma = noisy(5, low=0.5)
    t = SDE.time(sigma)
    f, g = LOG_DENSITIES["any"], LOG_DENSITIES["value"]
    twice = guided(guided(exact_score(TOY, SDE), f, Ladder(2, 2)), g, Ladder(3, 3))
    once = guided(exact_score(TOY, SDE), lambda u, t: 2 * f(u, t) + 3 * g(u, t), Ladder(1, 1))
    torch.testing.assert_close(twice(x, t), once(x, t))


def test_noise_aware_predictors_are_told_sigma():
    x, sigma = noisy(5)
    log_density = noise_aware_value(lambda x, sigma: sigma, SDE)
    torch.testing.assert_close(log_density(x, SDE.time(sigma)), sigma)


def test_denoised_value_of_an_additive_predictor_is_its_conditional_mean():
    """mu(E[V | x_t]) = E[mu(V) | x_t], by enumeration."""
    x, sigma = noisy(20)
    distance = (x[:, None] - POINTS).square().sum((2, 3))
    p = (LOG_WEIGHTS - distance / (2 * sigma[:, None] ** 2)).softmax(1)
    value = denoised_value(TOY, AdditivePredictor(), SDE)(x, SDE.time(sigma))
    torch.testing.assert_close(value, p @ rewards(REWARD))


def test_denoised_improvement_is_the_probability_of_beating_the_best():
    """log Phi((mu - best) / s), finite even where the probability underflows."""
    x, sigma = noisy(20)
    mean, _ = AdditivePredictor().relaxed(posterior(TOY, x, sigma))
    found = denoised_improvement(TOY, AdditivePredictor(), SDE, best=0.3)(x, SDE.time(sigma))
    normal = torch.distributions.Normal(mean, 0.5)
    torch.testing.assert_close(found, (1 - normal.cdf(torch.tensor(0.3).double())).log())
    hopeless = denoised_improvement(TOY, AdditivePredictor(), SDE, best=100.0)
    assert hopeless(x, SDE.time(sigma)).isfinite().all()
    for best in (math.nan, math.inf):
        with pytest.raises(ValueError, match="best must be finite"):
            denoised_improvement(TOY, AdditivePredictor(), SDE, best=best)


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
    with pytest.raises(ValueError, match="guidance scales must be 0 < low <= high"):
        Ladder(low, high)


# Samples.


def test_guidance_by_a_surrogate_raises_the_true_value(rng):
    """Synthetic additive values of MobileNetV3, a GP fitted on 20 of them, 20 sampler steps."""
    reward = torch.from_numpy(rng.standard_normal((20, 9)))
    uniform = MOBILENETV3.encode(MOBILENETV3.sample(2_000, rng)).double()
    spread = (uniform * reward).sum((1, 2)).std().item()

    def value(archs):
        return ((MOBILENETV3.encode(archs).double() * reward).sum((1, 2)) / spread).numpy()

    archs = tuple(MOBILENETV3.sample(20, rng))
    predictor = GaussianProcess(MOBILENETV3).fit(Observations(archs, value(archs)), rng)
    sde = uniform_law_sde(MOBILENETV3)
    score = exact_score(MOBILENETV3, sde)
    log_density = denoised_value(MOBILENETV3, predictor, sde)

    def draw(score):
        made = generate(MOBILENETV3, score, sde, 256, seed=0, steps=20)
        assert made.validity >= 0.99
        return value(made.valid)

    plain = draw(score)
    steered = draw(guided(score, log_density, Ladder()))
    error = np.hypot(plain.std(), steered.std()) / math.sqrt(256)
    assert steered.mean() > plain.mean() + 5 * error
    weak = draw(guided(score, log_density, Ladder(0.01, 0.01)))
    assert abs(weak.mean() - plain.mean()) < 3 * error  # no guidance, no gain
