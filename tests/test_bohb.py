"""BOHB: its densities, its brackets, what a trial of low fidelity costs, and where it counts.

The table is synthetic: its values mean nothing.
"""

import itertools
import json
from contextlib import closing
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from test_loop import InterruptAt
from toy_law import ARCHS as TOY_ARCHS

from acquisition.base import Pool, Unwanted, fresh
from acquisition.decisions import one_hot
from acquisition.parzen import ParzenEstimator, kernels, log_density
from nag.cli import run
from nag.errors import UserError
from nag.predictors.base import Observations
from nag.spaces import Architecture
from nag.spaces.nasbench201 import INPUT, NASBENCH201, OUTPUT
from nag.spaces.toy import TOY
from orchestrator.build import (
    build_evaluator_here,
    build_executor,
    build_optimizer,
    make_evaluator,
    plan_of,
)
from orchestrator.comparison.diagnostics import diagnose
from orchestrator.config import RunConfig
from orchestrator.experiments.jobs import Search
from orchestrator.history.run import read_run
from orchestrator.history.trials import Outcome
from orchestrator.propose import read_observations
from orchestrator.reporting.run_report import write_report
from orchestrator.run_bo import app
from orchestrator.runtime import Runtime
from orchestrator.search.bayesopt import BayesianOptimizer, Suggestion
from orchestrator.search.halving import SuccessiveHalving
from orchestrator.search.loop import run_study
from orchestrator.search.store import RunStore
from trainers.base import at_epochs
from trainers.evaluators.table import TableEvaluator
from trainers.evaluators.toy import ToyEvaluator
from trainers.training.task import NetworkOptions

