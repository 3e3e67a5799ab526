"""The optimizer: a function of its arguments that suggests the most promising of what is new."""

from dataclasses import replace
from functools import partial
from itertools import product
from time import perf_counter

import numpy as np
import pytest
import torch
from toy_law import ARCHS as TOY_ARCHS

from acquisition.base import Pool, Unwanted, fresh, incumbent
from acquisition.functions import ACQUISITIONS
from acquisition.strategies import STRATEGIES, GuidedGeneration, generate_feasible
from nag.generator import DiffusionGenerator, GeneratorConfig
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.properties import Constraint, Property
from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY
from orchestrator.search.bayesopt import BayesianOptimizer
from trainers.cost import cost_property
from trainers.evaluators.surrogate import SurrogateEvaluator
from trainers.evaluators.toy import ToyEvaluator

torch.set_num_threads(1)

BEST = TOY.from_str("ca/bc")  # of the toy objective
GENERATORS = {
    space.name: DiffusionGenerator(
        GeneratorConfig(space.name, score="exact", steps=10, device="cpu", threads=1)
    )
    for space in (TOY, MOBILENETV3)
}


class DryStrategy:
    """Stand-in of a strategy that runs out after a few fixed proposals."""

    def __init__(self, *archs):
        self.archs = archs

    def propose(self, n, observations, predictor, exclude, rng):
        return Pool(tuple(fresh(self.archs, exclude))[:n], {"dry": 1.0})


class Recording:
    """Passes calls on to another strategy, predictor or acquisition function, and notes them."""

    def __init__(self, wrapped):
        self.wrapped, self.calls = wrapped, []
        self.is_logarithm = getattr(wrapped, "is_logarithm", None)

    def propose(self, *arguments):
        self.calls.append(arguments)
        return self.wrapped.propose(*arguments)

    def fit(self, *arguments):
        self.calls.append(arguments)
        return self.wrapped.fit(*arguments)

    def __call__(self, prediction, **arguments):
        self.calls.append(arguments)
        return self.wrapped(prediction, **arguments)


class Asked:
    """Passes calls on to a generator, and notes the guidance of the last one."""

    def __init__(self, generator):
        self.generator = generator

    def generate(self, n, *, seed, guidance):
        self.guidance = guidance
        return self.generator.generate(n, seed=seed, guidance=guidance)


class NoPredictor:
    """Must not be asked."""

    def fit(self, observations, rng):
        raise AssertionError("fitted although there is nothing to fit")


def values(archs):
    if archs and archs[0].space == MOBILENETV3.name:
        return SurrogateEvaluator().predict(archs)
    return np.array([ToyEvaluator().evaluate(arch, seed=0).value for arch in archs])


def observe(archs):
    return Observations(tuple(archs), values(archs))


def observed(space, n, seed=0):
    rng = np.random.default_rng([seed, 1])
    return observe(list(dict.fromkeys(space.sample(3 * n, rng)))[:n])


def build(name, space):
    guided = GuidedGeneration(GENERATORS[space.name])
    return STRATEGIES[name].build(space, guided, initial=0, patience=1)


def optimizer(
    space=TOY, strategy="random", acquisition="ei", pool_size=100, predictor=None, **constrained
):
    """`strategy`: a name, or the object itself."""
    named = isinstance(strategy, str)
    return BayesianOptimizer(
        space=space,
        predictor=predictor or GaussianProcess(space),
        strategy=build(strategy, space) if named else strategy,
        acquisition=ACQUISITIONS[acquisition],
        strategy_name=strategy if named else "stand-in",
        pool_size=pool_size,
        **constrained,
    )


def suggest(optimizer, observations, count, exclude=frozenset(), seed=0):
    seen = exclude | set(observations.archs)
    return optimizer.suggest(observations, seen, count, np.random.default_rng(seed))


def toy_with_left(left, seed=0):
    """Observations of 20 toy architectures, the others seen, and all but `left` excluded."""
    archs = [arch for arch in TOY_ARCHS if arch not in left]
    order = np.random.default_rng(seed).permutation(len(archs))
    return observe([archs[i] for i in order[:20]]), set(archs)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture(params=[TOY, MOBILENETV3], ids=lambda space: space.name)
def space(request):
    return request.param


# One suggestion.


