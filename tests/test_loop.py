"""The loop on the toy space: the trials are a function of the configuration, come what may."""

import itertools
import math
import re
import weakref
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy_law import ARCHS

from nag.errors import UserError
from nag.predictors.gp import GaussianProcess
from nag.spaces.toy import TOY
from orchestrator.build import build_optimizer, plan_of
from orchestrator.config import RunConfig
from orchestrator.executors.local import LocalExecutor
from orchestrator.history.run import read_run
from orchestrator.history.trials import Outcome, Trial
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.loop import Plan, run_study
from orchestrator.search.store import RunStore
from orchestrator.search.trial import evaluate_trial
from trainers.base import EvaluationError, Measurement
from trainers.evaluators.toy import ToyEvaluator

CONFIG = RunConfig(
    space="toy", score="exact", budget=12, n_init=4, pool_size=20, batch_size=1, steps=8, seed=3
)
BATCH_SIZES = pytest.mark.parametrize("batch_size", [1, 3])
SHORT = {  # where a test needs many runs
    1: replace(CONFIG, budget=8, pool_size=8, steps=5),
    3: replace(CONFIG, budget=11, pool_size=8, steps=5, batch_size=3),
}
RANDOM = {"surrogate": "none", "strategy": "random", "acq": None}
RETRIES = 2


class Evaluator(ToyEvaluator):
    """Synthetic faults: calls `fault` with each architecture before the toy's own value."""

    def __init__(self, fault):
        self._fault = fault
        self.evaluated = Counter()

    def evaluate(self, arch, *, seed):
        self.evaluated[arch] += 1
        replacement = self._fault(arch, self.evaluated)
        found = super().evaluate(arch, seed=seed)
        if isinstance(replacement, dict):
            return replacement
        return found if replacement is None else Measurement(replacement)


def local(config=CONFIG, evaluator=ToyEvaluator()):  # noqa: B008
    return LocalExecutor(config.generator("cpu"), evaluator, RETRIES)


def faulty(fault, config=CONFIG):
    """An executor whose evaluations fail as `fault` says, and its evaluator."""
    evaluator = Evaluator(fault)
    return local(config, evaluator), evaluator


@dataclass
class Reordered:
    """Synthetic: outcomes of a batch come in another order, as from several workers."""

    executor: LocalExecutor
    order: object  # list of outcomes -> list of outcomes

    @property
    def generator(self):
        return self.executor.generator

    def run(self, ask):
        while trials := ask(10**9):
            yield from self.order([*self.executor.run(partial(_next, iter(trials)))])


def _next(trials, room):
    """Of trials that are there."""
    return [*islice(trials, room)]


def rounds_of(store):
    """The trials of each round."""
    found = [[] for _ in store.rounds]
    for trial in store.trials:
        found[trial.iteration].append(trial)
    return found


class InterruptAt:
    """An observer that presses Ctrl-C at the n-th event: a batch proposed, a trial finished."""

    def __init__(self, n):
        self._left = n

    def _count(self, store, event):
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    proposed = finished = _count


@dataclass
class Events:
    """An observer that only writes down."""

    seen: list = field(default_factory=list)

    def proposed(self, store, suggestion):
        self.seen.append(("proposed", len(suggestion.archs), store.num_finished))

    def finished(self, store, outcome):
        self.seen.append(("finished", outcome.trial, store.num_finished))


def study(out, config=CONFIG, executor=None, observers=(), optimizer=None):
    """Open or reopen the run in `out`, go on with it, and return the closed store."""
    executor = executor or local(config)
    store = RunStore.open(out, config)
    try:
        run_study(
            optimizer or build_optimizer(config, executor.generator),
            executor,
            store,
            plan_of(config),
            observers=observers,
        )
    finally:
        store.close()
    return store


def found(store):
    """What a run is judged by: (architecture, value) of all trials in order."""
    return [
        (TOY.to_str(trial.arch), store.outcomes[trial.trial].value)
        for trial in store.trials
        if trial.trial in store.outcomes
    ]


def statuses(store):
    return [store.outcomes[trial.trial].status for trial in store.trials]


def assert_nothing_twice(store):
    assert len(store.seen()) == len(store.trials)


# What a run does


