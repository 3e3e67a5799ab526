"""The searcher of Ray Tune. Mostly without Ray: the tests call it as Tune's controller does."""

import json
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from toy_law import ARCHS

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
pytest.importorskip("ray")

from ray.tune.search import ConcurrencyLimiter, Searcher

from nag.errors import UserError
from nag.predictors.gp import FittedGaussianProcess, GaussianProcess
from nag.properties import Property
from nag.spaces import SPACES
from nag.spaces.toy import TOY
from orchestrator.build import build_optimizer, quantities_of
from orchestrator.config import RunConfig
from orchestrator.executors.local import LocalExecutor
from orchestrator.search.loop import Plan, run_study
from orchestrator.search.store import RunStore
from orchestrator.tune import BOSearcher
from trainers.constraints import PROPERTIES
from trainers.evaluators.toy import ToyEvaluator

CONFIG = RunConfig(space="toy", score="exact", n_init=4, pool_size=20, steps=8, seed=3, budget=12)
MUTATION = replace(CONFIG, strategy="mutation")
MAX_T, GRACE_PERIOD = 9, 3


def searcher(config=CONFIG, *, metric="value", mode="max", max_t=1, **options):
    return BOSearcher(config, metric=metric, mode=mode, max_t=max_t, **options)


def value_of(config):
    return ToyEvaluator().evaluate(TOY.from_str(config["arch"]), seed=0).value


def report(value, time=1, **more):
    return {"value": value, "training_iteration": time, **more}


def search(found, trials, value=value_of, first=0):
    """Trials one after the other, each with one report, as of a function that reports once."""
    archs = []
    for number in range(first, first + trials):
        config = found.suggest(f"t{number}")
        archs.append(config["arch"])
        result = report(value(config))
        found.on_trial_result(f"t{number}", result)
        found.on_trial_complete(f"t{number}", result | {"done": True})
    return archs


class Fits(list):
    """Every fit of a Gaussian process: what it sees, and of how many earlier runs it knows."""

    def __init__(self, monkeypatch):
        fit, condition = GaussianProcess.fit, FittedGaussianProcess.condition
        self.pending = []

        def noted_fit(process, observations, rng):
            archs = map(TOY.to_str, observations.archs)
            seen = dict(zip(archs, observations.values.tolist(), strict=True))
            self.append((seen, len(process.priors)))
            return fit(process, observations, rng)

        def noted_condition(process, archs):
            self.pending.append([TOY.to_str(arch) for arch in archs])
            return condition(process, archs)

        monkeypatch.setattr(GaussianProcess, "fit", noted_fit)
        monkeypatch.setattr(FittedGaussianProcess, "condition", noted_condition)


@pytest.fixture
def fits(monkeypatch):
    return Fits(monkeypatch)


# One trial at a time


@pytest.mark.parametrize("pareto", [None, "layers"])
def test_the_trials_are_those_of_run_bo(monkeypatch, tmp_path, pareto):
    layers = Property("layers", TOY, 0.0, np.ones(TOY.shape))
    monkeypatch.setitem(PROPERTIES, "toy", {"layers": lambda *_: layers})
    config = replace(CONFIG, pareto=pareto)
    executor = LocalExecutor(config.generator("cpu"), ToyEvaluator(), retries=0)
    store = RunStore.open(tmp_path / "run", config)
    optimizer = build_optimizer(config, executor.generator)
    run_study(optimizer, executor, store, Plan(budget=12, n_init=4, batch_size=1, seed=3))
    store.close()
    assert search(searcher(config), 12) == [TOY.to_str(trial.arch) for trial in store.trials]


def test_ask_and_tell_on_a_space_that_no_evaluator_knows(monkeypatch):
    monkeypatch.setitem(SPACES, "mine", replace(TOY, name="mine"))
    found, archs = searcher(replace(CONFIG, space="mine"), max_t=None), []
    for number in range(8):
        config = found.suggest(str(number))
        archs.append(config["arch"])
        found.on_trial_complete(str(number), report(value_of(config)))
    assert archs == search(searcher(), 8)


def test_another_seed_gives_other_trials():
    assert search(searcher(MUTATION), 6) != search(searcher(replace(MUTATION, seed=4)), 6)


def test_a_config_holds_the_architecture_twice():
    space = SPACES["mobilenetv3"]
    config = searcher(RunConfig(strategy="random")).suggest("t0")
    assert config["arch_config"] == space.to_config(space.from_str(config["arch"]))
    json.dumps(config)