def test_a_suggestion_is_a_function_of_its_arguments(space, strategy):
    """Also of an optimizer that has suggested something else in between."""
    observations = observed(space, 12)
    once, other = optimizer(space, strategy, pool_size=20), optimizer(space, strategy, pool_size=20)
    first = suggest(once, observations, 3)
    suggest(once, observed(space, 8, seed=5), 2, seed=7)
    for again in (suggest(once, observations, 3), suggest(other, observations, 3)):
        assert again.archs == first.archs
        assert again.predicted == first.predicted
        assert set(again.seconds) == set(first.seconds)
        assert {k: v for k, v in again.diagnostics.items() if "seconds" not in k} == {
            k: v for k, v in first.diagnostics.items() if "seconds" not in k
        }


def test_suggestions_are_new_valid_and_distinct(space, strategy):
    """Also new to architectures without a value: those that failed."""
    observations = observed(space, 12)
    failed = set(suggest(optimizer(space, strategy, pool_size=20), observations, 4).archs)
    found = suggest(optimizer(space, strategy, pool_size=20), observations, 4, failed).archs
    assert len(found) == len(set(found)) == 4
    assert not set(found) & (failed | set(observations.archs))
    assert space.decode(space.encode(found)) == list(found)


def test_a_suggestion_tells_what_was_predicted_and_how_long_it_took(space, strategy):
    observations = observed(space, 12)
    started = perf_counter()
    found = suggest(optimizer(space, strategy, pool_size=20), observations, 3)
    elapsed = perf_counter() - started
    assert found.strategy == strategy
    assert len(found.predicted) == len(found.archs) == 3
    predictor = GaussianProcess(space).fit(observations, np.random.default_rng(0))
    expected = predictor.predict(found.archs)
    mean, std = np.array(found.predicted).T
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(std, expected.std, rtol=1e-6)
    assert set(found.seconds) == {"fit", "propose", "select"}
    assert min(found.seconds.values()) >= 0
    assert sum(found.seconds.values()) <= elapsed
    assert found.diagnostics["pool"] >= 3
    assert ("validity" in found.diagnostics) == (strategy in {"guided-gen", "uncond+sort"})


@pytest.mark.parametrize("acquisition", ["ei", "pi", "ucb"])
def test_the_suggestion_is_the_most_promising_of_all(acquisition):
    """With a pool that holds the whole toy space: the maximum over all that is new."""
    observations = observed(TOY, 12)
    found = suggest(optimizer(TOY, "random", acquisition, pool_size=500), observations, 1)
    assert found.diagnostics["pool"] == 144 - 12
    left = [arch for arch in TOY_ARCHS if arch not in observations.archs]
    prediction = GaussianProcess(TOY).fit(observations, np.random.default_rng(0)).predict(left)
    scores = ACQUISITIONS[acquisition](
        prediction, best=observations.best, rng=np.random.default_rng(0)
    )
    assert found.archs == (left[int(np.argmax(scores))],)


def test_what_is_pending_is_to_be_improved_on():
    """It counts as observed at its predicted mean: in the surrogate, and as the best value for
    acquisition and guidance."""
    observations = observed(TOY, 12, seed=4)
    left = [arch for arch in TOY_ARCHS if arch not in observations.archs]
    fitted = GaussianProcess(TOY).fit(observations, np.random.default_rng(0))
    mean = fitted.predict(left).mean
    promising, hopeless = left[int(mean.argmax())], left[int(mean.argmin())]
    assert mean.max() > observations.best > mean.min()
    for pending, best in ((promising, mean.max()), (hopeless, observations.best)):
        chosen = optimizer(TOY, "random", "pi", pool_size=500)
        spy = replace(chosen, acquisition=Recording(chosen.acquisition))
        seen = {*observations.archs, pending}
        spy.suggest(observations, seen, 1, np.random.default_rng(0), pending=[pending])
        assert spy.acquisition.calls[0]["best"] == pytest.approx(best)
        generator = Asked(GENERATORS["toy"])
        guided = replace(chosen, strategy=GuidedGeneration(generator, form="improvement"))
        guided.suggest(observations, seen, 1, np.random.default_rng(0), pending=[pending])
        assert generator.guidance.best == pytest.approx(best)
        before, after = (p.predict([pending]) for p in (fitted, generator.guidance.predictor))
        assert after.mean == pytest.approx(before.mean)
        assert after.std < before.std / 2