@BATCH_SIZES
def test_rounds_are_proposed_then_finished(tmp_path, batch_size):
    config = replace(CONFIG, budget=11, batch_size=batch_size)
    events = Events()
    store = study(tmp_path / "run", config, observers=(events,))
    sizes = [4, *[1] * 7] if batch_size == 1 else [4, 3, 3, 3]
    expected, first = [], 0
    for size in sizes:
        expected.append(("proposed", size, first))
        evaluated = min(size, 11 - first)  # the rest of the last batch stays pending
        expected += [("finished", first + i, first + i + 1) for i in range(evaluated)]
        first += size
    assert events.seen == expected
    iterations = [i for i, size in enumerate(sizes) for _ in range(size)]
    assert [trial.iteration for trial in store.trials] == iterations
    guided = sum(sizes) - 4
    assert [trial.strategy for trial in store.trials] == ["initial"] * 4 + ["guided"] * guided
    assert_nothing_twice(store)


def test_values_are_those_of_the_evaluator(tmp_path):
    store = study(tmp_path / "run")
    for trial in store.trials:
        value = ToyEvaluator().evaluate(trial.arch, seed=0).value
        assert store.outcomes[trial.trial].value == value


def test_candidates_come_with_the_prediction_they_were_chosen_by(tmp_path):
    store = study(tmp_path / "run")
    for trial in store.trials:
        assert (trial.predicted_mean is None) == (trial.strategy == "initial")
        assert trial.predicted_std is None or trial.predicted_std > 0


def test_another_seed_gives_other_trials(tmp_path):
    one = study(tmp_path / "one")
    assert found(study(tmp_path / "two", replace(CONFIG, seed=4))) != found(one)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    before = found(study(tmp_path / "run"))
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    events = Events()
    assert found(study(tmp_path / "run", observers=(events,))) == before
    assert events.seen == []
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal


@BATCH_SIZES
@pytest.mark.parametrize("strategy", ["guided", "mutation"])
def test_a_prolonged_run_equals_a_long_one(tmp_path, strategy, batch_size):
    config = replace(CONFIG, strategy=strategy, batch_size=batch_size)
    long = found(study(tmp_path / "long", config))
    for budget in (4, 5, 9, 12):
        store = study(tmp_path / "short", replace(config, budget=budget))
        assert found(store) == long[:budget]


def test_more_initial_trials_than_the_budget_has_room_for(tmp_path):
    """The command line refuses it; the loop keeps to the budget."""
    store = RunStore.open(tmp_path / "run", CONFIG)
    executor = local()
    optimizer = build_optimizer(CONFIG, executor.generator)
    plan = Plan(budget=6, n_init=10, batch_size=3, seed=3)
    run_study(optimizer, executor, store, plan)
    assert [trial.trial for trial in store.pending()] == [6, 7, 8, 9]
    run_study(optimizer, executor, store, replace(plan, budget=12))
    assert [trial.strategy for trial in store.trials] == ["initial"] * 10 + ["guided"] * 3
    assert store.num_finished == 12
    store.close()


# The end before the budget is spent


def stopped(out, config, patience, order=lambda outcomes: outcomes):
    """Go on with the run in `out` until it stops; what it found, and what it ended by."""
    executor = Reordered(local(config), order)
    with closing(RunStore.open(out, config)) as store:
        optimizer = build_optimizer(config, executor.generator)
        end = run_study(optimizer, executor, store, plan_of(config), patience=patience)
    return found(store), end


@pytest.mark.parametrize("patience", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"batch_size": 3}, {"batch_size": 2, "window": 2}])
def test_a_run_out_of_patience_is_the_beginning_of_a_longer_one(tmp_path, settings, patience):
    config = replace(CONFIG, **RANDOM, budget=40, **settings)
    long = found(study(tmp_path / "long", config))
    short, end = stopped(tmp_path / "short", config, patience, _reversed)
    assert end == "patience"
    assert 4 < len(short) < 40
    assert short == long[: len(short)]
    # the last round began when this was not yet so; then it was of all that the next would use
    values = [value for _, value in short]
    begun = [4 + i for i in range(0, len(short) - 3, config.batch_size)]
    late = config.batch_size * (config.window - 1)

    def since_best(known):
        return known - max(int(np.argmax(values[:known])) + 1, 4)

    assert all(since_best(max(first - late, 4)) < patience for first in begun[:-1])
    assert since_best(len(short) - late) >= patience
    journal = (tmp_path / "short" / "journal.jsonl").read_bytes()
    assert journal.count(b'"event": "patience"') == 1
    assert stopped(tmp_path / "short", config, patience) == (short, "patience")
    assert (tmp_path / "short" / "journal.jsonl").read_bytes() == journal
    run = read_run(tmp_path / "short")
    assert (run.complete, run.patience) == (True, patience)
    assert stopped(tmp_path / "short", config, None) == (long, "budget")
    run = read_run(tmp_path / "short")
    assert (run.complete, run.patience) == (True, None)


