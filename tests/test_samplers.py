"""Samplers with the exact score must reproduce the exact law, to Monte-Carlo noise.

The total variation of n draws to their own law p is about sum_A sqrt(p_A (1 - p_A) / (2 pi n)):
the noise. Limits are stated as multiples of it.
"""

import math

import pytest
import torch
from toy_law import ARCHS, LOG_WEIGHTS, law, log_density, rewards

from nag.exact_score import exact_score, uniform_law_sde
from nag.generate import Samples, generate, resolve_device
from nag.guidance import Ladder, guided
from nag.samplers import DEFAULT_STEPS, EVALUATIONS_PER_STEP, SAMPLERS
from nag.sde import VESDE, uncentre
from nag.spaces.mobilenetv3 import MOBILENETV3, depths
from nag.spaces.toy import TOY

torch.set_num_threads(1)

SDE = uniform_law_sde(TOY)
REWARD = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
STEPS = DEFAULT_STEPS | {"predictor-corrector": 60}
INDEX = {arch: i for i, arch in enumerate(ARCHS)}


def noise(p, n):
    """Expected total variation of n draws from p to p."""
    return (p * (1 - p) / (2 * math.pi * n)).sqrt().sum().item()


def variation(name, score, p, n, sde=SDE, steps=None):
    """Total variation between n samples and p, in units of its noise."""
    generator = torch.Generator().manual_seed(0)
    steps = steps or STEPS[name]
    x = SAMPLERS[name](score, sde, sde.prior(n, generator), steps, generator)
    found = torch.tensor([INDEX[arch] for arch in TOY.decode(uncentre(x)) if arch is not None])
    frequency = torch.bincount(found, minlength=144).double() / n
    return 0.5 * (frequency - p).abs().sum().item() / noise(p, n)


def expected_reward(x, t):
    """log E[exp R | x_t], by enumeration."""
    x, sigma = x.double(), SDE.sigma(t).double()
    tilted = LOG_WEIGHTS + rewards(REWARD)
    return log_density(x, sigma, tilted) - log_density(x, sigma)


def test_what_counts_as_noise():
    """The yardstick itself: perfect draws measure 1, a slightly wrong law measures much more."""
    n, generator = 20_000, torch.Generator().manual_seed(0)
    for reward, low, high in [(None, 0.85, 1.15), (0.3 * REWARD, 3, math.inf)]:
        drawn = torch.multinomial(law(reward), n, replacement=True, generator=generator)
        frequency = torch.bincount(drawn, minlength=144).double() / n
        assert low < 0.5 * (frequency - law()).abs().sum().item() / noise(law(), n) < high


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_reaches_the_exact_law(name):
    assert variation(name, exact_score(TOY, SDE), law(), 10_000) < 1.4


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_reaches_a_law_tilted_by_a_reward(name):
    """p ~ p_0 exp R. A deterministic sampler never forgets where it started, and the prior here is
    that of p_0; it needs a wide one, under which the two laws look alike."""
    sde = VESDE(SDE.mean, 0.1, 50.0) if name == "dpm++2m" else SDE
    assert variation(name, exact_score(TOY, sde, REWARD), law(REWARD), 10_000, sde) < 1.4


@pytest.mark.parametrize(
    "name",
    [pytest.param("predictor-corrector", marks=pytest.mark.slow), "ancestral", "dpm++2m-sde"],
)
def test_guidance_by_the_exact_reward_reaches_the_tilted_law(name):
    score = guided(exact_score(TOY, SDE), expected_reward, Ladder(1, 1))
    assert variation(name, score, law(REWARD), 3_000) < 1.4


@pytest.mark.parametrize("name", ["ancestral", "dpm++2m-sde"])
def test_guidance_doubled_by_mistake_does_not(name):
    score = guided(exact_score(TOY, SDE), expected_reward, Ladder(2, 2))
    assert variation(name, score, law(REWARD), 3_000) > 4


@pytest.mark.slow
def test_a_score_wrong_by_a_tenth_does_not_reach_the_law():
    assert variation("ancestral", exact_score(TOY, SDE, 0.1 * REWARD), law(), 100_000) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ancestral", "dpm++2m-sde"])
def test_bias_of_the_default_steps_is_small(name):
    """With ten times the draws the noise is 0.01; what is left over is the bias of few steps."""
    assert variation(name, exact_score(TOY, SDE), law(), 200_000) < 2.5