def test_thompson_sampling_is_a_matter_of_the_seed():
    observations = observed(TOY, 12)
    by_seed = {
        name: {
            suggest(optimizer(TOY, "random", name, 500), observations, 1, seed=s).archs
            for s in range(5)
        }
        for name in ("its", "ucb")
    }
    assert len(by_seed["its"]) > 1
    assert len(by_seed["ucb"]) == 1


def test_no_more_than_the_pool_holds_is_suggested_from_it():
    """A batch larger than the pool is filled up."""
    found = suggest(optimizer(TOY, "random", pool_size=2), observed(TOY, 12), 5)
    assert len(set(found.archs)) == 5
    assert found.diagnostics["filled"] == 3


# Dry strategies and exhausted spaces.


@pytest.mark.parametrize("proposals", [0, 1, 3])
def test_random_architectures_fill_up_for_a_dry_strategy(proposals):
    observations = observed(TOY, 12)
    left = [arch for arch in TOY_ARCHS if arch not in observations.archs]
    dry = DryStrategy(*left[:proposals])
    found = suggest(optimizer(TOY, dry), observations, 4)
    assert len(set(found.archs)) == 4
    assert set(left[:proposals]) <= set(found.archs) <= set(left)
    assert found.diagnostics == {"pool": 4, "filled": 4 - proposals, "dry": 1}
    assert all(std > 0 for _, std in found.predicted)


def test_what_fills_up_is_not_in_the_pool_already():
    """Four architectures are left, the strategy knows three of them."""
    left = [TOY.from_str(text) for text in ("a-/a-", "a-/b-", "b-/c-", "c-/c-")]
    observations, seen = toy_with_left(left)
    found = suggest(optimizer(TOY, DryStrategy(*left[:3])), observations, 4, seen)
    assert set(found.archs) == set(left)
    assert found.diagnostics["filled"] == 1


def test_nothing_is_filled_up_without_need():
    observations = observed(TOY, 12)
    left = [arch for arch in TOY_ARCHS if arch not in observations.archs]
    found = suggest(optimizer(TOY, DryStrategy(*left[:4])), observations, 4)
    assert set(found.archs) == set(left[:4])
    assert "filled" not in found.diagnostics


def test_an_exhausted_space_gives_an_empty_suggestion(strategy):
    observations, seen = toy_with_left(set())
    found = suggest(optimizer(TOY, strategy, pool_size=10), observations, 3, seen)
    assert found.archs == found.predicted == ()


@pytest.mark.parametrize("name", ["random", "mutation+random"])
def test_all_that_is_left_is_suggested(name):
    left = set(TOY_ARCHS[40:43])
    observations, seen = toy_with_left(left)
    found = suggest(optimizer(TOY, name), observations, 5, seen)
    assert set(found.archs) == left


RARE = [arch for arch in TOY_ARCHS if ABSENT not in arch.ops][::10]  # one in 324 draws each


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_are_suggested_only_where_the_space_is_exhausted(count):
    """Else a run ends early: one architecture is left, and the strategy does not come upon it."""
    for arch in RARE:
        observations, seen = toy_with_left({arch})
        assert suggest(optimizer(TOY, DryStrategy()), observations, count, seen).archs == (arch,)
        initial = optimizer().initial(seen, count, np.random.default_rng(0))
        assert initial.archs == (arch,)


def test_the_last_architecture_of_a_large_space_is_found():
    """Of 15,625: most sequences of random draws would miss it."""
    cells = product(range(2, 7), repeat=6)
    every = [Architecture("nasbench201", (0, *cell, 1)) for cell in cells]
    *seen, last = np.random.default_rng(0).permutation(np.array(every, dtype=object))
    for seed in range(4):
        initial = optimizer(NASBENCH201, DryStrategy()).initial(
            {*seen}, 1, np.random.default_rng(seed)
        )
        assert initial.archs == (last,)


# Without a surrogate.

MODEL_FREE = sorted(name for name, found in STRATEGIES.items() if not found.generates)


def model_free(space, strategy, **changes):
    return replace(optimizer(space, strategy, **changes), predictor=None, acquisition=None)


@pytest.fixture(params=MODEL_FREE)
def free(request):
    return request.param


@pytest.mark.parametrize("count", [1, 4])
def test_without_a_surrogate_all_that_is_proposed_is_suggested(space, free, count):
    observations = observed(space, 12)
    found = suggest(model_free(space, free), observations, count)
    strategy = build(free, space)
    seen = Unwanted(set(observations.archs))
    pool = strategy.propose(count, observations, None, seen, np.random.default_rng(0))
    assert found.archs == pool.archs
    assert len(found.archs) == count
    assert found.strategy == free
    assert found.predicted == (None,) * count
    assert set(found.seconds) == {"propose"}
    assert suggest(model_free(space, free), observations, count).archs == found.archs