@pytest.fixture
def at_most(monkeypatch):
    """Go on with the run in `out`; its time is over after `count` looks at the clock."""

    def run(out, config, count, order=lambda outcomes: outcomes):
        clock = SimpleNamespace(time=partial(next, itertools.count()))
        monkeypatch.setattr("orchestrator.search.loop.time", clock)
        executor = Reordered(local(config), order)
        with closing(RunStore.open(out, config)) as store:
            optimizer, plan = build_optimizer(config, executor.generator), plan_of(config)
            end = run_study(optimizer, executor, store, plan, ends_at=count)
        return found(store), end

    return run


def test_a_run_out_of_time_is_the_beginning_of_a_longer_one(tmp_path, at_most):
    config = replace(CONFIG, **RANDOM, budget=10, batch_size=3)
    long = found(study(tmp_path / "long", config))
    out = tmp_path / "short"
    assert at_most(out, config, 6) == (long[:5], "time")  # amid a batch
    assert at_most(out, config, 0) == (long[:5], "time")
    assert at_most(out, config, 6) == (long, "budget")
    assert at_most(out, config, 0) == (long, "budget")


def test_a_run_whose_last_trials_did_not_begin_in_time_is_not_finished(tmp_path, at_most):
    """By the clocks of their machines, which may be ahead of the driver's."""
    config = replace(CONFIG, budget=4)
    found, end = at_most(tmp_path / "run", config, 100, lambda outcomes: outcomes[:3])
    assert (len(found), end) == (3, "time")


def test_failed_evaluations_try_the_patience_too(tmp_path):
    def fault(arch, evaluated):
        if len(evaluated) > 6:
            raise EvaluationError("synthetic")

    config = replace(CONFIG, **RANDOM, budget=40)
    executor, _ = faulty(fault, config)
    with closing(RunStore.open(tmp_path / "run", config)) as store:
        optimizer = build_optimizer(config, executor.generator)
        run_study(optimizer, executor, store, plan_of(config), patience=8)
    values = [-math.inf if value is None else value for _, value in found(store)]
    assert len(values) == max(int(np.argmax(values)) + 1, 4) + 8


def test_patience_where_every_evaluation_fails(tmp_path):
    def fault(arch, evaluated):
        raise EvaluationError("synthetic")

    executor, _ = faulty(fault)
    with closing(RunStore.open(tmp_path / "run", CONFIG)) as store:
        optimizer = build_optimizer(CONFIG, executor.generator)
        run_study(optimizer, executor, store, plan_of(CONFIG), patience=2)
    assert store.num_finished == 4 + 2


# Interruptions


def num_events(config):
    rounds = 1 + math.ceil((config.budget - config.n_init) / config.batch_size)
    return rounds + config.budget


@BATCH_SIZES
def test_a_run_interrupted_anywhere_ends_as_if_it_had_not_been(tmp_path, batch_size):
    config = SHORT[batch_size]
    expected = found(study(tmp_path / "expected", config))
    assert len(expected) == config.budget
    executor = local(config)
    for n in range(1, num_events(config) + 1):
        out = tmp_path / str(n)
        with pytest.raises(KeyboardInterrupt):
            study(out, config, executor, observers=(InterruptAt(n),))
        assert found(study(out, config, executor)) == expected
        assert pq.read_table(out / "trials.parquet").num_rows == config.budget


