"""Samplers with the exact score must reproduce the exact law, to Monte-Carlo noise.

The total variation of n draws to their own law p is about sum_A sqrt(p_A (1 - p_A) / (2 pi n)):
the noise. Limits are stated as multiples of it. Orders of convergence are measured on a Gaussian,
whose probability-flow ODE has a solution in closed form.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from toy_law import ARCHS, law

from nag.devices import resolve_device
from nag.errors import UserError
from nag.exact_score import exact_score
from nag.generate import Samples, generate
from nag.generator import DiffusionGenerator, GeneratorConfig
from nag.guidance import Ladder, guided
from nag.laws import UniformLaw, sde_of
from nag.samplers import SAMPLERS, SCHEDULES, DPMSolver, heun, karras, predictor_corrector
from nag.sde import VESDE, uncentre
from nag.spaces.mobilenetv3 import MOBILENETV3, depths
from nag.spaces.toy import TOY

torch.set_num_threads(1)

SDE = sde_of(UniformLaw(TOY))
REWARD = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
STEPS = {"predictor-corrector": 60}
DETERMINISTIC = {"heun", "dpm++2m"}
INDEX = {arch: i for i, arch in enumerate(ARCHS)}


def noise(p, n):
    """Expected total variation of n draws from p to p."""
    return (p * (1 - p) / (2 * math.pi * n)).sqrt().sum().item()


def variation(name, score, p, n, sde=SDE, steps=None, schedule="geometric"):
    """Total variation between n samples and p, in units of its noise."""
    generator, spec = torch.Generator().manual_seed(0), SAMPLERS[name]
    levels = spec.levels(sde, steps or STEPS.get(name), schedule)
    x = spec.sampler(score, sde, sde.prior(n, generator), levels, generator)
    found = torch.tensor([INDEX[arch] for arch in TOY.decode(uncentre(x)) if arch is not None])
    frequency = torch.bincount(found, minlength=144).double() / n
    return 0.5 * (frequency - p).abs().sum().item() / noise(p, n)


def guided_by_the_reward(sde, k):
    """REWARD is additive, so that guidance by it is exact at every scale."""
    return guided(
        exact_score(TOY, sde),
        TOY,
        sde,
        log_density=lambda v, sigma: (v * REWARD).sum((1, 2)),
        scale=Ladder(k, k),
    )


def test_what_counts_as_noise():
    """The yardstick itself: perfect draws measure 1, a slightly wrong law measures much more."""
    n, generator = 20_000, torch.Generator().manual_seed(0)
    for reward, low, high in [(None, 0.85, 1.15), (0.3 * REWARD, 3, math.inf)]:
        drawn = torch.multinomial(law(reward), n, replacement=True, generator=generator)
        frequency = torch.bincount(drawn, minlength=144).double() / n
        assert low < 0.5 * (frequency - law()).abs().sum().item() / noise(law(), n) < high


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_reaches_the_exact_law(name, schedule):
    assert variation(name, exact_score(TOY, SDE), law(), 4_000, schedule=schedule) < 1.4


def sde_for_a_tilt(name):
    """A deterministic sampler never forgets where it started, and the prior is that of p_0; it
    needs a wide one, under which the two laws look alike."""
    return VESDE(SDE.mean, 0.1, 50.0) if name in DETERMINISTIC else SDE


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_by_an_additive_reward_reaches_the_tilted_law(name, k):
    """p ~ p_0 exp(k R)."""
    sde = sde_for_a_tilt(name)
    assert variation(name, guided_by_the_reward(sde, k), law(k * REWARD), 2_000, sde) < 1.4


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_doubled_by_mistake_does_not(name):
    sde = sde_for_a_tilt(name)
    assert variation(name, guided_by_the_reward(sde, 2), law(REWARD), 2_000, sde) > 4


@pytest.mark.slow
def test_a_score_wrong_by_a_tenth_does_not_reach_the_law():
    assert variation("ancestral", exact_score(TOY, SDE, 0.1 * REWARD), law(), 100_000) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ancestral", "dpm++2m-sde"])
def test_bias_of_the_default_steps_is_small(name):
    """With so many draws the noise is 0.015; what is left over is the bias of few steps."""
    assert variation(name, exact_score(TOY, SDE), law(), 100_000) < 1.9


@pytest.mark.slow
def test_more_steps_take_the_bias_away():
    few, many = (
        variation("ancestral", exact_score(TOY, SDE), law(), 100_000, steps=steps)
        for steps in (15, 100)
    )
    assert many < 1.4 < 2 < few


def test_depths_of_mobilenetv3_with_the_default_sampler():
    """A third each (what few steps, or a prior centred at zero, would bias)."""
    sde = sde_of(UniformLaw(MOBILENETV3))
    made = generate(MOBILENETV3, exact_score(MOBILENETV3, sde), sde, 2_000, seed=0)
    assert made.validity > 0.999
    counts = torch.bincount(torch.tensor([d for arch in made.valid for d in depths(arch.ops)]))
    shares = (counts / counts.sum()).tolist()
    assert shares == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3], abs=0.025)


# Convergence on N(M, S^2), whose probability-flow ODE is solved by
# x(sigma) = M + (x_1 - M) sqrt((S^2 + sigma^2) / (S^2 + sigma_max^2)).

M, S = 0.3, 0.5
GAUSSIAN = VESDE(((M,),), 0.1, 5.0)


def gaussian_score(x, t):
    return -(x - M) / (S**2 + GAUSSIAN.sigma(t)[:, None, None] ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DPMSolver(eta=0, order=1), 1), (DPMSolver(eta=0, order=2), 2), (heun, 2)],
    ids=["ddim", "dpm++2m", "heun"],
)
def test_order_of_convergence_to_the_probability_flow(sampler, order, schedule):
    """The solution is compared after the last denoising, D = (sigma^2 M + S^2 x) / (S^2 + sigma^2).
    Its order is the slope of log error over log steps."""
    x = torch.linspace(-6, 6, 8, dtype=torch.float64)[:, None, None]
    first, last = 5.0, 0.2
    solution = M + (x - M) * math.sqrt((S**2 + last**2) / (S**2 + first**2))
    expected = (last**2 * M + S**2 * solution) / (S**2 + last**2)
    steps, errors = [100, 200, 400], []
    for n in steps:
        levels = SCHEDULES[schedule](first, last, n + 1)
        found = sampler(gaussian_score, GAUSSIAN, x, levels, torch.Generator())
        errors.append((found - expected).abs().max().item())
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    assert slope == pytest.approx(-order, abs=0.1)
    assert errors[-1] < 3e-3**order


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_moments_of_a_gaussian_converge(name, schedule):
    """D of x ~ N(M, S^2 + sigma^2) has the variance S^4 / (S^2 + sigma^2). The reference leaves the
    last noise in, and its corrector adds a share of snr^2 = 2.6 % to the variance for good."""
    n, spec = 20_000, SAMPLERS[name]

    def moments(steps):
        generator, levels = torch.Generator().manual_seed(0), spec.levels(GAUSSIAN, steps, schedule)
        x = M + math.sqrt(S**2 + 25) * torch.randn(n, 1, 1, generator=generator)
        x = spec.sampler(gaussian_score, GAUSSIAN, x, levels, generator)
        variance = S**2 + levels[-1] ** 2
        expected = variance if name == "predictor-corrector" else S**4 / variance
        return x.mean().item() - M, x.var().item() / expected - 1

    assert abs(moments(5)[1]) > 0.05
    mean, variance = moments(200)
    assert abs(mean) < 4 * S / math.sqrt(n)
    assert abs(variance) < 0.02 + 4 * 0.5 * math.sqrt(2 / n)


def test_a_step_of_the_corrector():
    """x + eps s + sqrt(2 eps) z with eps = 2 (snr |z| / |s|)^2, norms averaged over the batch (Song
    et al. 2021, Algorithm 5)."""
    seen = []

    def score(x, t):
        seen.append(x)
        return gaussian_score(x, t)

    x = torch.linspace(-6, 6, 8)[:, None, None]
    s = gaussian_score(x, torch.ones(8))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    predictor_corrector(score, GAUSSIAN, x, [5.0], torch.Generator().manual_seed(0), snr=0.1)
    step = 2 * (0.1 * z.abs().mean() / s.abs().mean()) ** 2  # of single numbers, the norms
    torch.testing.assert_close(seen[1], x + step * s + (2 * step).sqrt() * z)


@pytest.mark.parametrize(
    "sampler",
    [heun, *(DPMSolver(eta, order) for eta in (0.0, 0.5, 1.0) for order in (1, 2))],
    ids=lambda sampler: getattr(sampler, "__name__", str(sampler)),
)
def test_noise_is_that_of_its_level_all_the_way(sampler):
    """Where D is known x_t | x_0 is exact, however few the steps: x_t = x_0 + sigma z."""
    seen = []

    def score(x, t):
        sigma = SDE.sigma(t)[:, None, None]
        seen.append(x.std().item() / sigma[0].item())
        return -x / sigma**2

    generator = torch.Generator().manual_seed(0)
    x = 5 * torch.randn(5_000, 4, 3, generator=generator)
    sampler(score, SDE, x, [5.0, 2.0, 0.3, 0.2], generator)
    assert seen == pytest.approx([1] * len(seen), abs=0.02)


# Noise levels.


@pytest.mark.parametrize("sigmas", [(0.1, 5.0), (0.01, 50.0)], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_decrease_from_the_largest_to_the_last(name, schedule, sigmas):
    spec, sde = SAMPLERS[name], VESDE(SDE.mean, *sigmas)
    for steps in (2, 7, None):
        levels = spec.levels(sde, steps, schedule)
        assert len(levels) == (steps or spec.steps)
        assert all(sigma > after for sigma, after in pairwise(levels))
        assert levels[0] == pytest.approx(sigmas[1])
        assert levels[-1] == pytest.approx(spec.last * sigmas[0])
    assert spec.levels(sde, 1, schedule) == pytest.approx(sigmas[1:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_narrow_range_of_noise_is_no_obstacle(name):
    """sigma_max below 2 sigma_min, where most samplers would end."""
    sde = VESDE(SDE.mean, 0.1, 0.15)
    assert (
        generate(TOY, exact_score(TOY, sde), sde, 20, seed=0, sampler=name, steps=9).validity == 1
    )


def test_geometric_levels_have_equal_ratios():
    levels = SAMPLERS["ancestral"].levels(SDE, 9, "geometric")
    assert [b / a for a, b in pairwise(levels)] == pytest.approx([(0.2 / 5) ** (1 / 8)] * 8)


def test_karras_levels_are_those_of_the_paper():
    """Karras et al. 2022, Eq. 5: the default rho 7, sigma 0.002..80 and 18 steps."""
    a, b, n, rho = 80.0, 0.002, 18, 7
    expected = [
        (a ** (1 / rho) + i / (n - 1) * (b ** (1 / rho) - a ** (1 / rho))) ** rho for i in range(n)
    ]
    assert karras(a, b, n) == pytest.approx(expected)
    assert karras(a, b, n)[:3] == pytest.approx([80, 57.586, 40.786], abs=1e-3)  # as EDM prints


# What a sampler is.


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_score_evaluations_are_counted(name, steps):
    calls = []

    def score(x, t):
        calls.append((x.shape, t.shape))
        return exact_score(TOY, SDE)(x, t)

    ticks = []
    generator, spec = torch.Generator().manual_seed(0), SAMPLERS[name]
    x = SDE.prior(3, generator)
    levels = spec.levels(SDE, steps)
    spec.sampler(score, SDE, x, levels, generator, progress=lambda: ticks.append(0))
    expected = {"predictor-corrector": 2 * steps, "heun": 2 * steps - 1}.get(name, steps)
    assert calls == [((3, 4, 3), (3,))] * expected
    assert len(ticks) == steps
    calls.clear()
    made = generate(TOY, score, SDE, 5, seed=0, sampler=name, steps=steps, batch_size=2)
    assert made.score_evaluations == expected
    assert len(calls) == 3 * expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_computes_in_the_precision_of_its_start(name):
    """That of the times as well, which would bound the error from below."""
    times, generator, spec = [], torch.Generator().manual_seed(0), SAMPLERS[name]

    def score(x, t):
        assert x.dtype == t.dtype == torch.float64
        times.append(t[0].item())
        return exact_score(TOY, SDE)(x, t)

    x, levels = SDE.prior(3, generator).double(), spec.levels(SDE, 4)
    assert spec.sampler(score, SDE, x, levels, generator).dtype == torch.float64
    expected = [math.log(sigma / 0.1) / math.log(50) for sigma in levels]
    assert sorted(set(times), reverse=True) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_leaves_its_argument_alone(name):
    generator, spec = torch.Generator().manual_seed(0), SAMPLERS[name]
    x = SDE.prior(3, generator)
    before = x.clone()
    spec.sampler(exact_score(TOY, SDE), SDE, x, spec.levels(SDE, 3), generator)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_deterministic_samplers_draw_nothing(name):
    generator, spec = torch.Generator().manual_seed(0), SAMPLERS[name]
    x, state = SDE.prior(3, generator), generator.get_state()
    spec.sampler(exact_score(TOY, SDE), SDE, x, spec.levels(SDE, 3), generator)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_law_of_one_point_is_found_from_anywhere(name, schedule):
    """The score of a single point: every sampler must end there."""
    point = 2 * TOY.encode([ARCHS[17]]) - 1

    def score(x, t):
        return (point - x) / SDE.sigma(t)[:, None, None] ** 2

    steps = STEPS.get(name)
    made = generate(TOY, score, SDE, 50, seed=0, sampler=name, steps=steps, schedule=schedule)
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
    for name in ("warp", "meta", "mps", "cpu:x", "cuda:999", "cuda:9999999999", ""):
        with pytest.raises(UserError, match=f"device '{name}' is not available: use cpu, cuda or"):
            resolve_device(name)


def test_why_a_gpu_is_not_available(monkeypatch):
    def full(*size, device):
        raise torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UserError, match=r"use cpu, cuda or auto \(CUDA error: out of memory\)$"):
        resolve_device("cuda")


def test_a_gpu_that_fails_the_generator(monkeypatch):
    def failing(x, t):
        raise torch.AcceleratorError("CUDA error: illegal access\nCUDA kernel errors might be ...")

    generator = DiffusionGenerator(GeneratorConfig("toy", "exact", device="cpu"))
    monkeypatch.setattr(generator, "score", failing)
    message = r"^the GPU of the generator failed \(CUDA error: illegal access\): repeat the command"
    with pytest.raises(UserError, match=message):
        generator.generate(8, seed=0)
