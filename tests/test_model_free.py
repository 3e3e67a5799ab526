"""Strategies without a surrogate, against the definitions in their papers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, wilcoxon
from test_strategies import decisions
from toy_law import ARCHS as TOY_ARCHS

from acquisition.base import Unwanted
from acquisition.decisions import draw, one_hot, options
from acquisition.evolution import RegularizedEvolution
from acquisition.local_search import LocalSearch
from acquisition.parzen import ParzenEstimator
from acquisition.reinforce import Reinforce
from acquisition.strategies import RandomSearch
from nag.predictors.base import Observations
from nag.spaces import ABSENT, SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY
from trainers.evaluators.toy import ToyEvaluator

MODEL_FREE = {
    "bohb": ParzenEstimator,
    "rea": RegularizedEvolution,
    "local-search": LocalSearch,
    "reinforce": Reinforce,
}


def value(arch):
    """The toy objective; of the other spaces a synthetic additive one."""
    if arch.space == "toy":
        return ToyEvaluator().evaluate(arch, seed=0).value
    space = SPACES[arch.space]
    reward = np.random.default_rng(5).standard_normal(space.shape)
    return float((space.encode([arch])[0].numpy() * reward).sum())


def observe(archs, values=None):
    values = [value(arch) for arch in archs] if values is None else values
    return Observations(tuple(archs), np.array(values, dtype=float))


def observed(space, n, seed=0):
    rng = np.random.default_rng([seed, 1])
    return observe(list(dict.fromkeys(space.sample(3 * n, rng)))[:n])


def propose(strategy, n, observations, exclude=frozenset(), seed=0):
    exclude = Unwanted(exclude | set(observations.archs))
    return strategy.propose(n, observations, None, exclude, np.random.default_rng(seed)).archs


def search(strategy, space, budget, seed, batch=1, n_init=10):
    """A whole run: architectures in order, their values."""
    rng = np.random.default_rng([seed, 0])
    archs = propose(RandomSearch(space), n_init, observe([]), seed=rng)
    values = [value(arch) for arch in archs]
    while len(archs) < budget:
        observations, key = observe(archs, values), [seed, len(archs)]
        new = propose(strategy, batch, observations, seed=key)
        new = new or propose(RandomSearch(space), batch, observations, seed=key)  # it has run dry
        archs, values = archs + new, values + [value(arch) for arch in new]
    return archs, np.array(values)


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request):
    return request.param


# What they have in common.


@pytest.mark.parametrize("name", MODEL_FREE)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_search_repeats_nothing_and_can_be_repeated(name, space, batch):
    strategy = MODEL_FREE[name](space)
    archs, _ = search(strategy, space, 30, 0, batch)
    assert len(set(archs)) == len(archs)
    assert space.decode(space.encode(archs)) == list(archs)
    assert search(MODEL_FREE[name](space), space, 30, 0, batch)[0] == archs
    assert search(strategy, space, 30, 1, batch)[0] != archs


@pytest.mark.parametrize("name", MODEL_FREE)
def test_each_finds_better_toy_architectures_than_random_search(name):
    """The same initial designs, 40 evaluations, 40 seeds: paired, of the mean best so far."""

    def progress(strategy):
        runs = [search(strategy, TOY, 40, seed)[1] for seed in range(40)]
        return np.array([np.maximum.accumulate(values)[10:].mean() for values in runs])

    ours, random = progress(MODEL_FREE[name](TOY)), progress(RandomSearch(TOY))
    assert wilcoxon(ours, random, alternative="greater").pvalue < 0.01


@pytest.mark.parametrize("name", MODEL_FREE)
def test_each_begins_without_observations(name, space):
    archs = propose(MODEL_FREE[name](space), 5, observe([]))
    assert len(set(archs)) == 5


# Regularized evolution.


def test_children_are_mutants_of_the_last_to_be_born(space):
    """A better architecture that was born before them is dead."""
    observations = observed(space, 25)
    values = observations.values.copy()
    values[14] = values.max() + 1
    strategy = RegularizedEvolution(space, population=10)
    archs = propose(strategy, 20, observe(observations.archs, values))
    near = {arch for parent in observations.archs[-10:] for arch in space.neighbours(parent)}
    assert set(archs) <= near
    if space is MOBILENETV3:  # where no two random networks are near each other
        assert not set(archs) & set(space.neighbours(observations.archs[14]))


def test_the_winner_of_a_tournament_is_a_parent_as_often_as_it_should_be():
    """P(rank r of P wins among S with replacement) = ((P - r + 1)^S - (P - r)^S) / P^S."""
    observations = observed(MOBILENETV3, 10)
    strategy = RegularizedEvolution(MOBILENETV3, population=10, tournament=3)
    archs = [arch for seed in range(300) for arch in propose(strategy, 4, observations, seed=seed)]
    order = np.argsort(-observations.values)
    parents = [set(MOBILENETV3.neighbours(observations.archs[i])) for i in order]
    counts = np.array([sum(arch in near for arch in archs) for near in parents])
    assert counts.sum() == len(archs) == 1200
    rank = np.arange(1, 11)
    expected = ((11 - rank) ** 3 - (10 - rank) ** 3) / 1000
    assert chisquare(counts, 1200 * expected).pvalue > 1e-3


def test_a_tournament_of_the_whole_population_is_won_by_about_the_best():
    observations = observed(MOBILENETV3, 10)
    strategy = RegularizedEvolution(MOBILENETV3, population=10, tournament=200)
    best = observations.archs[observations.values.argmax()]
    assert set(propose(strategy, 20, observations)) <= set(MOBILENETV3.neighbours(best))


def test_a_population_that_is_not_complete_is_filled_at_random():
    observations = observed(TOY, 9)
    archs = propose(RegularizedEvolution(TOY, population=10), 5, observations)
    assert archs == propose(RandomSearch(TOY), 5, observations)


def test_a_population_without_new_mutants_proposes_nothing():
    parent = TOY_ARCHS[50]
    seen = frozenset(TOY.neighbours(parent))
    strategy = RegularizedEvolution(TOY, population=1, tournament=1)
    assert propose(strategy, 3, observe([parent]), seen) == ()


# Local search.


def test_neighbours_are_all_that_is_one_change_away():
    for arch in TOY_ARCHS:
        found = TOY.neighbours(arch)
        assert len(found) == len(set(found))
        assert set(found) == {other for other in TOY_ARCHS if decisions(TOY, arch, other) == 1}


def test_neighbours_are_what_mutation_can_make(space):
    rng = np.random.default_rng(0)
    for arch in space.sample(3, rng):
        found = space.neighbours(arch)
        assert len(found) == len(set(found))
        assert {space.mutate(arch, rng) for _ in range(500)} <= set(found)
        assert space.decode(space.encode(found)) == found


def test_a_cell_has_24_neighbours():
    (cell,) = NASBENCH201.sample(1, np.random.default_rng(0))
    assert len(NASBENCH201.neighbours(cell)) == 6 * 4


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_local_search_leaves_nothing_but_local_optima(seed, batch):
    """Followed through a run, step by step. What was better around an optimum was known already
    when the search started again, from an earlier climb."""
    archs, values = search(LocalSearch(TOY), TOY, 80, seed, batch)
    current, best, tried, known, optima = archs[0], values[0], {archs[0]}, set(), 0
    for i in range(1, 80):
        left = set(TOY.neighbours(current)) - tried
        if i >= 10 and (i - 10) % batch == 0:
            step = archs[i : i + batch]
            assert len(left & set(step)) == min(len(left), len(step))
        if not left:
            optima += 1
            near = set(TOY.neighbours(current)) - known
            assert best == values[archs.index(current)] >= max(map(value, near), default=best)
            known = set(tried)
        if not left or values[i] > best:
            current, best = archs[i], values[i]
        tried.add(archs[i])
    assert optima > 0


def test_local_search_goes_on_from_the_better_one_at_once():
    start, better = TOY.from_str("aa/aa"), TOY.from_str("ab/aa")
    archs = propose(LocalSearch(TOY), 3, observe([start, better], [0.1, 0.2]))
    assert set(archs) <= set(TOY.neighbours(better))
    archs = propose(LocalSearch(TOY), 3, observe([start, better], [0.2, 0.1]))
    assert set(archs) <= set(TOY.neighbours(start))


def test_local_search_stays_at_the_first_of_equals():
    start, equal = TOY.from_str("aa/aa"), TOY.from_str("ab/aa")
    archs = propose(LocalSearch(TOY), 3, observe([start, equal], [0.1, 0.1]))
    assert set(archs) <= set(TOY.neighbours(start))


def test_after_a_local_optimum_a_worse_start_counts():
    """Else the search would never leave the first optimum."""
    start, far = TOY.from_str("aa/aa"), TOY.from_str("cc/cc")
    near = TOY.neighbours(start)
    before = observe([start, *near], [1.0] + [0.5] * len(near))
    random = propose(RandomSearch(TOY), 2, before)
    assert propose(LocalSearch(TOY), 2, before, seed=np.random.default_rng(0)) == random
    after = observe([*before.archs, far], [*before.values, 0.1])
    archs = propose(LocalSearch(TOY), 3, after)
    assert set(archs) <= set(TOY.neighbours(far))


def test_what_failed_or_breaks_a_constraint_counts_as_tried():
    start = TOY.from_str("aa/aa")
    near = TOY.neighbours(start)
    failed = frozenset(near[:4])
    observations = observe([start, *near[4:]], [1.0] + [0.5] * (len(near) - 4))
    far = propose(LocalSearch(TOY), 1, observations, failed)
    assert far == propose(RandomSearch(TOY), 1, observations, failed)
    after = observe([*observations.archs, *far], [*observations.values, 0.1])
    archs = propose(LocalSearch(TOY), 2, after, failed)
    assert set(archs) <= set(TOY.neighbours(far[0])) - failed


# REINFORCE.


def log_probability(space, logits, arch):
    """log pi, written out decision by decision."""
    total, decision, first = torch.zeros((), dtype=torch.float64), 0, 0
    for stage in space.stages:
        held = arch.ops[first : first + len(stage.choices)]
        depth = sum(op != ABSENT for op in held)
        total = total + logits[decision].log_softmax(0)[stage.depths.index(depth)]
        for slot in range(depth):
            row = logits[decision + 1 + slot].log_softmax(0)
            total = total + row[stage.choices[slot].index(held[slot])]
        decision, first = decision + 1 + len(held), first + len(held)
    return total


def test_the_policy_is_that_of_torch(space):
    """Adam and the gradient of log pi by PyTorch, a tensor of logits per decision."""
    observations = observed(space, 12)
    strategy = Reinforce(space, learning_rate=0.3, momentum=0.8)
    logits = [
        torch.zeros(len(option), dtype=torch.float64, requires_grad=True)
        for option in options(space)
    ]
    optimizer = torch.optim.Adam(logits, lr=0.3)
    seen = []
    for arch, found in zip(observations.archs, observations.values, strict=True):
        seen.append(found)
        weights = 0.8 ** np.arange(len(seen))[::-1]
        advantage = found - np.average(seen, weights=weights)
        optimizer.zero_grad()
        (-advantage * log_probability(space, logits, arch)).backward()
        for row in logits:  # an operator of an absent layer has a gradient of zero, not none
            row.grad = torch.zeros_like(row) if row.grad is None else row.grad
        optimizer.step()
    policy = strategy.policy(observations)
    for p, row in zip(policy, logits, strict=True):
        np.testing.assert_allclose(p[: len(row)], row.detach().softmax(0), rtol=1e-6, atol=1e-9)
        assert (p[len(row) :] == 0).all()


def test_one_hot_says_what_was_chosen():
    chosen = one_hot(TOY, [TOY.from_str("b-/ca")])
    assert options(TOY) == [(1, 2), (0, 1, 2), (0, 1, 2)] * 2
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    np.testing.assert_array_equal(chosen, [expected])


def test_before_the_first_observation_the_policy_is_the_uniform_law(space):
    policy = Reinforce(space).policy(observe([]))
    for p, option in zip(policy, options(space), strict=True):
        np.testing.assert_allclose(p[: len(option)], 1 / len(option))


def test_samples_follow_the_policy():
    strategy = Reinforce(TOY, learning_rate=0.2)
    policy = strategy.policy(observed(TOY, 20))
    draws = draw(TOY, policy, 20_000, np.random.default_rng(0))
    chosen = one_hot(TOY, draws)
    for decision, p in enumerate(policy):
        made = chosen[:, decision].sum(-1) == 1
        share = chosen[made, decision].mean(0)
        np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / made.sum()))


def test_the_policy_finds_what_is_rewarded():
    """Synthetic: only the first operator matters."""
    archs = TOY.sample(300, np.random.default_rng(0))
    observations = observe(archs, [float(arch.ops[0] == 1) for arch in archs])
    policy = Reinforce(TOY).policy(observations)
    assert policy[1][1] > 0.9


def test_equal_values_teach_nothing(space):
    archs = space.sample(5, np.random.default_rng(0))
    strategy = Reinforce(space)
    np.testing.assert_array_equal(
        strategy.policy(observe(archs, [0.5] * 5)), strategy.policy(observe([]))
    )
