"""Guidance scales found from a pilot: on curves whose progress is known, then on a real one."""

import math

import numpy as np
import pytest
import torch

from nag.calibration import Calibrated
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance
from nag.guidance import Ladder
from nag.predictors.base import Observations
from nag.properties import Constraint, Property
from nag.spaces.mobilenetv3 import MOBILENETV3

torch.set_num_threads(1)

REFERENCE = np.random.default_rng(0).standard_normal(512)  # g of random architectures
SIZE = 32


class Pilot:
    """Stand-in of guided samples: g from 0 to `top`, half way at k = `half`, with noise.

    The curve is logistic in log k; `steepness` 1 is that of saturation, k / (k + half).
    """

    def __init__(self, top=6.0, half=4.0, steepness=1.0, noise=0.2, start=0.0):
        self.top, self.half, self.steepness = top, half, steepness
        self.noise = noise * np.random.default_rng(1).standard_normal(SIZE)
        self.start = start

    def progress(self, k):
        return 1 / (1 + (self.half / k) ** self.steepness)

    def __call__(self, ladder):
        k = np.geomspace(ladder.low, ladder.high, SIZE)
        return self.start + self.top * self.progress(k) + self.noise


def assert_sensible(ladder):
    assert isinstance(ladder, Ladder)
    assert 1e-3 < ladder.low <= ladder.high < 1e5


# Synthetic curves.


@pytest.mark.parametrize("steepness", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("half", [0.5, 4.0, 30.0])
def test_scales_have_the_progress_asked_for(half, steepness):
    pilot = Pilot(half=half, steepness=steepness)
    ladder = Calibrated(0.3, 0.8).ladder(REFERENCE, pilot)
    found = [pilot.progress(k) for k in (ladder.low, ladder.high)]
    assert found == pytest.approx([0.3, 0.8], abs=0.15)


def test_progress_asked_for_is_progress_found_at_every_share():
    pilot = Pilot()
    shares = (0.1, 0.3, 0.5, 0.7, 0.9)
    scales = [Calibrated(share, share).ladder(REFERENCE, pilot).low for share in shares]
    assert scales == sorted(scales)
    assert [pilot.progress(k) for k in scales] == pytest.approx(shares, abs=0.1)


def test_the_defaults_span_most_of_the_way():
    pilot = Pilot()
    ladder = Calibrated().ladder(REFERENCE, pilot)
    assert 0.1 < pilot.progress(ladder.low) < 0.5
    assert 0.8 < pilot.progress(ladder.high) < 0.99


@pytest.mark.parametrize("factor", [0.01, 50.0])
def test_multiplying_g_by_a_constant_divides_the_scales_by_it(factor):
    """Samples at scale k under c g are those at scale c k under g."""
    pilot = Pilot()
    one = Calibrated().ladder(REFERENCE, pilot)
    two = Calibrated().ladder(
        factor * REFERENCE, lambda k: factor * pilot(Ladder(factor * k.low, factor * k.high))
    )
    assert (two.low * factor, two.high * factor) == pytest.approx((one.low, one.high))


def test_adding_a_constant_to_g_changes_nothing():
    pilot = Pilot()
    one = Calibrated().ladder(REFERENCE, pilot)
    two = Calibrated().ladder(REFERENCE - 100, lambda k: pilot(k) - 100)
    assert (two.low, two.high) == pytest.approx((one.low, one.high))


def test_invalid_samples_are_left_out():
    pilot, rng = Pilot(), np.random.default_rng(2)
    invalid = rng.random(SIZE) < 0.3

    def patchy(ladder):
        return np.where(invalid, np.nan, pilot(ladder))

    ladder = Calibrated(0.3, 0.8).ladder(REFERENCE, patchy)
    found = [pilot.progress(k) for k in (ladder.low, ladder.high)]
    assert found == pytest.approx([0.3, 0.8], abs=0.15)


def test_a_start_below_that_of_random_architectures_is_no_obstacle():
    """A constraint may cost more than guidance wins back."""
    pilot = Pilot(top=2.0, start=-4.0)
    ladder = Calibrated(0.3, 0.8).ladder(REFERENCE, pilot)
    found = [pilot.progress(k) for k in (ladder.low, ladder.high)]
    assert found == pytest.approx([0.3, 0.8], abs=0.2)


@pytest.mark.parametrize("valid", [0, 1, 2])
def test_a_pilot_with_hardly_a_valid_sample_still_gives_scales(valid):
    def pilot(ladder):
        return np.where(np.arange(SIZE) < valid, Pilot()(ladder), np.nan)

    assert_sensible(Calibrated().ladder(REFERENCE, pilot))


@pytest.mark.parametrize("top", [0.0, -6.0], ids=["flat", "falling"])
def test_a_pilot_that_does_not_rise_still_gives_scales(top):
    assert_sensible(Calibrated().ladder(REFERENCE, Pilot(top=top)))


@pytest.mark.parametrize("constant", [0.0, 3.7])
def test_a_constant_g_needs_no_pilot(constant):
    def pilot(ladder):
        raise AssertionError("not called")

    assert Calibrated().ladder(np.full(512, constant), pilot) == Ladder(1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0.5), (-0.1, 0.5), (0.6, 0.5), (0.5, 1), (math.nan, 0.5), (0.5, math.nan)]
)
def test_impossible_progress_is_refused(low, high):
    with pytest.raises(ValueError, match="progress must satisfy 0 < low <= high < 1"):
        Calibrated(low, high)


# MobileNetV3 with the exact score and an additive predictor.