@BATCH_SIZES
def test_a_run_interrupted_at_every_step_still_ends_the_same(tmp_path, batch_size):
    """The same run again and again, each time for one more event."""
    config = SHORT[batch_size]
    expected = found(study(tmp_path / "expected", config))
    executor = local(config)
    for _ in range(num_events(config)):
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / "run", config, executor, observers=(InterruptAt(1),))
    assert found(study(tmp_path / "run", config, executor)) == expected


def test_interrupted_evaluations_are_evaluated_again_and_no_others(tmp_path):
    config = SHORT[3]
    expected = found(study(tmp_path / "expected", config))
    for n in range(1, config.budget + 1):

        def interrupt(arch, evaluated, n=n):
            if evaluated.total() == n:
                raise KeyboardInterrupt

        executor, evaluator = faulty(interrupt, config)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / str(n), config, executor)
        assert found(study(tmp_path / str(n), config, executor)) == expected
        assert evaluator.evaluated[TOY.from_str(expected[n - 1][0])] == 2
        assert evaluator.evaluated.total() == config.budget + 1


def _reversed(outcomes):
    return outcomes[::-1]


def _shuffled(outcomes):
    return [outcomes[i] for i in np.random.default_rng(len(outcomes)).permutation(len(outcomes))]


@pytest.mark.parametrize("order", [_reversed, _shuffled])
def test_who_finishes_first_does_not_matter(tmp_path, order):
    config = SHORT[3]
    events = Events()
    store = study(tmp_path / "run", config, Reordered(local(config), order), observers=(events,))
    trials = [event[1] for event in events.seen if event[0] == "finished"]
    assert trials != sorted(trials)
    assert found(store) == found(study(tmp_path / "expected", config))


def test_interruptions_among_outcomes_out_of_order(tmp_path):
    """After a restart a batch has gaps: trial 6 is finished, 4 and 5 are not."""
    config = SHORT[3]
    expected = found(study(tmp_path / "expected", config))
    executor = Reordered(local(config), _reversed)
    for n in range(1, num_events(config) + 1):
        out = tmp_path / str(n)
        with pytest.raises(KeyboardInterrupt):
            study(out, config, executor, observers=(InterruptAt(n),))
        assert found(study(out, config, executor)) == expected


# Rounds that overlap, and no rounds


@dataclass
class Workers:
    """Synthetic: evaluations that run at the same time and end in an order of chance."""

    executor: LocalExecutor
    workers: int
    seed: int = 0
    most: int = 0  # that were running at a time

    @property
    def generator(self):
        return self.executor.generator

    def run(self, ask):
        rng, running = np.random.default_rng(self.seed), []
        while True:
            running += ask(self.workers - len(running))
            self.most = max(self.most, len(running))
            if not running:
                return
            trial = running.pop(int(rng.integers(len(running))))
            yield from self.executor.run(partial(_next, iter([trial])))


class Proposals:
    """An observer: after how many outcomes each round was proposed, and with how many pending."""

    def __init__(self):
        self.after, self.pending = [], []

    def proposed(self, store, suggestion):
        self.after.append(store.num_finished)
        self.pending.append(suggestion.diagnostics.get("pending", 0))

    def finished(self, store, outcome):
        pass


WINDOW = replace(CONFIG, budget=22, n_init=4, batch_size=3, window=2)


def test_a_round_of_a_window_waits_for_the_round_before_the_last(tmp_path):
    proposals = Proposals()
    executor = Workers(local(WINDOW), 3)
    study(tmp_path / "run", WINDOW, executor, observers=(proposals,))
    assert executor.most == 3
    # the first two rounds are of 4 and 3 random trials; then 3 or 4 trials are pending
    assert proposals.pending == [0, 0, 3, 3, 3, 3, 3]
    assert all(finished >= 4 + 3 * (i - 2) for i, finished in enumerate(proposals.after) if i >= 2)
    assert any(finished < 4 + 3 * (i - 1) for i, finished in enumerate(proposals.after) if i >= 2)


@pytest.mark.parametrize("window", [2, 3])
def test_the_trials_of_a_window_are_those_of_any_workers(tmp_path, window):
    config = replace(WINDOW, window=window)
    expected = found(study(tmp_path / "expected", config))
    for workers, seed in ((1, 0), (2, 1), (9, 2)):
        out = tmp_path / f"{workers}"
        assert found(study(out, config, Workers(local(config), workers, seed))) == expected
    assert expected != found(study(tmp_path / "one", replace(config, window=1)))


