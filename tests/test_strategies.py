"""Candidate strategies: one contract over all strategies and spaces, then what each promises."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from test_gaussian_process import observe, values
from toy_law import ARCHS as TOY_ARCHS

from acquisition.base import Pool, Unwanted, draw_unseen, fresh
from acquisition.strategies import (
    STRATEGIES,
    GuidedGeneration,
    Mutation,
    NearAfterFailure,
    RandomSearch,
    UnconditionalSorted,
    Union,
)
from nag.generate import Samples
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance
from nag.guidance import Ladder
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.predictors.noise_aware import fit_noise_aware
from nag.properties import Constraint, Property, satisfied
from nag.spaces import ABSENT, SPACES, Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY

torch.set_num_threads(1)

STEPS = 10
GENERATORS = {
    name: DiffusionGenerator(
        GeneratorConfig(name, score="exact", steps=STEPS, device="cpu", threads=1)
    )
    for name in SPACES
}
ALL_GENERATED = {"guided-gen", "uncond+sort"}
LOOKS_AROUND = {
    "bohb",
    "rea",
    "reinforce",
}  # where the best were, so that a rest elsewhere is not found
DIAGNOSTICS = {
    "generated",
    "validity",
    "uniqueness",
    "novelty",
    "score_evaluations",
    "generator_seconds",
}
GUIDANCE_DIAGNOSTICS = {"scale_low", "scale_high", "norm_ratio"}


def fit(space, observations):
    return GaussianProcess(space).fit(observations, np.random.default_rng(0))


def decisions(space, one, other):
    """How many decisions tell two architectures apart: depths of stages, operators of layers that
    both have."""
    count, first = 0, 0
    for stage in space.stages:
        rows = slice(first, first + len(stage.choices))
        a, b = one.ops[rows], other.ops[rows]
        count += a.count(ABSENT) != b.count(ABSENT)
        count += sum(x != y for x, y in zip(a, b, strict=True) if ABSENT not in (x, y))
        first += len(stage.choices)
    return count


def toy_neighbours(arch):
    return {other for other in TOY_ARCHS if decisions(TOY, arch, other) == 1}


def propose(strategy, n, observations, predictor, exclude=frozenset(), seed=0):
    if not isinstance(exclude, Unwanted):
        exclude = Unwanted(exclude)
    exclude |= set(observations.archs)
    return strategy.propose(n, observations, predictor, exclude, np.random.default_rng(seed))


@dataclass
class Spy:
    """A generator that keeps what it was asked and what it made."""

    generator: DiffusionGenerator
    guidance: list[Guidance | None] = field(default_factory=list)
    made: list[Samples] = field(default_factory=list)

    def generate(self, n, *, seed, guidance=None):
        samples = self.generator.generate(n, seed=seed, guidance=guidance)
        self.guidance.append(guidance)
        self.made.append(samples)
        return samples

    def generate_parts(self, parts, guidance=None):
        """As several generators do: the last may be the first that is done."""
        made = {
            part: self.generate(part.n, seed=part.seed, guidance=guidance) for part in parts[::-1]
        }
        return [made[part] for part in parts]


def build(name, space, generator, initial=0):
    """As the search builds it, for one evaluation at a time."""
    return STRATEGIES[name].build(space, GuidedGeneration(generator), initial=initial, patience=1)


class BrokenGenerator:
    """Stand-in of a generator none of whose samples is valid."""

    def generate(self, n, *, seed, guidance=None):
        return Samples((None,) * n, (1,) * n, 10, 0.0)


# The contract.


@dataclass(frozen=True)
class Case:
    name: str
    space: object
    observations: Observations
    predictor: object

    @property
    def strategy(self):
        return build(self.name, self.space, GENERATORS[self.space.name])

    def propose(self, n, exclude=frozenset(), seed=0):
        return propose(self.strategy, n, self.observations, self.predictor, exclude, seed)


@pytest.fixture(scope="module", params=SPACES.values(), ids=SPACES)
def observed(request):
    space, observations = request.param, observe(request.param, 15)
    return space, observations, fit(space, observations)


@pytest.fixture(params=STRATEGIES)
def case(request, observed):
    return Case(request.param, *observed)


def test_the_strategies_of_the_paper_and_the_ablation_are_there():
    paper = {"guided-gen", "mutation", "mutation+random", "random"}
    assert set(STRATEGIES) >= paper | {"guided", "uncond+sort"}


@pytest.mark.parametrize("n", [1, 20])
def test_pools_are_valid_distinct_and_as_large_as_asked_for(case, n):
    """Strong guidance in a space of 144 repeats itself: there a pool may be smaller."""
    archs = case.propose(n).archs
    assert len(archs) == len(set(archs)) <= n
    assert len(archs) == n or (case.name == "guided-gen" and case.space is TOY and len(archs) > 0)
    assert case.space.decode(case.space.encode(archs)) == list(archs)
    assert {arch.space for arch in archs} == {case.space.name}


def test_nothing_excluded_is_proposed(case):
    """Not even what would have been proposed otherwise, from the same generator state."""
    first = set(case.propose(20).archs)
    assert not first & set(case.observations.archs)
    second = set(case.propose(20, first).archs)
    assert not second & (first | set(case.observations.archs))


def test_the_exclusions_are_not_touched(case):
    exclude = Unwanted(set(case.observations.archs))
    before = set(exclude.seen)
    case.strategy.propose(5, case.observations, case.predictor, exclude, np.random.default_rng(0))
    assert exclude.seen == before


def test_equal_generators_give_equal_pools(case):
    first, again, other = (case.propose(20, seed=s) for s in (1, 1, 2))
    assert first.archs == again.archs
    assert first.archs != other.archs or case.space is TOY
    timed = "generator_seconds"
    assert {k: v for k, v in first.diagnostics.items() if k != timed} == {
        k: v for k, v in again.diagnostics.items() if k != timed
    }


def test_diagnostics_say_how_the_pool_was_generated(case):
    found = case.propose(20).diagnostics
    expected = {"near"} if case.name == "guided" else set()
    if case.name in ALL_GENERATED or found.get("near") == 0:
        expected |= DIAGNOSTICS
        expected |= set() if case.name == "uncond+sort" else GUIDANCE_DIAGNOSTICS
    assert set(found) == expected
    for share in {"validity", "uniqueness", "novelty"} & set(found):
        assert 0 < found[share] <= 1


# A space that runs out.


def almost_all_seen(left, seed):
    """Observations of all 144 toy architectures but `left`, and those."""
    archs = [TOY_ARCHS[i] for i in np.random.default_rng(seed).permutation(144)]
    seen = tuple(archs[left:])
    return Observations(seen, values(TOY, seen)), set(archs[:left])


@pytest.mark.parametrize("left", [0, 1, 5])
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_left_of_an_exhausted_space(name, left):
    """Exactly that, where a strategy looks everywhere; nothing else, where it does not."""
    observations, unseen = almost_all_seen(left, seed=left)
    predictor = fit(TOY, observe(TOY, 15))
    strategy = build(name, TOY, GENERATORS["toy"])
    archs = propose(strategy, 100, observations, predictor).archs
    assert len(archs) == len(set(archs))
    if name in ALL_GENERATED | LOOKS_AROUND:
        assert set(archs) <= unseen
    else:
        assert set(archs) == unseen


def test_random_search_can_list_the_whole_space():
    nothing = Observations((), np.empty(0))
    archs = propose(RandomSearch(TOY), 200, nothing, None).archs
    assert set(archs) == set(TOY_ARCHS)
    assert len(archs) == 144


# Random and mutation.


def test_random_search_draws_from_the_space(rng):
    """The draws of the space itself, in order, less repeats and what is excluded."""
    observations = observe(TOY, 10)
    found = propose(RandomSearch(TOY), 15, observations, None).archs
    drawn = [a for a in TOY.sample(100, rng) if a not in observations.archs]
    assert list(found) == list(dict.fromkeys(drawn))[:15]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_mutation_changes_one_decision_of_the_incumbent(space):
    observations = observe(space, 15)
    n = 4 if space is TOY else 20
    archs = propose(Mutation(space), n, observations, None).archs
    best = observations.archs[observations.values.argmax()]
    assert [decisions(space, best, arch) for arch in archs] == [1] * n


def test_mutation_does_not_care_for_the_order_of_the_trials():
    """The incumbent is the best, wherever it stands."""
    observations = observe(MOBILENETV3, 15)
    for shift in (1, 7):
        archs = tuple(np.roll(np.array(observations.archs, dtype=object), shift))
        shifted = Observations(archs, np.roll(observations.values, shift))
        found = propose(Mutation(MOBILENETV3), 10, shifted, None).archs
        assert found == propose(Mutation(MOBILENETV3), 10, observations, None).archs


def test_mutation_passes_to_the_next_best_once_the_neighbours_are_seen():
    best, second, third = (TOY.from_str(text) for text in ("ba/bc", "ca/aa", "ac/cb"))
    observations = Observations((third, best, second), np.array([0.1, 0.9, 0.5]))
    seen = toy_neighbours(best) | {best, second, third}
    fresh = toy_neighbours(second) - seen
    archs = propose(Mutation(TOY), 3, observations, None, seen).archs
    assert len(archs) == 3
    assert set(archs) <= fresh
    seen |= fresh
    archs = propose(Mutation(TOY), 3, observations, None, seen).archs
    assert len(archs) == 3
    assert set(archs) <= toy_neighbours(third)


def test_mutation_takes_all_neighbours_of_the_incumbent_before_any_other():
    best, second = TOY.from_str("ba/bc"), TOY.from_str("ac/cb")
    observations = Observations((second, best), np.array([0.5, 0.9]))
    n = len(toy_neighbours(best))
    archs = propose(Mutation(TOY), n + 3, observations, None).archs
    assert set(archs[:n]) == toy_neighbours(best)
    assert set(archs[n:]) <= toy_neighbours(second)


@pytest.mark.parametrize("space", [NASBENCH201, MOBILENETV3], ids=lambda space: space.name)
@pytest.mark.parametrize("parents", [1, 2])
def test_mutation_leaves_no_neighbour_of_the_best_behind(space, parents):
    """Not even the last one, which draws hardly ever find in a large neighbourhood."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        *best, other = space.sample(parents + 1, rng)
        near = sorted(
            {a for arch in best for a in space.neighbours(arch)} - {*best, other}, key=str
        )
        last = near[rng.integers(len(near))]
        observations = Observations((other, *best), np.arange(parents + 1.0))
        seen = set(near) - {last}
        first, second = propose(Mutation(space, parents), 2, observations, None, seen, seed).archs
        assert first == last
        assert second in space.neighbours(other)


