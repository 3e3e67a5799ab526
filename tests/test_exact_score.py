"""The closed-form score against enumeration: p_t(x) = sum_A p(A) N(x | x_A, sigma^2)."""

import itertools

import pytest
import torch
from toy_law import ARCHS, LOG_WEIGHTS, POINTS, gradient, law, log_density, noisy, rewards

from nag.exact_score import (
    exact_score,
    exact_score_of_samples,
    posterior,
    posterior_mean,
)
from nag.laws import UniformLaw, sde_of
from nag.sde import VESDE, centre, uncentre
from nag.spaces import ABSENT, SPACES, Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY

REWARD = torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).double()
SDE = sde_of(UniformLaw(TOY))


def enumerated_posterior(x, sigma, log_weights, points):
    """P(A | x_t) as a softmax of Gaussian log-likelihoods, (B, M)."""
    distance = (x[:, None] - points).square().sum((2, 3))
    return (log_weights - distance / (2 * sigma[:, None] ** 2)).softmax(1)


@pytest.mark.parametrize("reward", [None, REWARD], ids=["plain", "tilted"])
def test_posterior_is_that_of_the_enumerated_law(reward):
    x, sigma = noisy(64)
    log_weights = LOG_WEIGHTS + (0 if reward is None else rewards(reward))
    p = enumerated_posterior(x, sigma, log_weights, POINTS)
    expected = torch.einsum("ba,anf->bnf", p, uncentre(POINTS))
    torch.testing.assert_close(posterior(TOY, x, sigma, reward), expected)
    torch.testing.assert_close(posterior_mean(TOY, x, sigma, reward), centre(expected))


@pytest.mark.parametrize("reward", [None, REWARD], ids=["plain", "tilted"])
def test_score_is_the_gradient_of_the_log_density(reward):
    x, sigma = noisy(64)
    log_weights = LOG_WEIGHTS + (0 if reward is None else rewards(reward))
    expected = gradient(lambda u: log_density(u, sigma, log_weights), x)
    torch.testing.assert_close(exact_score(TOY, SDE, reward)(x, SDE.time(sigma)), expected)


def test_a_tilt_is_guidance_by_the_expected_exponential_reward():
    """grad log E[exp R | x_t] = (E_tilted[x_0 | x_t] - E[x_0 | x_t]) / sigma^2."""
    x, sigma = noisy(64)
    tilted = LOG_WEIGHTS + rewards(REWARD)
    guidance = gradient(lambda u: log_density(u, sigma, tilted) - log_density(u, sigma), x)
    shift = posterior_mean(TOY, x, sigma, REWARD) - posterior_mean(TOY, x, sigma)
    torch.testing.assert_close(shift / sigma[:, None, None] ** 2, guidance)


def test_equal_weights_would_be_another_score():
    """The law draws depths uniformly, so that architectures are not equally likely."""
    x, sigma = noisy(64)
    score = gradient(lambda u: log_density(u, sigma, torch.zeros(144).double()), x)
    assert (exact_score(TOY, SDE)(x, SDE.time(sigma)) - score).abs().max() > 0.01


@pytest.mark.parametrize("tilt", [0.0, 1.0])
def test_nasbench201_against_all_cells(tilt):
    inner = itertools.product(range(2, 7), repeat=6)
    cells = [Architecture("nasbench201", (0, *ops, 1)) for ops in inner]
    v = NASBENCH201.encode(cells).double()  # (15625, 8, 7)
    generator = torch.Generator().manual_seed(0)
    reward = tilt * torch.randn(8, 7, generator=generator).double()
    sigma = torch.tensor([0.3, 0.6, 1.0, 2.0, 5.0]).double()
    noise = torch.randn(5, 8, 7, generator=generator).double()
    x = centre(v[[0, 4_000, 8_000, 12_000, 15_624]]) + sigma[:, None, None] * noise
    p = enumerated_posterior(x, sigma, (v * reward).sum((1, 2)), centre(v))
    expected = (p @ v.flatten(1)).view_as(x)
    torch.testing.assert_close(posterior(NASBENCH201, x, sigma, reward), expected)


def test_mobilenetv3_stage_against_its_7371_forms():
    """Stages are independent: the posterior of one needs only its own four rows."""
    forms = [
        ops + (ABSENT,) * (4 - depth)
        for depth in (2, 3, 4)
        for ops in itertools.product(range(9), repeat=depth)
    ]
    assert len(forms) == 7371
    log_weights = torch.tensor([9.0 ** -sum(op != ABSENT for op in ops) for ops in forms]).log()
    v = MOBILENETV3.encode([Architecture("mobilenetv3", ops * 5) for ops in forms])[:, :4].double()
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.4, 0.8, 1.5, 4.0]).double()
    archs = MOBILENETV3.encode(
        [Architecture("mobilenetv3", forms[i] * 5) for i in (3, 90, 900, 7000)]
    ).double()
    noise = torch.randn(4, 20, 9, generator=generator).double()
    x = centre(archs) + sigma[:, None, None] * noise
    found = posterior(MOBILENETV3, x, sigma)
    for s in range(5):
        rows = slice(4 * s, 4 * s + 4)
        p = enumerated_posterior(x[:, rows], sigma, log_weights.double(), centre(v))
        torch.testing.assert_close(found[:, rows], (p @ v.flatten(1)).view(4, 4, 9))


def test_score_of_a_finite_set_is_that_of_its_empirical_law():
    x, sigma = noisy(64)
    samples = POINTS[[0, 3, 50, 100, 143]]
    expected = gradient(lambda u: log_density(u, sigma, torch.zeros(5).double(), samples), x)
    score = exact_score_of_samples(samples, SDE)(x, SDE.time(sigma))
    torch.testing.assert_close(score, expected)


def test_the_whole_toy_space_as_a_sample_repeated_by_weight():
    """Weights 3 and 1 per absent layer: the finite set then has the uniform law."""
    repeats = [3 ** sum(op == ABSENT for op in arch.ops) for arch in ARCHS]
    x, sigma = noisy(32)
    score = exact_score_of_samples(POINTS.repeat_interleave(torch.tensor(repeats), 0), SDE)
    t = SDE.time(sigma)
    torch.testing.assert_close(score(x, t), exact_score(TOY, SDE)(x, t))


def test_prior_mean_is_the_mean_of_the_law():
    mean = torch.einsum("a,anf->nf", law(), POINTS)
    torch.testing.assert_close(torch.tensor(SDE.mean).double(), mean, atol=1e-6, rtol=0)
    mean = torch.tensor(sde_of(UniformLaw(MOBILENETV3)).mean)
    assert mean.mean().item() == pytest.approx(-5 / 6, abs=1e-6)  # 15 of 20 layers, 1 of 9 entries
    mean = torch.tensor(sde_of(UniformLaw(NASBENCH201)).mean)
    assert mean[0].tolist() == [1, -1, -1, -1, -1, -1, -1]
    assert mean[3].tolist() == pytest.approx([-1, -1, *[-0.6] * 5])
    sde = sde_of(UniformLaw(TOY), 0.2, 3.0)
    assert sde == VESDE(SDE.mean, 0.2, 3.0)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_posterior_is_finite_far_from_the_data(space):
    x = torch.randn(64, *space.shape, generator=torch.Generator().manual_seed(0)) * 20
    p = posterior(space, x, torch.full((64,), 0.1))
    assert p.isfinite().all()
    assert p.min() >= 0
    assert p.sum(-1).max() <= 1 + 1e-5