def test_a_window_survives_interruptions(tmp_path):
    config = replace(WINDOW, budget=13, pool_size=8, steps=5)
    expected = found(study(tmp_path / "expected", config))
    for n in range(1, num_events(config), 2):
        out = tmp_path / str(n)
        with pytest.raises(KeyboardInterrupt):
            study(out, config, Workers(local(config), 3, n), observers=(InterruptAt(n),))
        assert found(study(out, config, Workers(local(config), 4, n + 1))) == expected


def test_a_prolonged_window_equals_a_long_one(tmp_path):
    long = found(study(tmp_path / "long", WINDOW))
    for budget in (4, 6, 11, 22):
        store = study(tmp_path / "short", replace(WINDOW, budget=budget), Workers(local(WINDOW), 4))
        assert found(store) == long[:budget]


ASYNC = replace(CONFIG, schedule="async", budget=24)


@pytest.mark.parametrize("workers", [1, 5])
def test_asynchronously_no_worker_waits(tmp_path, workers):
    proposals = Proposals()
    store = study(tmp_path / "run", ASYNC, Workers(local(ASYNC), workers), observers=(proposals,))
    assert_nothing_twice(store)
    assert store.num_finished == len(store.trials) == 24
    # after the initial design one trial whenever one has ended, with those of all others pending
    rounds = zip(proposals.pending, rounds_of(store), strict=True)
    guided = [
        (pending, len(trials)) for pending, trials in rounds if trials[0].strategy == "guided"
    ]
    assert len(guided) >= 18
    assert set(guided) == {(workers - 1, 1)}


def test_asynchronously_nothing_is_proposed_beyond_the_budget(tmp_path):
    """Where several are asked for at a time, as for a queue."""

    class Fives(LocalExecutor):
        def run(self, ask):
            while trials := ask(5):
                yield from super().run(partial(_next, iter(trials)))

    config = replace(ASYNC, budget=8, pool_size=8, steps=5)
    executor = Fives(config.generator("cpu"), ToyEvaluator(), RETRIES)
    store = study(tmp_path / "run", config, executor)
    assert store.num_finished == len(store.trials) == 8
    assert rounds_of(store)[-1][0].strategy == "guided"


def test_asynchronous_proposals_are_not_where_something_is_pending(tmp_path):
    """Two that are proposed from the same values differ, because the first is pending."""
    optimizer = build_optimizer(ASYNC, local(ASYNC).generator)
    seen = study(tmp_path / "run", replace(ASYNC, budget=8)).observations()
    one = optimizer.suggest(seen, set(seen.archs), 1, np.random.default_rng(0))
    exclude = {*seen.archs, *one.archs}
    two = optimizer.suggest(seen, exclude, 1, np.random.default_rng(0), one.archs)
    assert two.archs != one.archs
    plain = optimizer.suggest(seen, exclude, 1, np.random.default_rng(0))
    if plain.archs == two.archs:
        assert plain.predicted[0][1] > two.predicted[0][1]  # less is uncertain


def test_an_interrupted_asynchronous_run_evaluates_everything_once(tmp_path):
    config = replace(ASYNC, budget=14, pool_size=8, steps=5)
    for n in range(1, 24, 3):
        out = tmp_path / str(n)
        with pytest.raises(KeyboardInterrupt):
            study(out, config, Workers(local(config), 3, n), observers=(InterruptAt(n),))
        store = study(out, config, Workers(local(config), 3, n + 1))
        assert_nothing_twice(store)
        assert store.num_finished == len(store.trials) == 14


def test_an_asynchronous_run_ends_with_the_space(tmp_path):
    config = replace(ASYNC, budget=200, n_init=120, strategy="random", pool_size=48)
    store = study(tmp_path / "run", config, Workers(local(config), 7))
    assert store.seen() == set(ARCHS)
    assert store.num_finished == 144


# Failures


def starts_with_b(arch):
    return TOY.to_str(arch).startswith("b")


def is_no_measurement_at_b(arch, evaluated):
    return {"value": 0.5} if starts_with_b(arch) else None


def fails_at_b(arch, evaluated):
    if starts_with_b(arch):
        raise EvaluationError("does not\n  fit")


