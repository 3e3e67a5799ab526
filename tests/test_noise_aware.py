"""The noise-aware predictor against E[y | x_t], known exactly for an additive value."""

import numpy as np
import pytest
import torch
from toy_law import ARCHS as TOY_ARCHS
from toy_law import POINTS, law

from nag.exact_score import posterior
from nag.laws import UniformLaw, sde_of
from nag.predictors.base import Observations
from nag.predictors.noise_aware import NoiseAwarePredictor, fit_noise_aware
from nag.sde import centre
from nag.spaces import SPACES
from nag.spaces.toy import TOY

torch.set_num_threads(1)


class AdditiveSurrogate:
    """Synthetic stand-in of a fitted predictor: additive, standardised over the space. Its std
    grows with the number of layers, to 1 where all are present."""

    def __init__(self, space):
        reward = torch.randn(*space.shape, generator=torch.Generator().manual_seed(5))
        y = (space.encode(space.sample(2_000, np.random.default_rng(0))) * reward).sum((1, 2))
        self.reward, self.offset = reward / y.std(), y.mean() / y.std()

    def relaxed(self, x):
        layers = x.sum((1, 2)) / x.shape[1]
        return (x * self.reward).sum((1, 2)) - self.offset, 0.5 + 0.5 * layers

    def standardise(self, value):
        return value


SURROGATES = {name: AdditiveSurrogate(space) for name, space in SPACES.items()}


def observe(space, n, seed=0):
    archs = tuple(space.sample(n, np.random.default_rng(seed)))
    values = SURROGATES[space.name].relaxed(space.encode(archs))[0]
    return Observations(archs, values.double().numpy())


def fit(space, observations, surrogate, seed=0, **settings):
    return fit_noise_aware(
        space,
        sde_of(UniformLaw(space)),
        observations,
        surrogate,
        np.random.default_rng(seed),
        **settings,
    )


def noised(space, n, low=0.1, high=5.0):
    """Fresh noised architectures (n, N, F) and their sigma (n,), spread over the levels."""
    generator = torch.Generator().manual_seed(99)
    x = centre(space.encode(space.sample(n, np.random.default_rng(99))))
    sigma = low * (high / low) ** torch.rand(n, generator=generator)
    return x + sigma[:, None, None] * torch.randn(x.shape, generator=generator), sigma


def read(f, space, x, sigma):
    """What f says at x_t: the mean."""
    return f(posterior(space, x, sigma), sigma)[0]


def correlation(a, b):
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def gradients(function, x):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def distilled(space):
    """As in a search: 20 observations, the rest of the training set labelled by the surrogate."""
    return fit(space, observe(space, 20), SURROGATES[space.name])


@pytest.fixture(scope="module", params=SPACES.values(), ids=SPACES)
def fitted(request):
    """A space and its predictor."""
    return request.param, distilled(request.param)


# What is learnt.


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_it_learns_the_conditional_mean(space):
    """Trained on 1,000 uniform draws, the law is that of the closed form."""
    surrogate = SURROGATES[space.name]
    f = fit(space, observe(space, 1_000), surrogate, pool=0)
    x, sigma = noised(space, 2_000)
    expected, _ = surrogate.relaxed(posterior(space, x, sigma))
    found, std = f(posterior(space, x, sigma), sigma)
    assert found.shape == std.shape == (2_000,)
    assert correlation(found, expected) > 0.98
    assert (found - expected).square().mean().sqrt() < 0.2 * expected.std()
    for low, high in [(0.1, 0.5), (0.5, 2), (2, 5)]:  # at every level, not only on average
        band = (low <= sigma) & (sigma < high)
        assert correlation(found[band], expected[band]) > 0.95


def test_in_a_search_it_learns_the_conditional_mean_under_its_own_training_law():
    """By enumeration of the toy space. Half of the pool of 1,024 are mutants of the best tenth, so
    that the law is tilted to the better, and f with it."""
    observations, rng = observe(TOY, 20), np.random.default_rng(1)
    index = {arch: i for i, arch in enumerate(TOY_ARCHS)}
    best = [observations.archs[i] for i in np.argsort(-observations.values)[:2]]
    mutants = [TOY.mutate(best[i % 2], rng) for i in range(10_000)]
    own = torch.bincount(torch.tensor([index[a] for a in observations.archs]), minlength=144)
    mutant = torch.bincount(torch.tensor([index[a] for a in mutants]), minlength=144) / 10_000
    weights = own + 512 * law() + 512 * mutant

    x, sigma = noised(TOY, 2_000)
    distance = (x.double()[:, None] - POINTS).square().sum((2, 3))
    p = (weights.log() - distance / (2 * sigma.double()[:, None] ** 2)).softmax(1)
    y, _ = SURROGATES["toy"].relaxed(TOY.encode(TOY_ARCHS))
    expected = (p @ y.double()).float()
    found = read(distilled(TOY), TOY, x, sigma)
    assert correlation(found, expected) > 0.98
    assert (found - expected).square().mean().sqrt() < 0.2 * expected.std()
    uniform, _ = SURROGATES["toy"].relaxed(posterior(TOY, x, sigma))
    assert (found - uniform).mean() > 0.1  # optimistic, seen from the uniform law