@pytest.mark.slow
def test_more_steps_take_the_bias_away():
    few, many = (
        variation("ancestral", exact_score(TOY, SDE), law(), 100_000, steps=steps)
        for steps in (15, 200)
    )
    assert many < 1.4 < 2 < few


def test_depths_of_mobilenetv3_with_the_default_sampler():
    """A third each (what few steps, or a prior centred at zero, would bias)."""
    sde = uniform_law_sde(MOBILENETV3)
    made = generate(MOBILENETV3, exact_score(MOBILENETV3, sde), sde, 2_000, seed=0)
    assert made.validity > 0.999
    counts = torch.bincount(torch.tensor([d for arch in made.valid for d in depths(arch.ops)]))
    shares = (counts / counts.sum()).tolist()
    assert shares == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3], abs=0.025)


# What a sampler is.


@pytest.mark.parametrize("name", SAMPLERS)
def test_score_evaluations_are_as_stated(name):
    calls, steps = [], 7

    def score(x, t):
        calls.append((x.shape, t.shape))
        return exact_score(TOY, SDE)(x, t)

    ticks = []
    generator = torch.Generator().manual_seed(0)
    x = SDE.prior(3, generator)
    SAMPLERS[name](score, SDE, x, steps, generator, progress=lambda: ticks.append(0))
    expected = steps * EVALUATIONS_PER_STEP.get(name, 1)
    assert calls == [((3, 4, 3), (3,))] * expected
    assert len(ticks) == steps
    made = generate(TOY, score, SDE, 2, seed=0, sampler=name, steps=steps)
    assert made.score_evaluations == expected
    assert len(calls) == 2 * expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_leaves_its_argument_alone(name):
    generator = torch.Generator().manual_seed(0)
    x = SDE.prior(3, generator)
    before = x.clone()
    SAMPLERS[name](exact_score(TOY, SDE), SDE, x, 3, generator)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_law_of_one_point_is_found_from_anywhere(name):
    """The score of a single point: every sampler must end there."""
    point = 2 * TOY.encode([ARCHS[17]]) - 1

    def score(x, t):
        return (point - x) / SDE.sigma(t)[:, None, None] ** 2

    made = generate(TOY, score, SDE, 50, seed=0, sampler=name, steps=STEPS[name])
    assert made.archs == (ARCHS[17],) * 50


# generate


def test_equal_arguments_give_equal_samples():
    def draw(seed):
        return generate(TOY, exact_score(TOY, SDE), SDE, 100, seed=seed, steps=10).archs

    torch.manual_seed(0)
    first = draw(1)
    torch.rand(5)  # the global generator is not used
    assert draw(1) == first
    assert draw(2) != first


def test_batches_and_progress():
    sizes, done = [], []

    def score(x, t):
        sizes.append(len(x))
        return exact_score(TOY, SDE)(x, t)

    made = generate(
        TOY, score, SDE, 10, seed=0, steps=5, batch_size=4, progress=done.append, device="cpu"
    )
    assert len(made.archs) == len(made.codes) == 10
    assert sizes == [4] * 5 + [4] * 5 + [2] * 5
    assert sum(done) == 10 * 5
    assert made.seconds > 0
    assert generate(TOY, score, SDE, 0, seed=0).archs == ()


def test_raising_in_progress_stops():
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(TOY, exact_score(TOY, SDE), SDE, 10, seed=0, progress=stop)


def test_statistics_of_samples():
    a, b = ARCHS[:2]
    made = Samples((a, None, b, a), (0, 2, 0, 0), 40, 1.0)
    assert made.valid == (a, b, a)
    assert made.unique == (a, b)
    assert made.validity == 0.75
    assert made.uniqueness == pytest.approx(2 / 3)
    nothing = Samples((None,), (1,), 40, 1.0)
    assert (nothing.validity, nothing.uniqueness) == (0.0, 0.0)


def test_invalid_samples_keep_their_place_and_code():
    """A score of noise only: nothing pulls the sample to any architecture."""
    made = generate(TOY, lambda x, t: torch.zeros_like(x), SDE, 200, seed=0, steps=3)
    assert made.validity < 1
    for arch, code in zip(made.archs, made.codes, strict=True):
        assert (arch is None) == (code > 0)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device 'warp' is not available: use cpu, cuda or auto"):
        resolve_device("warp")