def raises_at_b(arch, evaluated):
    if starts_with_b(arch):
        raise RuntimeError("the training diverged")


def nan_at_b(arch, evaluated):
    return math.nan if starts_with_b(arch) else None


def infinite_at_b(arch, evaluated):
    return math.inf if starts_with_b(arch) else None


def huge_at_b(arch, evaluated):
    return -1e200 if starts_with_b(arch) else None


@pytest.mark.parametrize(
    ("fault", "error", "attempts"),
    [
        (fails_at_b, "EvaluationError: does not fit", 1),
        (
            is_no_measurement_at_b,
            "EvaluationError: the evaluator returned a dict, not a Measurement",
            1,
        ),
        (raises_at_b, "RuntimeError: the training diverged", RETRIES + 1),
        (nan_at_b, "EvaluationError: the value is nan", 1),
        (infinite_at_b, "EvaluationError: the value is inf", 1),
        (huge_at_b, "EvaluationError: the value is -1e+200, too large", 1),
    ],
)
def test_a_failed_evaluation_is_an_outcome(tmp_path, fault, error, attempts):
    config = replace(CONFIG, budget=24, n_init=12, batch_size=4, pool_size=10)
    executor, evaluator = faulty(fault, config)
    store = study(tmp_path / "run", config, executor)
    failed = [trial for trial in store.trials if starts_with_b(trial.arch)]
    assert 0 < len(failed) < config.budget == store.num_finished
    for trial in store.trials:
        outcome = store.outcomes[trial.trial]
        if trial in failed:
            assert (outcome.status, outcome.value) == ("failed", None)
            said, separator, _ = outcome.error.partition(" (test_loop.py, line ")
            assert said == error
            assert bool(separator) == (fault is raises_at_b), "where an unexpected one was raised"
        else:
            assert (outcome.status, outcome.error) == ("ok", None)
            assert math.isfinite(outcome.value)
        expected = attempts if trial in failed else 1
        assert outcome.attempts == evaluator.evaluated[trial.arch] == expected
    assert_nothing_twice(store)


def test_a_passing_fault_costs_an_attempt_only(tmp_path):
    def raises_the_first_time(arch, evaluated):
        if evaluated[arch] == 1:
            raise OSError("the disk is not there")

    executor, _ = faulty(raises_the_first_time)
    store = study(tmp_path / "run", executor=executor)
    assert {outcome.attempts for outcome in store.outcomes.values()} == {2}
    assert found(store) == found(study(tmp_path / "expected"))


@dataclass(frozen=True)
class Recording:
    """The Gaussian process; writes down what it was fitted on."""

    predictor: GaussianProcess
    fits: list = field(default_factory=list)

    def fit(self, observations, rng):
        self.fits.append(observations)
        return self.predictor.fit(observations, rng)


def test_the_memory_of_a_gpu_is_given_back_when_the_evaluation_no_longer_holds_it(
    tmp_path, monkeypatch
):
    """Pretends that there is a GPU. An idle process must not keep what another one lacks."""
    freed, alive = [], weakref.WeakSet()

    class Network:
        def __init__(self):
            self.itself = self  # as in the traceback of an exception that someone keeps

    def out_of_memory(arch, evaluated):
        alive.add(network := Network())
        if len(evaluated) == 1:
            raise torch.OutOfMemoryError(f"no room for {network}")

    pretend_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: len(alive))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(len(alive)))
    executor, _ = faulty(out_of_memory)
    store = study(tmp_path / "run", executor=executor)
    assert [store.outcomes[i].status for i in (0, 1)] == ["failed", "ok"]
    assert freed == [0] * store.num_finished


def pretend_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30 * device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr("orchestrator.search.trial._gpu_memory", lambda: 0.0)