def test_min_is_max_of_the_negative():
    expected = search(searcher(MUTATION), 10)
    assert search(searcher(MUTATION, mode="min"), 10, lambda c: -value_of(c)) == expected
    assert search(searcher(MUTATION, mode="min"), 10) != expected


def test_the_unit_of_the_metric_does_not_matter():
    percent = search(searcher(MUTATION), 10, lambda config: 100 * value_of(config))
    assert percent == search(searcher(MUTATION), 10)


def test_constraints_hold_for_all_trials():
    config = RunConfig(strategy="mutation", constraint=("macs<=250e6",), n_init=3)
    (constraint,), space = quantities_of(config).constraints, SPACES["mobilenetv3"]
    archs = search(searcher(config), 6, lambda c: len(c["arch"]))
    assert (constraint.quantity([space.from_str(arch) for arch in archs]) <= 250e6).all()


def test_the_end_of_the_space():
    found = searcher(replace(MUTATION, n_init=141))
    assert len(set(search(found, 144))) == 144
    assert found.suggest("t144") == Searcher.FINISHED


# Several at a time


def test_running_trials_are_pending(fits):
    found = searcher(MUTATION)
    search(found, 5)
    running = [found.suggest(name)["arch"] for name in "abc"]
    assert fits.pending == [running[:1], running[:2]]
    assert len({*running}) == 3
    found.on_trial_complete("b", report(0.5))
    found.suggest("d")
    assert fits.pending[2:] == [[running[0], running[2]]]
    assert fits[-1][0][running[1]] == 0.5


@pytest.mark.parametrize("method", ["guided", "rea"])
def test_nothing_is_proposed_twice(method, rng):
    """As many run at a time as `max_concurrent_trials` allows, ending in random order."""
    config = RunConfig(space="toy", method=method, score="exact", n_init=4, pool_size=20, steps=8)
    found = ConcurrencyLimiter(searcher(config), max_concurrent=4)
    running, archs = {}, []
    for number in range(24):
        running[f"t{number}"] = config = found.suggest(f"t{number}")
        archs.append(config["arch"])
        if len(running) == 4:
            assert found.suggest("one too many") is None
            name = str(rng.choice(sorted(running)))
            found.on_trial_complete(name, report(value_of(running.pop(name))))
    assert len(set(archs)) == 24


def history(found, events=14):
    """Two or three run at a time, and some fail, in an order that is always the same."""
    archs, running, rng = [], {}, np.random.default_rng(1)
    for number in range(events):
        yield archs
        running[f"t{number}"] = config = found().suggest(f"t{number}")
        archs.append(config["arch"])
        if len(running) == 3:
            name = str(rng.choice(sorted(running)))
            config = running.pop(name)
            found().on_trial_result(name, report(value_of(config)))
            found().on_trial_complete(name, report(value_of(config)), error=rng.random() < 0.2)
    yield archs


def test_the_order_of_events_decides_the_trials():
    one, two = searcher(), searcher()
    assert list(history(lambda: one))[-1] == list(history(lambda: two))[-1]


# Trials that come to no value


def no_result(found, name):
    found.on_trial_complete(name)


def error(found, name):
    found.on_trial_result(name, report(0.99))
    found.on_trial_complete(name, error=True)


def not_a_number(found, name):
    found.on_trial_result(name, report(0.99))
    found.on_trial_complete(name, report(float("nan"), 2))


def not_a_number_at_last(found, name):
    found.on_trial_result(name, report(0.99))
    found.on_trial_result(name, report(float("nan"), 2))
    found.on_trial_complete(name)


def too_large(found, name):
    found.on_trial_complete(name, report(-1e200))


def no_metric(found, name):
    found.on_trial_complete(name, {"training_iteration": 1, "done": True})


@pytest.mark.parametrize(
    "end", [no_result, error, not_a_number, not_a_number_at_last, too_large, no_metric]
)
def test_a_failed_trial_is_not_fitted_nor_pending_nor_proposed_again(fits, end):
    found = searcher(MUTATION, max_t=None)
    archs = search(found, 5)
    bad = found.suggest("bad")["arch"]
    end(found, "bad")
    archs += search(found, 8, first=5)
    assert bad not in archs
    assert not any(bad in seen for seen, _ in fits)
    assert not fits.pending