@pytest.mark.parametrize(
    ("name", "at_least"), [("toy", 0.9), ("nasbench201", 0.9), ("mobilenetv3", 0.8)]
)
def test_in_a_search_it_still_points_where_the_conditional_mean_does(name, at_least):
    """Where guidance decides, at noise from 0.5 to 3: in values, and in direction of gradients."""
    space, surrogate = SPACES[name], SURROGATES[name]
    f = distilled(space)
    x, sigma = noised(space, 500, 0.5, 3.0)

    def oracle(u):
        return surrogate.relaxed(posterior(space, u, sigma))[0]

    assert correlation(read(f, space, x, sigma), oracle(x)) > at_least
    g = gradients(lambda u: read(f, space, u, sigma), x).flatten(1)
    h = gradients(oracle, x).flatten(1)
    assert torch.nn.functional.cosine_similarity(g, h).median() > at_least


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_it_learns_the_geometric_mean_of_the_std(space):
    """Regression on log std: where noise hides the number of layers, the mean over them."""
    surrogate = SURROGATES[space.name]
    f = fit(space, observe(space, 1_000), surrogate, pool=0)
    x, sigma = noised(space, 2_000)
    _, found = f(posterior(space, x, sigma), sigma)
    _, expected = surrogate.relaxed(posterior(space, x, sigma))
    assert (found > 0).all()
    assert (found / expected).log().abs().mean() < 0.03
    if space.name != "nasbench201":  # where all cells have as many layers
        assert correlation(found, expected) > 0.9


def test_without_noise_it_gives_back_the_surrogate(fitted):
    space, f = fitted
    archs = space.sample(300, np.random.default_rng(7))
    v = space.encode(archs)
    expected, _ = SURROGATES[space.name].relaxed(v)
    sigma = torch.full((300,), 0.1)
    assert correlation(read(f, space, centre(v), sigma), expected) > 0.9
    assert correlation(f(v, sigma)[0], expected) > 0.9  # architectures are their own posterior


# Gradients.


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
def test_gradients_are_finite_at_every_noise_level(fitted, sigma):
    space, f = fitted
    x, levels = noised(space, 64, sigma, sigma)
    gradient = gradients(lambda u: read(f, space, u, levels), x)
    assert gradient.isfinite().all()
    assert sigma < 0.5 or gradient.abs().max() > 1e-3  # a decided architecture has none
    for part in (0, 1):  # mean and std, as guidance follows them
        in_v = gradients(lambda v, i=part: f(v, levels)[i], posterior(space, x, levels))
        assert in_v.isfinite().all()
        assert in_v.abs().max() > 1e-3


def test_gradients_are_finite_far_from_the_data(fitted):
    space, f = fitted
    x, levels = noised(space, 64, 0.1, 5.0)
    assert gradients(lambda u: read(f, space, u, levels), 20 * x).isfinite().all()


def test_gradients_by_finite_differences(fitted):
    space, f = fitted
    precise = NoiseAwarePredictor(tuple(p.double() for p in f.parameters))
    x, sigma = (v.double() for v in noised(space, 8, 0.5, 3.0))
    v, generator, h = posterior(space, x, sigma), torch.Generator().manual_seed(0), 1e-5
    for part in (0, 1):
        gradient = gradients(lambda u, i=part: precise(u, sigma)[i], v)
        for _ in range(4):
            d = torch.randn(x.shape, generator=generator).double()
            up, down = (precise(v + step, sigma)[part] for step in (h * d, -h * d))
            expected = (up - down) / (2 * h)
            torch.testing.assert_close((gradient * d).sum((1, 2)), expected, rtol=1e-5, atol=1e-7)


def test_a_noisier_architecture_says_less(fitted):
    """The same x_t means less where the noise is larger."""
    space, f = fitted
    x, _ = noised(space, 64, 1.0, 1.0)
    near, far = (read(f, space, x, torch.full((64,), s)) for s in (1.0, 4.0))
    assert far.std() < 0.8 * near.std()


# Fits.


def test_equal_generators_give_equal_parameters():
    first, again, other = (
        fit(TOY, observe(TOY, 20), SURROGATES["toy"], seed, steps=20) for seed in (3, 3, 4)
    )
    same = zip(first.parameters, again.parameters, strict=True)
    assert all(torch.equal(p, q) for p, q in same)
    assert not torch.equal(first.parameters[0], other.parameters[0])


def test_only_the_given_generator_is_used():
    first = fit(TOY, observe(TOY, 20), SURROGATES["toy"], steps=20)
    torch.manual_seed(123)
    np.random.seed(123)
    state = torch.get_rng_state()
    again = fit(TOY, observe(TOY, 20), SURROGATES["toy"], steps=20)
    assert torch.equal(first.parameters[0], again.parameters[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_are_constants(fitted):
    _, f = fitted
    assert not any(p.requires_grad for p in f.parameters)
    assert all(p.isfinite().all() for p in f.parameters)


@pytest.mark.parametrize("values", [[0.7], [0.7] * 5], ids=["one", "equal"])
def test_odd_observations_still_give_a_predictor(values):
    archs = tuple(dict.fromkeys(TOY.sample(20, np.random.default_rng(0))))[: len(values)]
    f = fit(TOY, Observations(archs, np.array(values)), SURROGATES["toy"], steps=20)
    x, sigma = noised(TOY, 50)
    assert all(part.isfinite().all() for part in f(posterior(TOY, x, sigma), sigma))