class TestABrokenGPU:
    """Pretends that there is one: after an illegal memory access, every call fails."""

    LOST = "CUDA error: an illegal memory access was encountered"

    @pytest.fixture
    def executor(self, monkeypatch):
        pretend_gpu(monkeypatch)

        def refuse(device=1):
            assert device == 1, "the other has none of our work"
            raise torch.AcceleratorError(f"{self.LOST}\nCUDA kernel errors might be reported later")

        def illegal(arch, evaluated):
            if len(evaluated) == 2:
                monkeypatch.setattr(torch.cuda, "synchronize", refuse)
                refuse()

        return faulty(illegal)[0]

    def test_the_run_ends_where_there_is_no_other_process(self, tmp_path, executor):
        message = f"the GPU no longer works in this process ({self.LOST}): repeat the command"
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            study(tmp_path / "run", executor=executor)
        store = RunStore.open(tmp_path / "run", CONFIG)
        assert [outcome.status for outcome in store.outcomes.values()] == ["ok"]

    def test_the_process_of_a_worker_ends(self, executor, monkeypatch, caplog):
        class End(BaseException):
            pass

        def end(code):
            raise End

        monkeypatch.setattr("orchestrator.search.trial.os._exit", end)
        archs = [TOY.from_str("aa/aa"), TOY.from_str("bb/bb")]
        fine, broken = (Trial(i, 0, arch, "initial", 0) for i, arch in enumerate(archs))
        evaluator = executor._evaluator
        assert evaluate_trial(evaluator, fine, RETRIES, None, 30.0).status == "ok"
        with pytest.raises(End):
            evaluate_trial(evaluator, broken, RETRIES, None, 30.0)
        assert caplog.messages == [f"the process ends because its GPU no longer works: {self.LOST}"]


def test_memory_that_pytorch_lacks_on_a_cpu_is_a_lack_of_memory():
    """It has words for it only, and would come again beside the same evaluations."""

    class Hungry:
        def evaluate(self, arch, *, seed):
            torch.empty(2**60, dtype=torch.uint8)

    outcome = evaluate_trial(Hungry(), Trial(0, 0, TOY.from_str("aa/aa"), "initial", 0), RETRIES)
    assert outcome.out_of_memory
    assert outcome.attempts == 1
    assert "can't allocate memory" in outcome.error


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_memory_that_nvidias_libraries_lack_is_a_lack_of_memory(error):
    """PyTorch has only words for that, too; it happens where evaluations share a GPU."""

    class Hungry:
        def evaluate(self, arch, *, seed):
            raise error

    outcome = evaluate_trial(Hungry(), Trial(0, 0, TOY.from_str("aa/aa"), "initial", 0), RETRIES)
    assert outcome.out_of_memory
    assert outcome.attempts == 1


def test_failures_are_not_learned_from(tmp_path):
    config = replace(CONFIG, budget=24, n_init=12, batch_size=4, pool_size=10)
    executor, _ = faulty(raises_at_b, config)
    predictor = Recording(GaussianProcess(TOY))
    optimizer = replace(build_optimizer(config, executor.generator), predictor=predictor)
    store = study(tmp_path / "run", config, executor, optimizer=optimizer)
    assert statuses(store)[:12].count("failed") > 0
    assert len(predictor.fits) == 3
    for fit, finished in zip(predictor.fits, (12, 16, 20), strict=True):
        expected = [
            trial.arch for trial in store.trials[:finished] if not starts_with_b(trial.arch)
        ]
        assert list(fit.archs) == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_run_goes_on_when_all_initial_trials_failed(tmp_path, batch_size):
    """Without two values there is nothing to fit: random trials until there are."""

    def fails_at_first(arch, evaluated):
        if evaluated.total() <= 7:
            raise EvaluationError("not yet")

    config = replace(CONFIG, budget=16, batch_size=batch_size)
    executor, _ = faulty(fails_at_first, config)
    store = study(tmp_path / "run", config, executor)
    assert statuses(store) == ["failed"] * 7 + ["ok"] * 9
    drawn = 9 if batch_size == 1 else 12
    expected = ["initial"] * drawn + ["guided"] * (16 - drawn)
    assert [trial.strategy for trial in store.trials] == expected
    assert_nothing_twice(store)


def test_a_run_in_which_everything_fails_ends_with_its_budget(tmp_path):
    def fails(arch, evaluated):
        raise EvaluationError("never")

    executor, _ = faulty(fails)
    store = study(tmp_path / "run", executor=executor)
    assert statuses(store) == ["failed"] * CONFIG.budget
    assert store.best is None
    assert_nothing_twice(store)