@pytest.mark.parametrize("limit", [lambda found: found, lambda f: ConcurrencyLimiter(f, 9)])
def test_a_failed_trial_that_is_resumed_counts(fits, limit):
    """`Tuner.restore(resume_errored=True)` runs it again under the same name."""
    found = limit(searcher(MUTATION))
    search(found, 5)
    arch = found.suggest("bad")["arch"]
    found.on_trial_complete("bad", error=True)
    found.on_trial_result("bad", report(0.7))
    found.suggest("a")
    assert fits.pending == [[arch]]
    found.on_trial_complete("bad", report(0.7))
    found.suggest("b")
    assert fits[-1][0][arch] == 0.7


def test_trials_it_did_not_suggest_are_none_of_its_business():
    found = searcher(MUTATION)
    found.on_trial_result("stranger", report(1.0))
    found.on_trial_complete("stranger", report(1.0))
    assert search(found, 5) == search(searcher(MUTATION), 5)


# Trials that are stopped early


def curve(found, name, until, values=lambda t: t / 10):
    """Reports up to the time `until`; Tune does not show the searcher the last before the end."""
    for t in range(1, until):
        found.on_trial_result(name, report(values(t), t))
    found.on_trial_complete(name, report(values(until), until, done=True))


def halving(ends, config=MUTATION):
    """A searcher whose first trials ended at these times; and their architectures."""
    found = searcher(config, max_t=MAX_T, grace_period=GRACE_PERIOD)
    archs = []
    for number, end in enumerate(ends):
        archs.append(found.suggest(f"t{number}")["arch"])
        curve(found, f"t{number}", end, lambda t, n=number: (n + 1) * t / 100)
    return found, archs


def test_a_value_of_a_stopped_trial_is_not_taken_for_a_full_one(fits):
    """It is an earlier run to the surrogate, like the others' values at the same time."""
    found, archs = halving([MAX_T, 3, MAX_T, 5])
    running = found.suggest("running")["arch"]
    found.on_trial_result("running", report(0.2, GRACE_PERIOD))
    fits.clear()
    found.suggest("next")
    (early, none), (full, one) = fits
    at_grace_period = {arch: (n + 1) * GRACE_PERIOD / 100 for n, arch in enumerate(archs)}
    assert early == pytest.approx(at_grace_period | {running: 0.2})
    assert full == pytest.approx({archs[0]: 0.09, archs[2]: 0.27})
    assert (none, one) == (0, 1)
    assert fits.pending[-1] == [running]


def test_stopped_trials_are_not_proposed_again():
    found, archs = halving([MAX_T, 3, MAX_T, 3, 3, 3])
    assert not {*archs} & {found.suggest(f"next{i}")["arch"] for i in range(8)}


def test_brief_trials_alone_are_learned_from_as_they_are(fits):
    """Until two have come to the end."""
    found, archs = halving([3, 5, MAX_T, 4])
    found.suggest("next")
    early = {arch: (n + 1) * GRACE_PERIOD / 100 for n, arch in enumerate(archs)}
    assert fits == [(pytest.approx(early), 0)]


def test_without_stopped_trials_there_is_no_earlier_run(fits):
    found, _ = halving([MAX_T] * 4)
    found.suggest("next")
    assert [(len(seen), priors) for seen, priors in fits] == [(4, 0)]


def test_without_max_t_every_end_is_full(fits):
    found = searcher(MUTATION, max_t=None)
    archs = []
    for number, end in enumerate([9, 3, 7, 5]):
        archs.append(found.suggest(f"t{number}")["arch"])
        curve(found, f"t{number}", end)
    found.suggest("next")
    assert fits == [(dict(zip(archs, [0.9, 0.3, 0.7, 0.5], strict=True)), 0)]


def test_another_time_attribute(fits):
    found = searcher(MUTATION, max_t=100, grace_period=10, time_attr="epoch")
    for number, epoch in enumerate([100, 100, 10, 100]):
        found.suggest(f"t{number}")
        found.on_trial_complete(f"t{number}", report(number / 10) | {"epoch": epoch})
    found.suggest("next")
    assert list(fits[-1][0].values()) == [0.0, 0.1, 0.3]
    with pytest.raises(UserError, match="do not report the time_attr epoch"):
        found.on_trial_result("next", report(0.5))