class AdditivePredictor:
    """Synthetic stand-in of a surrogate, of mean 0 and variance 1 over the space."""

    def __init__(self, scale=1.0):
        reward = np.random.default_rng(3).standard_normal((20, 9))
        archs = MOBILENETV3.sample(2_000, np.random.default_rng(4))
        y = (MOBILENETV3.encode(archs).double().numpy() * reward).sum((1, 2))
        self.reward, self.offset = scale * reward / y.std(), scale * y.mean() / y.std()

    def relaxed(self, x):
        mean = (x * torch.from_numpy(self.reward).to(x)).sum((1, 2)) - self.offset
        return mean, x.new_full((len(x),), 0.5)

    def standardise(self, value):
        return value

    def __call__(self, archs):
        return self.relaxed(MOBILENETV3.encode(archs).double())[0].numpy()


PREDICTOR = AdditivePredictor()
RANDOM = MOBILENETV3.sample(1_000, np.random.default_rng(5))
OBSERVATIONS = Observations(tuple(RANDOM[:20]), PREDICTOR(RANDOM[:20]))
GENERATOR = DiffusionGenerator(
    GeneratorConfig("mobilenetv3", score="exact", steps=20, device="cpu", threads=1)
)


def draw(n=60, seed=0, predictor=PREDICTOR, observations=OBSERVATIONS, **options):
    guidance = Guidance(predictor, observations, **options)
    return GENERATOR.generate(n, seed=seed, guidance=guidance)


@pytest.fixture(scope="module")
def found():
    """The scales that a search would use."""
    made = draw()
    return Ladder(made.diagnostics["scale_low"], made.diagnostics["scale_high"])


def test_found_scales_are_weak_strong_and_in_between(found):
    """The mean of the samples rises from that of random architectures to the best within reach."""
    middle = math.sqrt(found.low * found.high)
    values = [
        PREDICTOR(draw(scale=Ladder(k, k)).valid).mean()
        for k in (1e-3, found.low, middle, found.high, 1e4)
    ]
    progress = (np.array(values) - values[0]) / (values[-1] - values[0])
    assert (np.diff(progress[:4]) > 0.1).all()
    assert 0.1 < progress[1] < 0.5
    assert progress[3] > 0.8


def test_scales_do_not_depend_on_the_unit_of_the_predictor(found):
    made = draw(predictor=AdditivePredictor(8.0), optimism=0.0).diagnostics
    assert 8 * made["scale_low"] == pytest.approx(found.low, rel=1e-3)
    assert 8 * made["scale_high"] == pytest.approx(found.high, rel=1e-3)


def test_calibrated_samples_are_a_function_of_the_seed():
    one, again, other = (draw(20, seed) for seed in (1, 1, 2))
    assert one.archs == again.archs != other.archs
    assert one.diagnostics == again.diagnostics
    assert one.diagnostics.keys() == {"scale_low", "scale_high", "norm_ratio"}


def test_given_scales_are_used_as_they_are():
    found = draw(4, scale=Ladder(2.0, 3.0)).diagnostics
    assert (found["scale_low"], found["scale_high"]) == (2.0, 3.0)


class InAnotherUnit(AdditivePredictor):
    """The same of values z that are observed as 2 z + 3."""

    def standardise(self, value):
        return (value - 3) / 2


@pytest.mark.parametrize("form", ["improvement", "target"])
def test_what_is_compared_with_is_in_the_unit_of_the_predictor(form):
    """The best observed value, and the target: samples depend on it, not on its unit."""

    def samples(z, predictor, unit, best=None):
        values = np.append(np.full(19, unit(-1.0)), unit(z))
        return draw(
            16,
            predictor=predictor,
            observations=Observations(OBSERVATIONS.archs, values),
            form=form,
            target=unit(z) if form == "target" else None,
            best=None if best is None else unit(best),
            scale=Ladder(1.0, 10.0),
        ).archs

    plain = [samples(z, PREDICTOR, lambda z: z) for z in (1.5, 0.5)]
    assert plain == [samples(z, InAnotherUnit(), lambda z: 2 * z + 3) for z in (1.5, 0.5)]
    assert plain[0] != plain[1]
    believed = samples(0.5, PREDICTOR, lambda z: z, best=1.5)
    assert believed == plain[0 if form == "improvement" else 1]


@pytest.mark.parametrize("quantile", [0.25, 0.02])
def test_scales_are_found_under_a_constraint(quantile):
    """On what is much like the value, so that it costs more than guidance can win."""
    noise = 0.3 * np.random.default_rng(6).standard_normal((20, 9))
    cost = Property("cost", MOBILENETV3, 0.0, PREDICTOR.reward + noise * PREDICTOR.reward.std())
    constraint = Constraint(cost, float(np.quantile(cost(RANDOM), quantile)))
    thirds = np.array_split(PREDICTOR(draw(constraints=(constraint,)).valid), 3)
    weak, _, strong = (third.mean() for third in thirds)
    assert strong > weak + 0.3
    assert strong > PREDICTOR(np.array(RANDOM)[constraint.satisfied(RANDOM)]).mean() + 1.0


@pytest.mark.parametrize("wanted", [1.5, 4.0])
def test_scales_are_found_for_a_target(wanted):
    """Strong scales overshoot it: they are none to end at."""
    distance = np.abs(PREDICTOR(draw(form="target", target=wanted).valid) - wanted)
    random = np.abs(PREDICTOR(RANDOM) - wanted)
    _, middle, strong = (third.mean() for third in np.array_split(distance, 3))
    assert strong < middle < random.mean()
    assert strong < 0.7 * random.mean()