@pytest.mark.parametrize("parents", [2, 5])
def test_mutation_of_the_best_takes_them_in_turn(parents):
    """No two random networks are near each other, so that a mutant tells its parent."""
    observations = observe(MOBILENETV3, 15)
    archs = propose(Mutation(MOBILENETV3, parents), 20, observations, None).archs
    best = [observations.archs[i] for i in np.argsort(-observations.values)[:parents]]
    for i, arch in enumerate(archs):
        assert decisions(MOBILENETV3, best[i % parents], arch) == 1


def test_mutation_of_the_best_passes_to_the_next_best():
    first, second, third = (TOY.from_str(text) for text in ("ba/bc", "ca/aa", "ac/cb"))
    observations = Observations((third, first, second), np.array([0.1, 0.9, 0.5]))
    near = (toy_neighbours(first) | toy_neighbours(second)) - {third}
    archs = propose(Mutation(TOY, parents=2), len(near) + 3, observations, None).archs
    assert set(archs[: len(near)]) == near
    assert set(archs[len(near) :]) <= toy_neighbours(third)


@pytest.mark.parametrize("parents", [1, 3, 100])
def test_mutation_of_nothing_is_nothing(parents):
    nothing = Observations((), np.empty(0))
    assert propose(Mutation(TOY, parents), 5, nothing, None).archs == ()