def test_what_low_fidelity_tells_is_learned():
    """Synthetic: values at the grace period that rank all architectures exactly as full ones do.

    Four of forty are trained in full: what the others tell is worth more than their absence.
    """
    values = {TOY.to_str(arch): ToyEvaluator().evaluate(arch, seed=0).value for arch in ARCHS}
    config = replace(CONFIG, strategy="random", pool_size=144, acq="pi", n_init=40)
    found = searcher(config, max_t=MAX_T, grace_period=GRACE_PERIOD)
    without, seen = searcher(config, max_t=None), set()
    for number in range(40):
        name = f"t{number}"
        arch = found.suggest(name)["arch"]
        assert arch == without.suggest(name)["arch"]
        seen.add(arch)
        found.on_trial_result(name, report(values[arch] - 3, GRACE_PERIOD))
        end = MAX_T if number < 4 else GRACE_PERIOD
        found.on_trial_complete(name, report(values[arch] - (end < MAX_T) * 3, end))
        without.on_trial_complete(name, report(values[arch]), error=end < MAX_T)
    unseen = values.keys() - seen
    best = sorted(unseen, key=values.__getitem__)[-5:]
    assert found.suggest("next")["arch"] in best
    assert without.suggest("next")["arch"] not in best


# Save and restore


@pytest.mark.parametrize("config", [CONFIG, MUTATION], ids=["guided", "mutation"])
def test_a_restored_search_goes_on_as_if_nothing_had_happened(tmp_path, config):
    """Saved before every suggestion, as Tune does now and then, and restored into a new object."""
    undisturbed = searcher(config)
    expected = list(history(lambda: undisturbed))[-1]
    current = [searcher(config)]
    for _ in (steps := history(lambda: current[0])):
        current[0].save(str(tmp_path / "state"))
        current[0] = searcher(config)
        current[0].restore(str(tmp_path / "state"))
    assert list(steps) == []
    current[0].save(str(tmp_path / "state"))
    trials = json.loads((tmp_path / "state").read_text())["trials"]
    assert [trial["arch"] for trial in trials.values()] == expected


def test_the_state_keeps_what_brief_trials_told(tmp_path, fits):
    found, _ = halving([MAX_T, 3, MAX_T, 5])
    found.save_to_dir(str(tmp_path), "2026-01-01")
    again = searcher(MUTATION, max_t=MAX_T, grace_period=GRACE_PERIOD)
    again.restore_from_dir(str(tmp_path))
    assert again.suggest("next") == found.suggest("next")
    assert fits[:2] == fits[2:]


def test_it_is_pickled_small_and_works_elsewhere():
    """Tune pickles the searcher when a search begins."""
    found = searcher(MUTATION)
    search(found, 5)
    data = pickle.dumps(found)
    assert len(data) < 5_000
    assert search(pickle.loads(data), 5, first=5) == search(found, 5, first=5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"mode": "min"}, "'mode': 'max'"),
        ({"metric": "loss"}, "'metric': 'value'"),
        ({"config": RunConfig(strategy="random")}, "'space': 'toy'"),
    ],
)
def test_a_state_of_another_objective_is_refused(tmp_path, other, message):
    searcher(MUTATION).save(str(tmp_path / "state"))
    with pytest.raises(UserError, match=message):
        searcher(**{"config": MUTATION} | other).restore(str(tmp_path / "state"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trials": 1}'])
def test_a_damaged_state_is_one_line(tmp_path, text):
    (tmp_path / "state").write_text(text)
    with pytest.raises(UserError, match=r"cannot restore from .*state: ") as error:
        searcher(MUTATION).restore(str(tmp_path / "state"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "unknown mode 'best': choose from max, min"),
        ({"metric": ""}, "metric must be the name"),
        ({"grace_period": 0}, "grace_period 0 must be positive"),
        ({"grace_period": math.nan}, "grace_period nan must be positive and finite"),
        ({"max_t": 2, "grace_period": 3}, "max_t 2 must be at least grace_period 3"),
        ({"max_t": math.nan}, "max_t nan must be at least grace_period 1"),
        ({"config": RunConfig(method="bohb")}, "bohb schedules brief trainings itself"),
        (
            {"config": replace(CONFIG, guidance_form="target", target=90.0, acq="target")},
            "a target is not supported: it is in perc",
        ),
        ({"config": replace(CONFIG, score="network")}, "no trained weights ship for space 'toy'"),
        ({"config": RunConfig(constraint=("macs<=1",))}, "no architecture of mobilenetv3"),
        (
            {"config": RunConfig(constraint=("macs<=1.3e8", "params>=7e6"))},
            "no architecture found that satisfies macs<=1.3e8 and params>=7e6",
        ),
        ({"device": "warp"}, "device 'warp' is not available"),
    ],
)
def test_bad_settings_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        searcher(**options)
    assert "\n" not in str(error.value)