def test_without_a_surrogate_a_dry_strategy_is_filled_up():
    observations = observed(TOY, 12)
    left = [arch for arch in TOY_ARCHS if arch not in observations.archs]
    found = suggest(model_free(TOY, DryStrategy(left[0])), observations, 4)
    assert len(set(found.archs)) == 4
    assert found.archs[0] == left[0]
    assert set(found.archs) <= set(left)
    assert found.diagnostics["filled"] == 3
    assert found.predicted == (None,) * 4


def test_without_a_surrogate_the_space_is_exhausted_too(free):
    left = set(TOY_ARCHS[40:43])
    observations, seen = toy_with_left(left)
    assert set(suggest(model_free(TOY, free), observations, 5, seen).archs) == left
    assert suggest(model_free(TOY, free), observations, 5, seen | left).archs == ()


def test_without_a_surrogate_the_constraints_are_kept(space, free):
    constraints = (num_layers(3),) if space is TOY else (few_macs(250e6),)
    constrained = model_free(space, free, constraints=constraints)
    archs = constrained.initial(frozenset(), 10, np.random.default_rng(0)).archs
    for i in range(4):
        archs += suggest(constrained, observe(archs), 5, seed=i).archs
    assert len(set(archs)) == 30
    assert constraints[0].satisfied(archs).all()


# The beginning.


@pytest.mark.parametrize("n", [0, 1])
def test_below_two_observations_the_suggestion_is_an_initial_one(n):
    observations = observed(TOY, n)
    beginner = optimizer(TOY, predictor=NoPredictor())
    found = suggest(beginner, observations, 4)
    assert found == beginner.initial(set(observations.archs), 4, np.random.default_rng(0))
    assert found.strategy == "initial"
    assert found.predicted == (None,) * 4


def test_two_observations_are_enough_for_a_fit():
    found = suggest(optimizer(TOY), observed(TOY, 2), 4)
    assert found.strategy == "random"
    assert None not in found.predicted


def test_initial_architectures_are_uniform_draws_new_and_distinct(space):
    exclude = set(space.sample(10, np.random.default_rng(0)))  # the very ones it would draw
    found = optimizer(space).initial(exclude, 10, np.random.default_rng(0)).archs
    assert len(found) == len(set(found)) == 10
    assert not set(found) & exclude
    again = optimizer(space).initial(exclude, 10, np.random.default_rng(0)).archs
    assert again == found
    assert optimizer(space).initial(exclude, 0, np.random.default_rng(0)).archs == ()


# Constraints.


def num_layers(most, std=0.0):
    """At most so many layers, of the two to four in a toy architecture."""
    return Constraint(Property("layers", TOY, 0.0, np.ones(TOY.shape), std), most)


def few_macs(limit):
    return Constraint(cost_property(MOBILENETV3, "macs", "imagenet"), limit)


def layers(arch):
    return sum(op != ABSENT for op in arch.ops)


def test_observations_where():
    observations = observed(TOY, 5)
    some = observations.where(np.array([False, True, False, True, True]))
    assert some.archs == tuple(observations.archs[i] for i in (1, 3, 4))
    np.testing.assert_array_equal(some.values, observations.values[[1, 3, 4]])
    for all_or_none in (True, False):
        assert observations.where(np.full(5, all_or_none)).archs == observations.archs


def test_unwanted_is_what_was_seen_or_breaks_a_constraint():
    seen = set(TOY_ARCHS[:10])
    unwanted = Unwanted(seen, (num_layers(3), num_layers(2.5, std=1.0)))
    small = [arch for arch in TOY_ARCHS if layers(arch) <= 2]
    assert fresh(TOY_ARCHS, unwanted) == [arch for arch in small if arch not in seen]
    more = unwanted | set(TOY_ARCHS[10:30])
    assert fresh(TOY_ARCHS, more) == [arch for arch in small if arch not in TOY_ARCHS[:30]]
    assert seen == set(TOY_ARCHS[:10])
    assert fresh(TOY_ARCHS, Unwanted(seen)) == [*TOY_ARCHS[10:]]