NONE = Observations((), np.empty(0))
LOCAL = Runtime(executor="local", device="cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """All cells: a synthetic value, and after 12 epochs a noisy one that is half as large."""
    cells = [
        Architecture("nasbench201", (INPUT, *ops, OUTPUT))
        for ops in itertools.product(range(2, 7), repeat=6)
    ]
    rng = np.random.default_rng(0)
    reward = rng.standard_normal(NASBENCH201.shape)
    value = 80 + (NASBENCH201.encode(cells).numpy() * reward).sum((1, 2))
    columns = {
        "arch": [NASBENCH201.to_str(cell) for cell in cells],
        "c10_valid_200": value,
        "c10_test_200": value + 1,
        "c10_valid_12": value / 2 + rng.standard_normal(len(cells)),
        "c10_test_12": value / 2 + 1,
        "c10_train_time_200_s": np.full(len(cells), 2000.0),
        "in16_valid_200": value / 3,
    }
    path = tmp_path_factory.mktemp("table") / "synthetic.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


@pytest.fixture
def config(table):
    return RunConfig(
        space="nasbench201", table=table, method="bohb", score="exact", budget=14, n_init=10
    )


def study(out, config, observers=()):
    """Open or reopen the run in `out`, go on with it, and return the closed store."""
    with (
        closing(build_executor(config, LOCAL, build_evaluator_here(config, LOCAL))) as executor,
        closing(RunStore.open(out, config)) as store,
    ):
        run_study(
            build_optimizer(config, executor.generator),
            executor,
            store,
            plan_of(config),
            observers=observers,
        )
    return store


# Densities.


def test_kernels_by_hand():
    """Two architectures: they differ in the second operator, and in the depth of stage 2."""
    found = kernels(TOY, one_hot(TOY, [TOY.from_str("aa/aa"), TOY.from_str("ab/a-")]))
    h = 1.06 * 0.5 * 2 ** (-1 / 10)  # s^2 = 1/2 * 1/2; D = 6
    e = 1e-3  # no spread: the least bandwidth
    shared = [[e, 1 - e, 0], [1 - e, e / 2, e / 2]]  # depth 2; operator a
    first = [*shared, [1 - h, h / 2, h / 2], [h, 1 - h, 0], shared[1], shared[1]]
    second = [*shared, [h / 2, 1 - h, h / 2], [1 - h, h, 0], shared[1], [1 / 3] * 3]
    np.testing.assert_allclose(found, [first, second], rtol=1e-12)


def test_a_bandwidth_is_at_most_that_of_the_uniform_law():
    found = kernels(TOY, one_hot(TOY, [TOY.from_str("aa/aa"), TOY.from_str("bb/bb")]), widening=9)
    np.testing.assert_allclose(found[:, 1], 1 / 3)


@pytest.mark.parametrize("n", [1, 7, 30])
def test_a_density_is_one_over_the_space(n):
    archs = TOY.sample(n, np.random.default_rng(n))
    density = np.exp(log_density(kernels(TOY, one_hot(TOY, archs)), one_hot(TOY, TOY_ARCHS)))
    assert len(density) == 144
    assert density.sum() == pytest.approx(1)


def test_the_density_is_a_mean_of_products():
    around = kernels(TOY, one_hot(TOY, [TOY.from_str("aa/aa"), TOY.from_str("ab/a-")]))
    (found,) = log_density(around, one_hot(TOY, [TOY.from_str("ab/c-")]))
    products = [
        law[0, 1] * law[1, 0] * law[2, 1] * law[3, 0] * law[4, 2]  # no second operator in stage 2
        for law in around
    ]
    assert found == pytest.approx(np.log(np.mean(products)))


@pytest.mark.parametrize(
    ("total", "num_good", "num_bad"), [(9, 7, 7), (14, 7, 7), (20, 7, 13), (100, 15, 85)]
)
def test_parts_of_the_observations(total, num_good, num_bad):
    """max(D + 1, 0.15 N) good ones and max(D + 1, N - as many) bad ones, D = 6."""
    rng = np.random.default_rng(0)
    archs = tuple(TOY_ARCHS[i] for i in rng.permutation(144)[:total])
    values = rng.permutation(total).astype(float)
    order = np.argsort(-values)
    good, bad = ParzenEstimator(TOY).parts(Observations(archs, values))
    np.testing.assert_array_equal(good, one_hot(TOY, [archs[i] for i in order[:num_good]]))
    np.testing.assert_array_equal(bad, one_hot(TOY, [archs[i] for i in order[-num_bad:]]))


def test_what_is_proposed_is_good_under_l_and_bad_under_g():
    """Synthetic: values count the third operator; many draws find the largest ratio there is."""
    rng = np.random.default_rng(0)
    cells = tuple(dict.fromkeys(NASBENCH201.sample(200, rng)))
    count = np.array([cell.ops.count(5) for cell in cells], dtype=float)
    observations = Observations(cells, count)

    def mean(draws):
        archs = ParzenEstimator(NASBENCH201, draws=draws).propose(
            50, observations, None, Unwanted(frozenset(cells)), np.random.default_rng(1)
        )
        return np.mean([cell.ops.count(5) for cell in archs.archs])

    assert mean(1) < mean(4) < mean(64)
    assert mean(4) > count.mean() + 0.5


def test_wider_draws_are_farther_from_the_good():
    """Synthetic: the good cells have one operator in most places; wide draws are near uniform."""
    rng = np.random.default_rng(0)
    cells = tuple(dict.fromkeys(NASBENCH201.sample(300, rng)))
    count = np.array([cell.ops.count(5) for cell in cells], dtype=float)

    def mean(widening):
        archs = ParzenEstimator(NASBENCH201, draws=1, share=0.05, widening=widening).propose(
            100,
            Observations(cells, count),
            None,
            Unwanted(frozenset(cells)),
            np.random.default_rng(1),
        )
        return np.mean([cell.ops.count(5) for cell in archs.archs])

    assert mean(1) > mean(30) + 0.5
    assert mean(30) == pytest.approx(6 / 5, abs=0.3)  # of 6 operators, each of 5 as likely


def test_with_too_few_points_it_is_random():
    assert ParzenEstimator(TOY).min_points == ParzenEstimator(NASBENCH201).min_points == 9
    archs = tuple(TOY_ARCHS[:8])
    few = Observations(archs, np.arange(8.0))
    found = ParzenEstimator(TOY).propose(
        4, few, None, Unwanted(frozenset()), np.random.default_rng(0)
    )
    assert found.archs == tuple(dict.fromkeys(TOY.sample(100, np.random.default_rng(0))))[:4]


# Brackets.


class Recording:
    """A strategy that writes down what it is given and proposes the first architectures."""

    def __init__(self):
        self.given = []

    def propose(self, n, observations, predictor, exclude, rng):
        self.given.append((n, observations))
        return Pool(tuple(fresh(TOY_ARCHS, exclude))[:n])


@pytest.fixture
def recording():
    return Recording()


@pytest.fixture
def halving(recording):
    candidates = BayesianOptimizer(TOY, None, recording, None, "bohb", 100)
    return SuccessiveHalving(candidates, epochs=12, enough=9)


def observed(n, first=0):
    return Observations(tuple(TOY_ARCHS[first : first + n]), np.arange(n, dtype=float))


@pytest.mark.parametrize(("n", "promoted"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_the_best_of_every_three_are_promoted(halving, n, promoted):
    rung = observed(n)
    found = halving.suggest(NONE, rung, rung, set(rung.archs), 1, np.random.default_rng(0))
    assert found.archs == rung.archs[::-1][:promoted]
    assert found.epochs is None


@pytest.mark.parametrize("count", [1, 4])
def test_three_times_the_batch_is_trained_briefly(halving, recording, count):
    full = observed(10)
    found = halving.suggest(full, NONE, NONE, set(full.archs), count, np.random.default_rng(0))
    assert found.archs == tuple(TOY_ARCHS[10 : 10 + 3 * count])
    assert found.epochs == 12
    assert recording.given[0][0] == 3 * count


@pytest.mark.parametrize(("n", "is_full"), [(8, False), (9, True)])
def test_the_highest_fidelity_with_enough_points_is_modelled(halving, recording, n, is_full):
    full, low = observed(n), observed(20, first=20)
    halving.suggest(full, low, NONE, frozenset(), 1, np.random.default_rng(0))
    assert recording.given[0][1].archs == (full if is_full else low).archs


# A run.


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_alternates_and_counts_its_cost(tmp_path, config, batch):
    store = study(tmp_path / "run", replace(config, batch_size=batch))
    epochs = [trial.epochs for trial in store.trials]
    bracket = [12] * 3 * batch + [None] * batch
    assert epochs[:10] == [None] * 10
    assert epochs[10:] == (bracket * 4)[: len(epochs) - 10]
    assert store.spent >= 14 > store.spent - 1
    finished = [t for t in store.trials if t.trial in store.outcomes]
    assert store.spent == sum(Fraction(trial.epochs or 200, 200) for trial in finished)
    rounds = [list(group) for _, group in itertools.groupby(store.trials, lambda t: t.iteration)]
    for low, full in itertools.pairwise(rounds[1:]):
        if low[0].epochs:
            values = {t.arch: store.outcomes[t.trial].value for t in low}
            best = sorted(values, key=values.get, reverse=True)[:batch]
            assert [t.arch for t in full] == best
    low = [t.arch for t in store.trials if t.epochs]
    assert len(set(low)) == len(low)


def test_values_of_low_fidelity_are_kept_apart(tmp_path, config):
    store = study(tmp_path / "run", config)
    full = [t for t in store.trials if t.epochs is None and t.trial in store.outcomes]
    assert store.observations().archs == tuple(t.arch for t in full)
    assert store.low_fidelity().archs == tuple(t.arch for t in store.trials if t.epochs)
    assert store.low_fidelity().values.max() < 0.5 < store.observations().values.min()
    assert store.best[1] == store.observations().best
    rows = pd.read_parquet(store.out / "trials.parquet")
    assert rows.epochs.isna().sum() == len(full)
    assert set(rows.train_seconds[rows.epochs == 12]) == {120.0}
    assert set(rows.train_seconds[rows.epochs.isna()]) == {2000.0}
    found, seen = read_observations(NASBENCH201, [store.out / "trials.parquet"])
    assert len(found) == len(full)
    assert len(seen) == len({trial.arch for trial in store.trials})


def test_a_run_of_one_fidelity_has_no_epochs(tmp_path, config):
    parts = {"surrogate": "none", "strategy": "random"}
    store = study(tmp_path / "run", replace(config, **parts, budget=11))
    assert "epochs" not in (store.out / "journal.jsonl").read_text()
    assert "epochs" not in pd.read_parquet(store.out / "trials.parquet")
    assert store.spent == store.num_finished == 11
    assert not len(store.low_fidelity()) + len(store.rung())


def test_a_run_that_is_interrupted_anywhere_ends_the_same(tmp_path, config):
    config = replace(config, batch_size=2)
    whole = study(tmp_path / "whole", config)
    events = len((whole.out / "journal.jsonl").read_bytes().splitlines())
    for n in range(10, events):
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / str(n), config, (InterruptAt(n),))
        again = study(tmp_path / str(n), config)
        assert again.trials == whole.trials
        assert {k: o.value for k, o in again.outcomes.items()} == {
            k: o.value for k, o in whole.outcomes.items()
        }
        assert again.spent == whole.spent
    longer = study(tmp_path / "whole", replace(config, budget=17))
    assert longer.trials[: len(whole.trials)] == whole.trials
    assert longer.spent >= 17


def test_failures_of_a_rung_are_not_promoted(tmp_path, config):
    out = tmp_path / "run"
    with closing(RunStore.open(out, config)) as store:
        cells = tuple(dict.fromkeys(NASBENCH201.sample(9, np.random.default_rng(0))))[:6]
        store.propose(Suggestion(cells[:3], "bohb", (None,) * 3, epochs=12))
        store.record(Outcome(0, "failed", error="EvaluationError: synthetic"))
        store.record(Outcome(1, "ok", 0.3))
        store.record(Outcome(2, "ok", 0.4))
        assert store.rung().archs == cells[1:3]
        store.propose(Suggestion(cells[2:3], "bohb", (None,)))
        assert len(store.rung()) == 0
        store.record(Outcome(3, "failed", error="EvaluationError: synthetic"))
        assert len(store.rung()) == len(store.observations()) == 0
        assert store.best is None
        assert store.spent == 1 + 3 * Fraction(12, 200)


def test_constraints_hold_at_both_fidelities(tmp_path, config):
    store = study(tmp_path / "run", replace(config, constraint=("params<=0.5e6",)))
    assert {trial.epochs for trial in store.trials} == {None, 12}
    assert all(outcome.metrics["params"] <= 0.5e6 for outcome in store.outcomes.values())


def test_progress_of_an_experiment_is_its_cost(tmp_path, config):
    search = Search(config)
    assert search.progress(tmp_path) == (0, False)
    study(tmp_path / search.label, replace(config, budget=12))
    assert search.progress(tmp_path) == (12, False)
    study(tmp_path / search.label, config)
    assert search.progress(tmp_path) == (14, True)


# Reports.


def test_curves_are_over_cost_and_of_full_fidelity(tmp_path, config):
    """By hand: two full trials, a bracket of three and one, and the next bracket."""
    out = tmp_path / "run"
    cells = tuple(dict.fromkeys(NASBENCH201.sample(30, np.random.default_rng(0))))
    rounds = [(2, None), (3, 12), (1, None), (3, 12), (1, None)]
    values = iter([0.5, 0.6, 0.9, 0.95, 0.8, 0.7, 0.99, 0.99, 0.99, 0.8])
    with closing(RunStore.open(out, replace(config, n_init=2, budget=3))) as store:
        first = 0
        for size, epochs in rounds:
            archs = cells[first : first + size]
            for trial in store.propose(Suggestion(archs, "x", (None,) * size, epochs=epochs)):
                store.record(Outcome(trial.trial, "ok", next(values), {"test": 0.9}))
            first += size
        write_report(store)
    found = read_run(out)
    ends = [1, 2, 2.06, 2.12, 2.18, 3.18, 3.24, 3.3, 3.36, 4.36]
    np.testing.assert_allclose(found.ends, ends)
    assert len(found) == 4
    assert found.complete
    assert (found.num_failed, found.num_low, found.num_finished) == (0, 6, 10)
    assert found.after_evaluations(found.of_incumbent("value")).tolist() == [0.5, 0.6, 0.6, 0.7]
    assert found.of_incumbent("value").max() == 0.8
    assert np.isnan(found.columns["test"]).sum() == 6
    assert diagnose(found, 2, 1)["evaluate"].shape == (1,)
    page = (out / "report.html").read_text()
    assert "6 low-fidelity trials" in page
    assert "4.36 of 3" in page
    assert "99.0" not in page


# Fidelities of an evaluator.


def test_the_fidelities_of_a_table(table):
    cell = NASBENCH201.sample(1, np.random.default_rng(0))[0]
    full = TableEvaluator(table)
    low = at_epochs(full, 12)
    assert at_epochs(full, None) is full
    assert at_epochs(full, 12) is low
    (row,) = pd.read_parquet(table).query("arch == @NASBENCH201.to_str(@cell)").itertuples()
    assert low.evaluate(cell, seed=0).value == pytest.approx(row.c10_valid_12 / 100)
    assert low.evaluate(cell, seed=0).metrics["test"] == pytest.approx(row.c10_test_12 / 100)
    assert full.evaluate(cell, seed=0).value == pytest.approx(row.c10_valid_200 / 100)
    with pytest.raises(UserError, match=r"no column c10_valid_90; .* has: none"):
        full.at(90)


def test_other_evaluators_have_none(config):
    with pytest.raises(UserError, match="no accuracies after 12 epochs: choose"):
        at_epochs(ToyEvaluator(), 12)
    constrained = make_evaluator(replace(config, constraint=("params<=1e6",)))
    assert at_epochs(constrained, 12).evaluator is at_epochs(constrained.evaluator, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--space", "toy"), "no accuracies after 12 epochs: choose"),
        (("--space", "mobilenetv3"), "no accuracies after 12 epochs: choose"),
        (
            ("--space", "nasbench201", "--table", "TABLE", "--dataset", "imagenet16-120"),
            "no column in16_valid_12; accuracies it has: c10_valid_12, c10_test_12\n",
        ),
        (("--space", "nasbench201", "--table", "TABLE", "--surrogate", "gp"), "its own model"),
    ],
    ids=str,
)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_without_low_fidelity_nothing_starts(
    options, message, executor, table, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = [str(table) if option == "TABLE" else option for option in options]
    with pytest.raises(SystemExit) as exit_:
        run(app, ["--method", "bohb", "--score", "exact", "--executor", executor, *options])
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert message in captured.err
    assert not list(tmp_path.iterdir())


def test_what_brief_training_has_less_of_needs_brief_training():
    networks = NetworkOptions(fidelity="images")
    RunConfig(space="nasbench201", evaluator="train", method="bohb", networks=networks)
    with pytest.raises(UserError, match="--fidelity requires --method bohb"):
        RunConfig(space="nasbench201", evaluator="train", networks=networks)


def test_the_command(table, tmp_path, capsys):
    settings = ["--space", "nasbench201", "--table", str(table), "--method", "bohb"]
    settings += ["--executor", "local", "--budget", "11"]
    with pytest.raises(SystemExit) as exit_:
        run(app, [*settings, "--out", str(tmp_path / "run")])
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.err) == (0, "")
    assert "\n[10.06/11] trial 10 bohb  value " in captured.out
    assert " % after 12/200 of a training  best " in captured.out
    assert "\n[11.18/11] trial 13 bohb  value " in captured.out
    assert "exhausted" not in captured.out


@pytest.mark.ray
@pytest.mark.slow
def test_the_trials_on_ray_are_those_of_a_local_run(table, tmp_path, capsys):
    settings = ["--space", "nasbench201", "--table", str(table), "--method", "bohb"]
    settings += ["--score", "exact", "--budget", "16", "--batch-size", "3"]
    ray = ["--executor", "ray", "--workers", "2", "--auth", "disabled", "--no-dashboard"]
    found = {}
    for name, where in (("local", ["--executor", "local"]), ("ray", ray)):
        with pytest.raises(SystemExit) as exit_:
            run(app, [*settings, *where, "--out", str(tmp_path / name)])
        assert exit_.value.code == 0, capsys.readouterr()
        rows = pd.read_parquet(tmp_path / name / "trials.parquet")
        found[name] = rows[["trial", "arch", "value", "epochs"]].to_json()
    assert found["ray"] == found["local"]


def test_on_the_published_table(data_dir, tmp_path):
    config = RunConfig(
        space="nasbench201",
        table=data_dir / "nb201.parquet",
        dataset="cifar100",
        objective="test",
        method="bohb",
        score="exact",
        budget=40,
    )
    store = study(tmp_path / "run", config)
    columns = ["arch", "c100_test_12", "c100_test_200"]
    known = pd.read_parquet(config.table, columns=columns).set_index("arch")
    rows = pd.read_parquet(store.out / "trials.parquet")
    for row in rows.itertuples():
        column = "c100_test_200" if np.isnan(row.epochs) else "c100_test_12"
        assert row.value == pytest.approx(known[column][row.arch], abs=1e-4)
    assert rows.epochs.notna().sum() == 3 * (rows.epochs.isna().sum() - 10)
    assert json.loads((store.out / "config.json").read_text())["config"]["strategy"] == "bohb"
    with pytest.raises(UserError, match="no column in16_valid_"):
        build_evaluator_here(replace(config, dataset="imagenet16-120", objective="valid"), LOCAL)
