"""Properties against enumeration; constraints that samples keep without any training for them."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, loguniform, norm, uniform
from toy_law import ARCHS, LOG_WEIGHTS, POINTS, law, noisy

from nag.exact_score import exact_score, posterior
from nag.generate import generate
from nag.guidance import Ladder, guided
from nag.laws import UniformLaw, sde_of
from nag.properties import Constraint, Property, satisfied, shadow_prices, with_random_limit
from nag.sde import centre, uncentre
from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY

torch.set_num_threads(1)

SPACES = [TOY, NASBENCH201, MOBILENETV3]
CELLS = [
    Architecture("nasbench201", (0, *ops, 1)) for ops in itertools.product(range(2, 7), repeat=6)
]


def random_property(space, seed=0, **options):
    coefficients = np.random.default_rng(seed).standard_normal(space.shape)
    return Property("cost", space, 3.0, coefficients, **options)


def both_senses(quantity, limit):
    """quantity <= limit, and the same constraint on the property turned upside down."""
    upside_down = Property(
        "negative", quantity.space, -quantity.offset, -quantity.coefficients, quantity.std
    )
    return Constraint(quantity, limit), Constraint(upside_down, -limit, at_most=False)


# Properties.


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_a_property_is_a_sum_over_the_present_nodes(space, rng):
    quantity, archs = random_property(space), space.sample(50, rng)
    expected = [
        3.0 + sum(quantity.coefficients[i, op] for i, op in enumerate(arch.ops) if op != ABSENT)
        for arch in archs
    ]
    assert quantity(archs) == pytest.approx(expected)
    assert quantity([]).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("space", "archs"), [(TOY, ARCHS), (NASBENCH201, CELLS)], ids=["toy", "nasbench201"]
)
def test_extremes_are_those_of_all_architectures(space, archs, seed):
    quantity = random_property(space, seed)
    values = quantity(archs)
    assert quantity.extremes == pytest.approx((values.min(), values.max()))


@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_of_mobilenetv3_prefer_shallow_or_deep_stages(sign):
    """All layers cost the same: 10 to 20 of them."""
    quantity = Property("layers", MOBILENETV3, 0.5, np.full((20, 9), 1.0 * sign))
    assert quantity.extremes == tuple(sorted((0.5 + 10 * sign, 0.5 + 20 * sign)))


def test_spread_is_the_standard_deviation_over_independent_nodes():
    quantity = random_property(NASBENCH201)
    assert quantity.spread == pytest.approx(quantity(CELLS).std())
    sampled = random_property(MOBILENETV3)
    archs = MOBILENETV3.sample(5_000, np.random.default_rng(0))
    assert sampled.spread == pytest.approx(sampled(archs).std(), rel=0.2)  # depths couple nodes


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 7.7])
def test_a_constant_property_has_no_spread(constant):
    """1 stands for it, or rounding errors would be measured in units of themselves."""
    assert Property("constant", NASBENCH201, 0.0, np.full((8, 7), constant)).spread == 1


# Constraints.


def test_constraints_in_both_senses(rng):
    quantity, archs = random_property(TOY), TOY.sample(100, rng)
    values, limit = quantity(archs), 3.2
    at_most, at_least = Constraint(quantity, limit), Constraint(quantity, limit, at_most=False)
    assert (at_most.satisfied(archs) == (values <= limit)).all()
    assert (at_least.satisfied(archs) == (values >= limit)).all()
    assert 0 < at_most.satisfied(archs).mean() < 1
    assert (str(at_most), str(at_least)) == ("cost<=3.2", "cost>=3.2")


def test_a_limit_belongs_to_what_it_allows():
    quantity = random_property(TOY)
    for at_most in (True, False):
        constraint = Constraint(quantity, float(quantity(ARCHS[7:8])[0]), at_most)
        assert constraint.satisfied(ARCHS[7:8]).tolist() == [True]


@pytest.mark.parametrize(
    ("limits", "low", "high"),
    [
        ((), 2, 4),
        (((3.5, True), (3.8, True)), 2, 3.5),
        (((2.5, False), (9.0, True)), 2.5, 4),
        (((3.0, True), (3.0, False)), 3, 3),
    ],
)
@pytest.mark.parametrize("offset", [0.0, -2.0])
def test_random_limits_between_the_extremes_and_the_constraints(limits, low, high, offset):
    """Log-uniform if all values are positive, else uniform."""
    layers = Property("layers", TOY, offset, np.ones(TOY.shape))
    limits = [(limit + offset, at_most) for limit, at_most in limits]
    low, high = low + offset, high + offset
    other = Property("other", TOY, 0.0, 2 * np.ones(TOY.shape))
    constraints = [Constraint(layers, *limit) for limit in limits] + [Constraint(other, 5.0)]
    rng = np.random.default_rng(0)
    together = [with_random_limit(layers, constraints, rng) for _ in range(2000)]
    kept = [each for each in constraints if each.quantity is other or not each.at_most]
    assert all([*others] == kept for *others, _ in together)
    drawn = [limit for *_, limit in together]
    assert all(constraint.quantity is layers and constraint.at_most for constraint in drawn)
    found = np.array([constraint.limit for constraint in drawn])
    assert low <= found.min() <= found.max() <= high
    if low < high:
        law = loguniform(low, high) if low > 0 else uniform(low, high - low)
        assert kstest(found, law.cdf).pvalue > 0.01


def test_a_constraint_is_possible_up_to_the_extremes():
    quantity = random_property(TOY)
    low, high = quantity.extremes
    for limit, at_most, at_least in [
        (low - 1e-6, False, True),
        (low, True, True),
        (high, True, True),
        (high + 1e-6, True, False),
    ]:
        assert Constraint(quantity, limit).possible == at_most
        assert Constraint(quantity, limit, at_most=False).possible == at_least


def test_log_feasible_of_a_property_known_exactly(rng):
    quantity, archs = random_property(TOY), TOY.sample(100, rng)
    expected = np.where(quantity(archs) <= 3.2, 0.0, -math.inf)
    for constraint in both_senses(quantity, 3.2):
        assert (constraint.log_feasible(archs) == expected).all()


def test_log_feasible_of_a_property_known_up_to_noise(rng):
    """log P(value + noise <= limit), finite even where it underflows; satisfied at one half."""
    quantity, archs = random_property(TOY, std=0.7), TOY.sample(100, rng)
    values = quantity(archs)
    for constraint in both_senses(quantity, 3.2):
        assert constraint.log_feasible(archs) == pytest.approx(norm.logcdf(3.2, values, 0.7))
        assert (constraint.satisfied(archs) == (values <= 3.2)).all()
    assert np.isfinite(Constraint(quantity, -1e3).log_feasible(archs)).all()


def test_all_constraints_must_be_satisfied(rng):
    archs = TOY.sample(100, rng)
    one, two = (Constraint(random_property(TOY, seed), 3.0) for seed in (0, 1))
    expected = one.satisfied(archs) & two.satisfied(archs)
    assert 0 < expected.mean() < one.satisfied(archs).mean()
    assert (satisfied([one, two], archs) == expected).all()
    assert satisfied([], archs).tolist() == [True] * 100
    for constraints in ([], [one], [one, two]):
        assert satisfied(constraints, []).tolist() == []


# Shadow prices.


@pytest.fixture(params=[TOY, MOBILENETV3], ids=lambda space: space.name)
def behind_noise(request):
    """A space, 64 noised architectures, their noise levels, and a reward for each."""
    space = request.param
    x, sigma = noisy(64)
    generator = torch.Generator().manual_seed(1)
    if space is MOBILENETV3:
        v = space.encode(space.sample(64, np.random.default_rng(0))).double()
        x = centre(v) + sigma[:, None, None] * torch.randn(v.shape, generator=generator)
    scale = torch.logspace(-1, 3, 64)[torch.randperm(64, generator=generator)]
    reward = scale[:, None, None] * torch.randn(64, *space.shape, generator=generator)
    return space, x, sigma, reward.double()


def quarter(quantity):
    """The limit that a quarter of the space satisfies."""
    return float(
        np.quantile(quantity(quantity.space.sample(5_000, np.random.default_rng(0))), 0.25)
    )


def mean_of(quantity, x, sigma, reward):
    """E[quantity | x_t] under the law tilted by a reward, (B,)."""
    p = posterior(quantity.space, x, sigma, reward)
    return quantity.offset + (p * torch.from_numpy(quantity.coefficients)).sum((1, 2))


def test_the_tilted_mean_is_below_the_limit(behind_noise):
    space, x, sigma, reward = behind_noise
    quantity = random_property(space)
    constraint = Constraint(quantity, quarter(quantity))
    price = shadow_prices(space, [constraint], x, sigma, reward)
    assert price.shape == x.shape
    assert (mean_of(quantity, x, sigma, reward) > constraint.limit).float().mean() > 0.3
    assert (mean_of(quantity, x, sigma, reward - price) <= constraint.limit).all()


def test_the_tilted_mean_by_enumeration():
    x, sigma = noisy(64)
    quantity = random_property(TOY)
    constraint = Constraint(quantity, quarter(quantity))
    price = shadow_prices(TOY, [constraint], x, sigma, torch.zeros_like(x))
    distance = (x[:, None] - POINTS).square().sum((2, 3))
    tilt = torch.einsum("anf,bnf->ba", uncentre(POINTS), price)
    p = (LOG_WEIGHTS - tilt - distance / (2 * sigma[:, None] ** 2)).softmax(1)
    assert (p @ torch.from_numpy(quantity(ARCHS)) <= constraint.limit).all()


def test_nothing_is_paid_where_the_constraint_holds(behind_noise):
    space, x, sigma, reward = behind_noise
    quantity = random_property(space)
    mean = mean_of(quantity, x, sigma, reward)
    slack = Constraint(quantity, float(mean.max()) + 3 * quantity.spread)
    assert (shadow_prices(space, [slack], x, sigma, reward) == 0).all()
    tight = Constraint(quantity, quarter(quantity))
    paid = shadow_prices(space, [tight], x, sigma, reward).abs().sum((1, 2)) > 0
    assert paid[mean > tight.limit].all()
    assert not paid[mean < tight.limit - 3 * quantity.spread].any()


def test_no_more_is_paid_than_needed(behind_noise):
    """At a price a tenth lower the samples are above the limit, or within its margin of it: so that
    the price lies between that of the limit and that of two standard deviations below it."""
    space, x, sigma, reward = behind_noise
    quantity = random_property(space)
    price = shadow_prices(space, [Constraint(quantity, quarter(quantity))], x, sigma, reward)
    p = posterior(space, x, sigma, reward - 0.9 * price)
    c = torch.from_numpy(quantity.coefficients)
    std = ((p * c**2).sum(-1) - (p * c).sum(-1) ** 2).sum(1).clamp_min(0).sqrt()
    below = mean_of(quantity, x, sigma, reward - 0.9 * price) + 2 * std < quarter(quantity)
    assert not (below & (price.abs().sum((1, 2)) > 0)).any()


def test_prices_are_a_multiple_of_the_coefficients(behind_noise):
    """One lambda >= 0 for each sample, in the direction of the property."""
    space, x, sigma, reward = behind_noise
    quantity = random_property(space)
    c = torch.from_numpy(quantity.coefficients)
    for constraint in both_senses(quantity, quarter(quantity)):
        price = shadow_prices(space, [constraint], x, sigma, reward)
        multiple = (price * c).sum((1, 2)) / c.square().sum()
        assert (multiple >= 0).all()
        torch.testing.assert_close(price, multiple[:, None, None] * c)


def test_at_least_is_at_most_upside_down_in_any_unit(behind_noise):
    space, x, sigma, reward = behind_noise
    quantity = random_property(space)
    one, two = both_senses(quantity, quarter(quantity))
    thousandth = Property("k", space, 0.003, quantity.coefficients / 1000)
    three = Constraint(thousandth, one.limit / 1000)
    prices = [shadow_prices(space, [c], x, sigma, reward) for c in (one, two, three)]
    torch.testing.assert_close(prices[0], prices[1])
    torch.testing.assert_close(prices[0], prices[2])


def test_an_uncertain_property_is_kept_further_from_its_limit(behind_noise):
    space, x, sigma, _ = behind_noise
    means = []
    for std in (0.0, 1.0):
        quantity = random_property(space, std=std)
        constraint = Constraint(quantity, quarter(quantity) + 1)
        price = shadow_prices(space, [constraint], x, sigma, torch.zeros_like(x))
        means.append(mean_of(quantity, x, sigma, -price).mean())
    assert means[1] < means[0] - 0.05


def test_two_constraints_hold_at_once(behind_noise):
    space, x, sigma, reward = behind_noise
    one, two = random_property(space, 0), random_property(space, 1)
    constraints = [Constraint(one, 3.0), Constraint(two, 3.0, at_most=False)]
    price = shadow_prices(space, constraints, x, sigma, reward)
    assert (mean_of(one, x, sigma, reward - price) <= 3.0 + 1e-6).all()
    assert (mean_of(two, x, sigma, reward - price) >= 3.0 - 1e-6).all()


def alike(space, k):
    """k constraints that a third of the space satisfies each, on properties much like each other,
    as multiplications, parameters and latency are."""
    shared = np.abs(random_property(space, 10).coefficients)
    own = [np.abs(random_property(space, 11 + i).coefficients) for i in range(k)]
    properties = [Property(f"c{i}", space, 0.0, shared + c) for i, c in enumerate(own)]
    archs = space.sample(2_000, np.random.default_rng(0))
    return [Constraint(c, float(np.quantile(c(archs), 0.35))) for c in properties]


def nested(constraints, x, sigma, reward):
    """Reference: bisection of the last price, and of the others within each of its steps."""
    if not constraints:
        return torch.zeros_like(reward)
    *others, last = constraints
    c = last.scaled(x)

    def charged(price):
        own = price[:, None, None] * c
        charge = own + nested(others, x, sigma, reward - own)
        p = posterior(last.quantity.space, x, sigma, reward - charge)
        variance = ((p * c**2).sum(-1) - (p * c).sum(-1) ** 2).clamp_min(0).sum(-1)
        return charge, (p * c).sum((1, 2)) + variance.sqrt() <= last.scaled_limit[0]

    unpriced, free = charged(x.new_zeros(len(x)))
    low, high = x.new_full((len(x),), math.log(1e-2)), x.new_full((len(x),), math.log(1e5))
    for _ in range(10):
        middle = (low + high) / 2
        holds = charged(middle.exp())[1]
        low, high = torch.where(holds, low, middle), torch.where(holds, middle, high)
    return torch.where(free[:, None, None], unpriced, charged(high.exp())[0])


def test_two_prices_leave_as_much_of_the_reward_as_those_of_a_nested_search(behind_noise):
    space, x, sigma, reward = behind_noise
    constraints = alike(space, 2)

    def kept(price):
        p = posterior(space, x, sigma, reward - price)
        return (p * reward).sum((1, 2)) / reward.std((1, 2))

    found = kept(shadow_prices(space, constraints, x, sigma, reward))
    expected = kept(nested(constraints, x, sigma, reward))
    lost = expected - found  # of up to 30
    assert lost.quantile(0.9) < 0.1
    assert lost.mean() < 0


@pytest.mark.parametrize("k", [2, 3])
def test_several_constraints_hold_at_once(behind_noise, k):
    space, x, sigma, reward = behind_noise
    constraints = alike(space, k)
    price = shadow_prices(space, constraints, x, sigma, reward)
    for constraint in constraints:
        before, after = (
            mean_of(constraint.quantity, x, sigma, r) for r in (reward, reward - price)
        )
        assert (after <= constraint.limit + 1e-6).all()
        assert (before > constraint.limit).float().mean() > 0.2


@pytest.mark.parametrize(("k", "calls"), [(1, 11), (2, 84), (3, 168)])
def test_the_cost_of_prices_is_polynomial_in_their_number(monkeypatch, k, calls):
    """In evaluations of the posterior: nested searches would take 12^k."""
    count = 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return posterior(*arguments)

    monkeypatch.setattr("nag.properties.posterior", counted)
    constraints = alike(TOY, k)
    assert all(constraint.quantity.spread for constraint in constraints)  # cached, by a posterior
    count = 0
    x, sigma = noisy(4)
    shadow_prices(TOY, constraints, x, sigma, torch.zeros_like(x))
    assert count <= calls


def test_an_impossible_constraint_gives_the_nearest(behind_noise):
    space, x, sigma, reward = behind_noise
    quantity = random_property(space)
    price = shadow_prices(space, [Constraint(quantity, -1e3)], x, sigma, reward)
    mean = mean_of(quantity, x, sigma, reward - price)
    assert mean.numpy() == pytest.approx(np.full(64, quantity.extremes[0]), abs=0.1)


# Samples of MobileNetV3 with the exact score.

SDE = sde_of(UniformLaw(MOBILENETV3))
RANDOM = MOBILENETV3.sample(5_000, np.random.default_rng(0))
VALUE = np.random.default_rng(11).standard_normal((20, 9))
VALUE /= (MOBILENETV3.encode(RANDOM).numpy() * VALUE).sum((1, 2)).std()
SCALES = [0, 1, 10, 100, 1000]


def value(archs):
    """An additive value of unit variance over the space."""
    return (MOBILENETV3.encode(archs).numpy() * VALUE).sum((1, 2))


def draw(constraints, k, n):
    """Samples under constraints, guided by the value at scale k unless it is 0."""
    reward = torch.from_numpy(VALUE).float()
    score = guided(
        exact_score(MOBILENETV3, SDE),
        MOBILENETV3,
        SDE,
        log_density=(lambda v, sigma: (v * reward).sum((1, 2))) if k else None,
        scale=Ladder(k or 1, k or 1),
        constraints=constraints,
    )
    made = generate(MOBILENETV3, score, SDE, n, seed=0, steps=20)
    assert made.validity > 0.95
    return made.valid


def assert_feasible_and_better(constraints, k, share=0.95, n=100):
    """A share satisfies the constraints; guidance beats drawing until they are satisfied."""
    archs = draw(constraints, k, n)
    rejection = value(np.array(RANDOM)[satisfied(constraints, RANDOM)])
    assert satisfied(constraints, archs).mean() >= share
    if k:
        error = np.hypot(rejection.std() / len(rejection) ** 0.5, value(archs).std() / n**0.5)
        assert value(archs).mean() > rejection.mean() + 3 * error


@pytest.mark.parametrize("k", SCALES)
@pytest.mark.parametrize("at_most", [True, False], ids=["at most", "at least"])
def test_samples_satisfy_a_constraint(at_most, k):
    """That a quarter of the space satisfies, whatever the strength of the guidance."""
    quantity = random_property(MOBILENETV3, 2)
    limit = np.quantile(quantity(RANDOM), 0.25 if at_most else 0.75)
    assert_feasible_and_better([Constraint(quantity, float(limit), at_most)], k)


@pytest.mark.parametrize("correlation", [0.0, 0.8], ids=["independent", "opposed"])
@pytest.mark.parametrize("k", [10, 1000])
def test_samples_satisfy_two_constraints_at_once(k, correlation):
    """At most so much of one, and at least so much of another that is much like it."""
    one, other = random_property(MOBILENETV3, 2), random_property(MOBILENETV3, 3)
    mixed = correlation * one.coefficients + math.sqrt(1 - correlation**2) * other.coefficients
    two = Property("other", MOBILENETV3, 0.0, mixed)
    limits = float(np.quantile(one(RANDOM), 0.35)), float(np.quantile(two(RANDOM), 0.55))
    constraints = [Constraint(one, limits[0]), Constraint(two, limits[1], at_most=False)]
    assert 0.02 < satisfied(constraints, RANDOM).mean() < 0.25
    assert_feasible_and_better(constraints, k, share=0.9, n=40)


def test_samples_satisfy_a_constraint_along_a_whole_ladder():
    quantity = random_property(MOBILENETV3, 4)
    constraint = Constraint(quantity, float(np.quantile(quantity(RANDOM), 0.1)))
    reward = torch.from_numpy(VALUE).float()
    score = guided(
        exact_score(MOBILENETV3, SDE),
        MOBILENETV3,
        SDE,
        log_density=lambda v, sigma: (v * reward).sum((1, 2)),
        scale=Ladder(0.1, 1000.0),
        constraints=[constraint],
    )
    archs = generate(MOBILENETV3, score, SDE, 150, seed=0, steps=20).valid
    assert constraint.satisfied(archs).mean() >= 0.95
    thirds = [value(part).mean() for part in np.array_split(np.array(archs), 3)]
    assert thirds == sorted(thirds)


def test_a_constraint_alone_keeps_the_rest_of_the_law():
    """Samples spread over what is allowed: their marginals are those of rejection sampling."""
    quantity = random_property(MOBILENETV3, 2)
    constraint = Constraint(quantity, float(np.quantile(quantity(RANDOM), 0.25)))
    archs = draw([constraint], 0, n=400)
    allowed = np.array(RANDOM)[constraint.satisfied(RANDOM)]
    found, expected = (MOBILENETV3.encode(a).mean(0).numpy() for a in (archs, allowed))
    error = np.sqrt(expected * (1 - expected) * (1 / len(archs) + 1 / len(allowed)))
    assert (np.abs(found - expected) / error).mean() < 1.2  # 0.8 for perfect draws
    assert len(set(archs)) == len(archs)


def test_a_constraint_of_the_toy_space_keeps_within_what_is_left():
    quantity = random_property(TOY)
    constraint = Constraint(quantity, float(np.quantile(quantity(ARCHS), 0.25)))
    sde = sde_of(UniformLaw(TOY))
    score = guided(exact_score(TOY, sde), TOY, sde, constraints=[constraint])
    archs = generate(TOY, score, sde, 300, seed=0, steps=20).valid
    allowed = constraint.satisfied(ARCHS)
    assert constraint.satisfied(archs).mean() > 0.9 > 2 * law()[torch.from_numpy(allowed)].sum()
    assert len(set(archs)) > 0.7 * allowed.sum()