def test_all_that_is_suggested_keeps_the_constraints(space, strategy):
    constraints = (num_layers(3),) if space is TOY else (few_macs(250e6),)
    constrained = optimizer(space, strategy, pool_size=20, constraints=constraints)
    initial = constrained.initial(frozenset(), 10, np.random.default_rng(0)).archs
    found = suggest(constrained, observe(initial), 5).archs
    assert len(set(initial)) == 10
    assert len(set(found)) == 5
    assert all(constraints[0].satisfied([*initial, *found]))


def test_the_best_is_the_best_that_keeps_the_constraints():
    """Fitted is all that was observed; what breaks a constraint is no start for a mutation."""
    observations = observed(TOY, 20)
    feasible = np.array([layers(arch) <= 3 for arch in observations.archs])
    assert observations.values.argmax() in np.flatnonzero(~feasible)
    strategy, predictor = (
        Recording(build("random", TOY)),
        Recording(GaussianProcess(TOY)),
    )
    constrained = optimizer(
        TOY, strategy, predictor=predictor, constraints=(num_layers(3),), acquisition="ei"
    )
    acquisition = Recording(ACQUISITIONS["ei"])
    suggest(replace(constrained, acquisition=acquisition), observations, 3)
    assert [call["best"] for call in acquisition.calls] == 3 * [observations.values[feasible].max()]
    assert strategy.calls[0][1].archs == observations.where(feasible).archs
    assert predictor.calls[0][0] is observations


def test_where_nothing_keeps_the_constraints_yet_all_that_does_is_better():
    observations = observe([arch for arch in observed(TOY, 30).archs if layers(arch) > 2])
    acquisition = Recording(ACQUISITIONS["ei"])
    constrained = replace(optimizer(constraints=(num_layers(2),)), acquisition=acquisition)
    found = suggest(constrained, observations, 2).archs
    first, second = (call["best"] for call in acquisition.calls)
    assert first == observations.values.min() < second  # which is the mean of the first pick
    assert [layers(arch) for arch in found] == [2, 2]


def test_each_round_of_a_pareto_search_has_its_own_limit():
    """Between the fewest layers and the constraint; what is known beyond it is no example."""
    lasting, strategy = num_layers(3.5), Recording(build("random", TOY))
    searched = optimizer(TOY, strategy, constraints=(lasting,), pareto=lasting.quantity)
    observations = observed(TOY, 20)
    for seed in range(20):
        (found,) = suggest(searched, observations, 1, seed=seed).archs
        _, known, _, unwanted, _ = strategy.calls[-1]
        (limit,) = unwanted.constraints  # it implies the other
        assert 2 <= limit.limit <= 3.5
        assert layers(found) <= limit.limit
        assert all(layers(arch) <= limit.limit for arch in known.archs)
    assert len({call[3].constraints[0].limit for call in strategy.calls}) == 20


def test_each_of_a_batch_of_a_pareto_search_has_its_own_limit():
    """And a pool of its own, in which those before it are pending; predictions are without that."""
    strategy, predictor = Recording(build("random", TOY)), Recording(GaussianProcess(TOY))
    searched = optimizer(TOY, strategy, predictor=predictor, pareto=num_layers(4).quantity)
    observations, waiting = observed(TOY, 20), TOY_ARCHS[50:51]
    seen = {*observations.archs, *waiting}
    rng = np.random.default_rng(0)
    found = searched.suggest(observations, frozenset(seen), 4, rng, pending=waiting)
    assert len(set(found.archs)) == 4
    assert len(predictor.calls) == 1
    asked = [call[3] for call in strategy.calls]
    assert len({unwanted.constraints[0].limit for unwanted in asked}) == 4
    for i, (arch, unwanted) in enumerate(zip(found.archs, asked, strict=True)):
        assert unwanted.pending == (*waiting, *found.archs[:i])
        assert unwanted.seen == seen | set(found.archs[:i])
        assert layers(arch) <= unwanted.constraints[0].limit
    fitted = GaussianProcess(TOY).fit(observations, np.random.default_rng(0)).condition(waiting)
    expected = fitted.predict(found.archs)
    np.testing.assert_allclose(found.predicted, np.transpose([expected.mean, expected.std]), 1e-6)
    assert found.diagnostics["pool"] == sum(len(fresh(TOY_ARCHS, unwanted)) for unwanted in asked)
    assert found.diagnostics["pending"] == 1