@pytest.mark.parametrize("n", [1, 20, 21])
def test_a_union_is_half_and_half(n):
    """Two random networks are never one decision apart, so that the halves can be told."""
    observations = observe(MOBILENETV3, 15)
    strategy = Union(Mutation(MOBILENETV3), RandomSearch(MOBILENETV3))
    archs = propose(strategy, n, observations, None).archs
    best = observations.archs[observations.values.argmax()]
    mutants = [decisions(MOBILENETV3, best, arch) == 1 for arch in archs]
    assert mutants == [True] * (n // 2) + [False] * (n - n // 2)


def test_the_second_half_makes_up_for_a_dry_first():
    """Everything one decision away from the only observation is excluded."""
    best = TOY.from_str("ba/bc")
    observations = Observations((best,), np.array([0.9]))
    seen = toy_neighbours(best)
    archs = propose(Union(Mutation(TOY), RandomSearch(TOY)), 20, observations, None, seen).archs
    assert len(archs) == 20


def test_a_union_keeps_the_diagnostics_of_its_halves():
    observations = observe(TOY, 15)
    strategy = Union(UnconditionalSorted(GENERATORS["toy"]), Mutation(TOY))
    found = propose(strategy, 10, observations, fit(TOY, observations)).diagnostics
    assert set(found) == DIAGNOSTICS
    alone = propose(strategy, 1, observations, fit(TOY, observations))
    assert len(alone.archs) == 1  # from the second half: nothing is asked of the first


# Near the best after a failure.


@dataclass(frozen=True)
class Always:
    """Proposes the same architecture again and again."""

    arch: Architecture

    def propose(self, n, observations, predictor, exclude, rng):
        return Pool((self.arch,))


@pytest.mark.parametrize(
    ("values", "patience", "near"),
    [
        ([0.3, 0.2, 0.1], 1, False),  # all of it the initial design
        ([0.1, 0.2, 0.3, 0.4], 1, False),
        ([0.1, 0.2, 0.3, 0.2], 1, True),
        ([0.1, 0.2, 0.3, 0.3], 1, True),  # as good is not better
        ([0.3, 0.2, 0.1, 0.2], 1, True),
        ([0.3, 0.2, 0.1, 0.2], 2, False),
        ([0.3, 0.2, 0.1, 0.2, 0.2], 2, True),
        ([0.3, 0.2, 0.1, 0.2, 0.4, 0.2], 2, False),
        ([0.3, 0.2, 0.1, 0.2, 0.4, 0.2, 0.2], 2, True),
        ([0.3, 0.2], 1, False),  # an initial design of which one failed
    ],
)
def test_a_failure_is_a_batch_without_a_new_best(values, patience, near):
    wide, local = TOY_ARCHS[:2]
    strategy = NearAfterFailure(Always(wide), Always(local), initial=3, patience=patience)
    observations = Observations(tuple(TOY_ARCHS[2 : 2 + len(values)]), np.array(values))
    pool = propose(strategy, 1, observations, None)
    assert pool.archs == ((local if near else wide),)
    assert pool.diagnostics == {"near": near}


@pytest.mark.parametrize("broken", [0, 2])
def test_what_broke_down_is_a_part_of_the_initial_design(broken):
    """Ten initial trials, some without a value; then one without a new best."""
    values = np.array([0.3] + [0.2] * (10 - broken))
    observations = Observations(tuple(TOY_ARCHS[2 : 2 + len(values)]), values)
    strategy = NearAfterFailure(Always(TOY_ARCHS[0]), Always(TOY_ARCHS[1]), 10, 1)
    unwanted = Unwanted(frozenset(TOY_ARCHS[2:13]))
    pool = strategy.propose(1, observations, None, unwanted, np.random.default_rng(0))
    assert pool.diagnostics == {"near": 1.0}


@pytest.mark.parametrize(("pending", "share"), [(0, 1), (1, 1), (3, 2 / 4), (7, 2 / 8)])
def test_a_failure_takes_as_many_outcomes_as_evaluations_overlap(pending, share):
    """Two values without a new best, and the chance of looking near after them."""
    strategy = NearAfterFailure(Always(TOY_ARCHS[0]), Always(TOY_ARCHS[1]), 0, 1)
    observations = Observations(tuple(TOY_ARCHS[2:5]), np.array([0.3, 0.2, 0.1]))
    unwanted = Unwanted(frozenset(TOY_ARCHS[2 : 5 + pending]), pending=TOY_ARCHS[5 : 5 + pending])
    near = [
        strategy.propose(1, observations, None, unwanted, np.random.default_rng(i)).diagnostics
        for i in range(400)
    ]
    assert np.mean([found["near"] for found in near]) == pytest.approx(share, abs=0.08)


def test_right_after_a_new_best_nothing_is_near():
    strategy = NearAfterFailure(Always(TOY_ARCHS[0]), Always(TOY_ARCHS[1]), 0, 1)
    observations = Observations(tuple(TOY_ARCHS[2:5]), np.array([0.1, 0.2, 0.3]))
    for pending in (0, 7):
        unwanted = Unwanted(
            frozenset(TOY_ARCHS[2 : 5 + pending]), pending=TOY_ARCHS[5 : 5 + pending]
        )
        for i in range(20):
            pool = strategy.propose(1, observations, None, unwanted, np.random.default_rng(i))
            assert pool.diagnostics == {"near": 0.0}


def test_guided_search_generates_after_a_success_and_mutates_after_a_failure(networks):
    observations, predictor = networks
    order = np.argsort(observations.values)
    best = observations.archs[order[-1]]
    strategy = build("guided", MOBILENETV3, GENERATORS["mobilenetv3"])
    for trials, generates in ((order, True), (order[::-1], False)):
        seen = Observations(
            tuple(observations.archs[i] for i in trials), observations.values[trials]
        )
        pool = propose(strategy, 5, seen, predictor)
        assert ({decisions(MOBILENETV3, best, arch) for arch in pool.archs} == {1}) != generates
        assert ("validity" in pool.diagnostics) == generates


def test_what_runs_as_guided_knows_the_initial_design_and_the_batch():
    """Without patience it is guided in every round."""
    guided = GuidedGeneration(GENERATORS["toy"])
    found = STRATEGIES["guided"].build(TOY, guided, initial=7, patience=3)
    assert found == NearAfterFailure(guided, Mutation(TOY), initial=7, patience=3)
    assert STRATEGIES["guided"].build(TOY, guided, initial=7, patience=None) is guided
    assert STRATEGIES["guided-gen"].build(TOY, guided, initial=7, patience=3) is guided


def test_draws_stop_when_they_bring_nothing_new():
    a, b = TOY_ARCHS[:2]
    assert draw_unseen(lambda: [a, b, a], 5, Unwanted({a})) == [b]
    assert draw_unseen(list, 5, Unwanted(set())) == []
    assert draw_unseen(lambda: TOY_ARCHS, 3, Unwanted({a})) == TOY_ARCHS[1:4]


def test_constraints_are_asked_about_all_draws_at_once(monkeypatch):
    """And accept what they accept one at a time, in the order of the draws."""
    asked = []

    def counted(constraints, archs):
        asked.append(len(archs))
        return satisfied(constraints, archs)

    monkeypatch.setattr("acquisition.base.satisfied", counted)
    quantity = Property("cost", TOY, 0.0, np.random.default_rng(0).standard_normal(TOY.shape))
    unwanted = Unwanted(set(TOY_ARCHS[:30]), (Constraint(quantity, 0.0),))
    draws = TOY.sample(100, np.random.default_rng(1))
    expected = dict.fromkeys(
        arch for arch in draws if arch not in TOY_ARCHS[:30] and quantity([arch])[0] <= 0
    )
    assert draw_unseen(lambda: draws, 10, unwanted) == list(expected)[:10]
    assert len(asked) == 1
    assert list(dict.fromkeys(fresh(draws, unwanted))) == list(expected)


# Generation.


@pytest.fixture(scope="module")
def networks():
    """40 MobileNetV3 networks with the embedded surrogate's values, and a predictor."""
    observations = observe(MOBILENETV3, 40)
    return observations, fit(MOBILENETV3, observations)


def test_sorting_keeps_the_best_of_the_oversampled(networks):
    observations, predictor = networks
    generator = GENERATORS["mobilenetv3"]
    kept = propose(UnconditionalSorted(generator, 4), 20, observations, predictor).archs
    all_of_them = propose(UnconditionalSorted(generator, 1), 80, observations, predictor).archs
    means = predictor.predict(all_of_them).mean
    assert set(kept) < set(all_of_them)
    assert sorted(predictor.predict(kept).mean) == pytest.approx(np.sort(means)[-20:])


@pytest.mark.parametrize("kind", ["denoised", "noise-aware"])
@pytest.mark.parametrize("seed", range(3))
def test_guided_pools_beat_sorted_ones_with_the_same_predictor(kind, seed):
    """Else guidance has not been shown to work. In predicted and in true
    value (that of the embedded surrogate), and at a quarter of the samples."""
    observations = observe(MOBILENETV3, 40, seed)
    predictor = fit(MOBILENETV3, observations)
    generator = GENERATORS["mobilenetv3"]
    one = propose(GuidedGeneration(generator, kind), 40, observations, predictor, seed=seed)
    two = propose(UnconditionalSorted(generator), 40, observations, predictor, seed=seed)
    assert len(one.archs) == len(two.archs) == 40
    for value in (lambda a: predictor.predict(a).mean, lambda a: values(MOBILENETV3, a)):
        guided, unguided = value(one.archs), value(two.archs)
        test = ttest_ind(guided, unguided, equal_var=False, alternative="greater")
        assert test.pvalue < 1e-3


def test_stronger_guidance_promises_more(networks):
    observations, predictor = networks
    means = []
    for k in (0.01, 1.0, 10.0):
        strategy = GuidedGeneration(GENERATORS["mobilenetv3"], scale=Ladder(k, k))
        archs = propose(strategy, 40, observations, predictor).archs
        means.append(predictor.predict(archs).mean.mean())
    spread = observations.values.std()
    assert means[0] + spread / 4 < means[1] < means[2] - spread / 4


def test_the_generator_is_told_what_to_steer_towards(networks):
    observations, predictor = networks
    spy, scale = Spy(GENERATORS["mobilenetv3"]), Ladder(2.0, 3.0)
    strategy = GuidedGeneration(spy, "noise-aware", form="target", target=0.7, scale=scale)
    propose(strategy, 5, observations, predictor)
    (guidance,) = spy.guidance
    assert guidance.predictor is predictor
    assert guidance.observations is observations
    assert (guidance.kind, guidance.scale) == ("noise-aware", scale)
    assert (guidance.form, guidance.target) == ("target", 0.7)
    spy = Spy(GENERATORS["mobilenetv3"])
    propose(UnconditionalSorted(spy), 5, observations, predictor)
    assert spy.guidance == [None]


@pytest.mark.parametrize("name", sorted(ALL_GENERATED))
def test_a_strategy_that_asks_the_predictor_needs_one(name):
    with pytest.raises(TypeError, match="needs a surrogate predictor"):
        propose(build(name, TOY, GENERATORS["toy"]), 5, observe(TOY, 15), None)


@pytest.mark.parametrize("name", sorted(ALL_GENERATED))
def test_diagnostics_count_all_samples(name):
    """Recomputed from what the generator made; on the toy space several rounds are needed."""
    observations = observe(TOY, 30)
    spy = Spy(GENERATORS["toy"])
    pool = propose(build(name, TOY, spy), 36, observations, fit(TOY, observations))
    assert len(spy.made) > 1
    archs = [arch for samples in spy.made for arch in samples.archs]
    valid = [arch for arch in archs if arch is not None]
    expected = {
        "generated": len(archs),
        "validity": len(valid) / len(archs),
        "uniqueness": len(set(valid)) / len(valid),
        "novelty": len(set(valid) - set(observations.archs)) / len(set(valid)),
        "score_evaluations": STEPS * len(spy.made),
        "generator_seconds": sum(samples.seconds for samples in spy.made),
    }
    expected |= spy.made[0].diagnostics  # of guidance: as in the first round
    assert dict(pool.diagnostics) == pytest.approx(expected)
    assert set(pool.diagnostics) >= (GUIDANCE_DIAGNOSTICS if name == "guided-gen" else set())
    assert set(pool.archs) <= set(valid)


def test_a_proposal_fits_one_noise_aware_predictor(monkeypatch):
    """All its rounds, and their scales, are of the predictor of the first."""
    fits = []

    def counted(*arguments, **settings):
        fits.append(fit_noise_aware(*arguments, **settings, steps=20))
        return fits[-1]

    monkeypatch.setattr("nag.generator.fit_noise_aware", counted)
    observations = observe(TOY, 30)
    spy = Spy(GENERATORS["toy"])
    strategy = GuidedGeneration(spy, kind="noise-aware")
    for proposal in (1, 2):
        spy.guidance.clear()
        propose(strategy, 36, observations, fit(TOY, observations))
        assert len(spy.guidance) > 1
        assert len(fits) == proposal
        assert spy.guidance[0].noise_aware is None
        assert all(later.noise_aware is fits[-1] for later in spy.guidance[1:])


@pytest.mark.parametrize("name", sorted(ALL_GENERATED))
def test_parts_of_a_large_pool_do_not_depend_on_each_other(name):
    """Nor on who makes them when; what guidance has to find out is found by the first."""
    observations = observe(NASBENCH201, 30)
    predictor = fit(NASBENCH201, observations)
    generator = GENERATORS["nasbench201"]
    spy = Spy(generator)
    pool = propose(build(name, NASBENCH201, spy), 1100, observations, predictor)
    assert {len(samples.archs) for samples in spy.made[:3]} >= {512}
    assert len({samples.archs for samples in spy.made}) == len(spy.made) >= 3
    if name == "guided-gen":
        first = spy.made[0].diagnostics
        found = Ladder(first["scale_low"], first["scale_high"])
        assert spy.guidance[0].scale != found
        assert all(guidance.scale == found for guidance in spy.guidance[1:])
    again = propose(build(name, NASBENCH201, generator), 1100, observations, predictor)
    assert again.archs == pool.archs


@pytest.mark.parametrize("name", sorted(ALL_GENERATED))
def test_rounds_are_not_copies_of_each_other(name):
    observations = observe(TOY, 30)
    spy = Spy(GENERATORS["toy"])
    propose(build(name, TOY, spy), 36, observations, fit(TOY, observations))
    assert len({samples.archs for samples in spy.made}) == len(spy.made) > 1


@pytest.mark.parametrize("name", sorted(ALL_GENERATED))
def test_a_generator_without_valid_samples_gives_an_empty_pool(name):
    observations = observe(TOY, 15)
    strategy = build(name, TOY, BrokenGenerator())
    pool = propose(strategy, 10, observations, fit(TOY, observations))
    assert pool.archs == ()
    assert pool.diagnostics["validity"] == 0
    assert pool.diagnostics["generated"] > 0


def test_random_architectures_that_keep_the_constraints_fill_a_guided_pool():
    """Samples seldom keep opposing ones. Without constraints a pool stays as short as it is."""
    observations = observe(TOY, 15)
    layers = Property("layers", TOY, 0.0, np.ones(TOY.shape))
    opposing = (Constraint(layers, 3.0), Constraint(layers, 3.0, at_most=False))
    predictor, seen = fit(TOY, observations), set(observations.archs)
    left = [a for a in TOY_ARCHS if a not in seen and satisfied(opposing, [a])[0]]
    strategy = GuidedGeneration(BrokenGenerator())
    for n, found in ((10, 10), (144, len(left))):
        pool = propose(strategy, n, observations, predictor, Unwanted(seen, opposing))
        assert len(set(pool.archs)) == pool.diagnostics["filled"] == found
        assert set(pool.archs) <= set(left)
    real = GuidedGeneration(GENERATORS["toy"])
    pool = propose(real, len(left), observations, predictor, Unwanted(seen, opposing))
    assert set(pool.archs) == set(left)
    assert pool.diagnostics.get("filled", 0) < len(left)


def test_what_fills_a_pool_is_counted_with_what_did_before():
    pool = Pool(tuple(TOY_ARCHS[:2]), {"dry": 1.0}).filled(TOY_ARCHS[2:5]).filled(TOY_ARCHS[5:6])
    assert pool == Pool(tuple(TOY_ARCHS[:6]), {"dry": 1.0, "filled": 4})
