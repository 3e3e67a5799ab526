"""The variance-exploding SDE against its own definition."""

import json
import math

import pytest
import torch

from nag.sde import VESDE, centre, per_sample, uncentre

MEAN = torch.tensor([[0.5, -1.0], [0.25, 0.125]])
SDE = VESDE.of_mean(MEAN, 0.1, 5.0)


def test_sigma_is_geometric_between_its_ends():
    t = torch.linspace(0, 1, 11).double()
    sigma = SDE.sigma(t)
    assert sigma[0].item() == pytest.approx(0.1)
    assert sigma[-1].item() == pytest.approx(5.0)
    torch.testing.assert_close(sigma[1:] / sigma[:-1], torch.full((10,), 50**0.1).double())


def test_time_is_the_inverse_of_sigma():
    t = torch.linspace(0, 1, 101).double()
    torch.testing.assert_close(SDE.time(SDE.sigma(t)), t)


def test_squared_diffusion_is_the_rate_of_the_variance():
    """g(t)^2 = d sigma(t)^2 / dt."""
    t = torch.linspace(0, 1, 21).double().requires_grad_()
    (rate,) = torch.autograd.grad(SDE.sigma(t).square().sum(), t)
    torch.testing.assert_close(SDE.diffusion(t).square(), rate)


def test_simulated_paths_have_the_stated_marginal():
    """dx = g(t) dw from x ~ N(x_0, sigma(0)^2) gives x_t ~ N(x_0, sigma(t)^2)."""
    generator = torch.Generator().manual_seed(0)
    paths, steps, x_0 = 20_000, 200, 1.0
    x = x_0 + SDE.sigma(torch.tensor(0.0)) * torch.randn(paths, generator=generator)
    for k in range(steps):
        g = SDE.diffusion(torch.tensor((k + 0.5) / steps))
        x = x + g * math.sqrt(1 / steps) * torch.randn(paths, generator=generator)
        if (k + 1) % 50 == 0:
            sigma = SDE.sigma(torch.tensor((k + 1) / steps)).item()
            assert x.std().item() == pytest.approx(sigma, rel=4 / math.sqrt(2 * paths))
            assert x.mean().item() == pytest.approx(x_0, abs=4 * sigma / math.sqrt(paths))


def test_prior_is_centred_on_the_data_mean():
    n = 50_000
    x = SDE.prior(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 2, 2)
    torch.testing.assert_close(x.mean(0), MEAN, atol=4 * 5 / math.sqrt(n), rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2, 2), 5.0), atol=0, rtol=4 / math.sqrt(2 * n))
    assert torch.equal(x, SDE.prior(n, torch.Generator().manual_seed(0)))


def test_json_round_trip_is_equality():
    sde = VESDE.of_mean(torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) / 3, 0.2, 7.7)
    again = VESDE.from_json(json.loads(json.dumps(sde.to_json())))
    assert again == sde
    assert hash(again) == hash(sde)
    assert again != VESDE(sde.mean, 0.2, 7.8)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (-0.1, 1.0),
        (1.0, 1.0),
        (2.0, 1.0),
        (math.nan, 1.0),
        (0.1, math.nan),
        (0.1, math.inf),
    ],
)
def test_impossible_noise_levels_are_refused(low, high):
    with pytest.raises(ValueError, match=r"sigma_min .* must be positive and below sigma_max"):
        VESDE(((0.0,),), low, high)


def test_coding():
    v = torch.tensor([[[0.0, 1.0]]])
    assert centre(v).tolist() == [[[-1.0, 1.0]]]
    assert torch.equal(uncentre(centre(v)), v)
    assert (per_sample(torch.tensor([2.0, 3.0])) * torch.ones(2, 4, 5)).sum((1, 2)).tolist() == [
        40.0,
        60.0,
    ]