def test_pending_points_beyond_a_limit_are_not_the_ones_to_improve_on():
    observations = observed(TOY, 20)
    fitted = GaussianProcess(TOY).fit(observations, np.random.default_rng(0))
    small = np.array([layers(arch) <= 2 for arch in observations.archs])
    known = observations.values[small].max()
    best = max(TOY_ARCHS, key=lambda arch: fitted.predict([arch]).mean[0])
    assert layers(best) > 2
    limits = (num_layers(2),)
    assert incumbent(observations, fitted, Unwanted(set(), limits, (best,))) == known
    promise = incumbent(observations, fitted, Unwanted(set(), (), (best,)))
    assert promise == fitted.predict([best]).mean[0]


def test_a_limit_that_leaves_nothing_does_not_end_a_pareto_search():
    large = [arch for arch in TOY_ARCHS if layers(arch) == 4][:5]
    observations, seen = toy_with_left(large)
    searched = optimizer(TOY, "guided-gen", pareto=num_layers(4).quantity)
    found = suggest(searched, observations, 3, seen).archs
    assert len(found) == 3
    assert set(found) <= set(large)


def test_the_generator_finds_what_random_draws_do_not():
    """20,000 draws do not come near a limit that is kept by one network in a million."""
    constraint = few_macs(130e6)
    draws = MOBILENETV3.sample(20_000, np.random.default_rng(0))
    assert not constraint.satisfied(draws).any()
    rare = partial(generate_feasible, GENERATORS[MOBILENETV3.name])
    constrained = optimizer(MOBILENETV3, DryStrategy(), constraints=(constraint,), rare=rare)
    initial = constrained.initial(frozenset(), 6, np.random.default_rng(0)).archs
    again = constrained.initial(frozenset(), 6, np.random.default_rng(0)).archs
    assert initial == again
    filled = suggest(constrained, observe(initial), 3)
    assert filled.diagnostics["filled"] == 3
    found = initial + filled.archs
    assert len(set(found)) == 9
    assert constraint.satisfied(found).all()


def test_the_generator_is_asked_for_no_more_than_is_missing():
    constraint = num_layers(2)
    small = [arch for arch in TOY_ARCHS if layers(arch) == 2]  # 9
    seen = set(TOY_ARCHS) - set(small[:5])
    calls = []

    def rare(n, exclude, rng):
        calls.append((n, exclude))
        return Pool(tuple(fresh(small, exclude))[:n])

    constrained = optimizer(constraints=(constraint,), rare=rare)
    enough = constrained.initial(seen, 5, np.random.default_rng(0)).archs
    assert set(enough) == set(small[:5])
    assert calls == []
    assert constrained.initial(seen, 8, np.random.default_rng(0)).archs == enough
    ((n, exclude),) = calls
    assert n == 3
    assert fresh(TOY_ARCHS, exclude) == []


def test_a_constrained_space_that_is_exhausted_gives_an_empty_suggestion(strategy):
    constraint = num_layers(2)
    observations = observe([arch for arch in TOY_ARCHS if layers(arch) == 2])
    constrained = optimizer(TOY, strategy, pool_size=10, constraints=(constraint,))
    assert suggest(constrained, observations, 3).archs == ()


# A search.


def search(space, strategy, n_init, rounds, batch, seed):
    """The values of a whole run, in order."""
    optimize = optimizer(space, strategy, pool_size=100)
    archs = optimize.initial(frozenset(), n_init, np.random.default_rng([seed, 0])).archs
    for i in range(rounds):
        rng = np.random.default_rng([seed, i + 1])
        archs += optimize.suggest(observe(archs), set(archs), batch, rng).archs
    assert len(set(archs)) == len(archs)
    return archs


def test_the_best_toy_architecture_is_found():
    """Within 18 of 144 evaluations in each of 4 runs; of random search one in 4,000 would do it."""
    for seed in range(4):
        assert BEST in search(TOY, "random", 5, 13, 1, seed)


def test_guided_search_beats_random_draws_and_uses_its_batches():
    """MobileNetV3 and the embedded surrogate, 30 evaluations in batches of 5, against 300 draws."""
    for seed in range(3):
        found = values(search(MOBILENETV3, "guided", 10, 4, 5, seed))
        draws = values(MOBILENETV3.sample(300, np.random.default_rng([seed, 9])))
        assert found.max() > draws.max()
        assert found[-5:].mean() > found[:10].max()