def test_an_error_may_hold_any_text(tmp_path):
    """As of a file name that is not UTF-8."""

    def fails(arch, evaluated):
        raise OSError("no such file: caf\udce9")

    executor, _ = faulty(fails)
    store = study(tmp_path / "run", executor=executor)
    assert statuses(store) == ["failed"] * CONFIG.budget
    errors = pq.read_table(tmp_path / "run" / "trials.parquet").to_pydict()["error"]
    assert all(error.startswith("OSError: no such file: caf") for error in errors)


@pytest.mark.parametrize("number", [np.float32, np.int64])
def test_an_evaluator_may_measure_in_numbers_of_numpy(tmp_path, number):
    class Numpy(ToyEvaluator):
        def evaluate(self, arch, *, seed):
            return Measurement(number(1), {"macs": number(10)})

    store = study(tmp_path / "run", executor=local(evaluator=Numpy()))
    assert statuses(store) == ["ok"] * CONFIG.budget
    assert found(study(tmp_path / "run")) == found(store)


@pytest.mark.parametrize("name", ["epochs", "iteration", "device", "value"])
def test_metrics_are_not_called_as_what_a_trial_has(tmp_path, name):
    """They would stand in its place in the table and the report."""

    class Named(ToyEvaluator):
        def evaluate(self, arch, *, seed):
            return Measurement(0.5, {name: 1.0, "macs": 2.0})

    store = study(tmp_path / "run", executor=local(evaluator=Named()))
    said = f"EvaluationError: metrics cannot be called {name}"
    assert {outcome.error for outcome in store.outcomes.values()} == {said}


def test_failures_survive_an_interruption(tmp_path):
    config = SHORT[3]
    executor, _ = faulty(raises_at_b, config)
    expected = found(study(tmp_path / "expected", config, executor))
    assert None in [value for _, value in expected]
    for n in range(1, num_events(config) + 1, 3):
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / str(n), config, executor, observers=(InterruptAt(n),))
        assert found(study(tmp_path / str(n), config, executor)) == expected


# The end of the space


@pytest.mark.parametrize(
    "strategy", ["guided", "mutation", "mutation+random", "random", "uncond+sort"]
)
def test_an_exhausted_space_ends_the_run(tmp_path, strategy):
    config = replace(CONFIG, strategy=strategy, budget=200, batch_size=48, pool_size=48)
    store = study(tmp_path / "run", config)
    assert store.num_finished == len(store.trials) == len(ARCHS) == 144
    assert store.seen() == set(ARCHS)
    assert store.best[0].arch == TOY.from_str("ca/bc")
    assert store.exhausted
    assert read_run(tmp_path / "run").complete
    again = Events()
    assert study(tmp_path / "run", config, observers=(again,)).num_finished == 144
    assert again.seen == []


def test_a_run_with_a_trial_pending_is_not_complete_though_its_space_is_exhausted(tmp_path):
    with closing(RunStore.open(tmp_path / "run", CONFIG)) as store:
        store.propose(Suggestion(tuple(ARCHS[:2]), "initial", (None,) * 2))
        store.exhaust()
        store.record(Outcome(0, "ok", 0.5))
        assert not read_run(store.out).complete
        store.record(Outcome(1, "ok", 0.5))
        assert read_run(store.out).complete


def test_the_last_unseen_architecture_is_found(tmp_path):
    optimizer = build_optimizer(CONFIG, local().generator)
    for i, last in enumerate(ARCHS):
        seen = frozenset(arch for arch in ARCHS if arch != last)
        assert optimizer.initial(seen, 1, np.random.default_rng(i)).archs == (last,)


# Is it any good?


@pytest.mark.slow
def test_guidance_is_better_than_chance(tmp_path):
    """Mean best value so far over the run, 20 seeds in pairs: the mean difference is positive."""
    config = replace(CONFIG, budget=14, pool_size=10)

    def progress(strategy, seed):
        store = study(
            tmp_path / f"{strategy} {seed}", replace(config, strategy=strategy, seed=seed)
        )
        return np.maximum.accumulate(store.observations().values).mean()

    gain = [progress("guided", seed) - progress("random", seed) for seed in range(20)]
    error = np.std(gain, ddof=1) / math.sqrt(len(gain))
    print(f"guided - random: {np.mean(gain):.4f} +- {error:.4f}")  # noqa: T201
    assert np.mean(gain) > 0
