"""The comparison of runs: its statistics, what it reads, and the page, tables and figures it makes.

The runs are synthetic: they are made with the real store, and their values mean nothing.
"""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_page import check_page, svgs, undrawn
from scipy import stats

from nag.cli import run
from nag.errors import UserError
from nag.spaces import SPACES
from orchestrator.comparison.checklist import panel_checklist
from orchestrator.comparison.diagnostics import diagnose
from orchestrator.comparison.figures import Line, Look, draw_diagnostics
from orchestrator.comparison.files import data_checksums
from orchestrator.comparison.panels import Panel, make_panels, slugs
from orchestrator.comparison.statistics import (
    area_under,
    censored_quartiles,
    compare,
    compare_all,
    evaluations_to,
    holm,
    list_schedule,
    mean_interval,
    nemenyi_difference,
    pointwise_interval,
    rank_methods,
    signed_rank_test,
)
from orchestrator.comparison.summary import Curve, Settings, Summary, summarise
from orchestrator.comparison.tables import Cell, Table, accuracy_table, published, to_latex
from orchestrator.config import RunConfig
from orchestrator.history.find import Source, find_runs, read_runs
from orchestrator.history.record import DamagedRunError
from orchestrator.history.run import best_so_far, read_run
from orchestrator.history.trials import Outcome
from orchestrator.report import app
from orchestrator.reporting.checklist import NOT_RECORDED
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore

# q at 5 % for 2, 3, ... methods: Demsar, "Statistical comparisons of classifiers over multiple data
# sets", JMLR 2006, table 5.
NEMENYI_Q = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)

# Weeks in remission, Freireich et al. 1963, the usual example of Kaplan-Meier curves.
TREATED = (6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35)
TREATED_CENSORED = (0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1)
CONTROL = (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_interval_of_a_mean(n: int, rng: np.random.Generator) -> None:
    values = rng.normal(size=n)
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.n == n
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_intervals_without_enough_seeds() -> None:
    assert mean_interval([]) is None
    single = mean_interval([0.5])
    assert single.mean == 0.5
    assert np.isnan(single.low)
    assert np.isnan(single.high)


def test_a_point_is_over_the_seeds_that_have_come_so_far(rng: np.random.Generator) -> None:
    curves = rng.normal(size=(4, 5))
    curves[1, 3:] = curves[2:, 4] = np.nan
    mean, half = pointwise_interval(curves)
    for i, rows in enumerate((4, 4, 4, 3)):
        kept = curves[~np.isnan(curves[:, i]), i]
        assert len(kept) == rows
        one = mean_interval(kept)
        assert (mean[i], half[i]) == pytest.approx((one.mean, one.half))
    assert mean[4] == curves[0, 4]
    assert np.isnan(half[4])


def test_best_so_far_is_the_first_of_equals() -> None:
    values = np.array([np.nan, 0.2, 0.1, np.nan, 0.3, 0.3, 0.25])
    assert best_so_far(values).tolist() == [-1, 1, 1, 1, 4, 4, 4]
    assert best_so_far(np.array([])).tolist() == []


def test_area_by_hand() -> None:
    curve = np.array([0.1, 0.2, 0.4, 0.4, 0.8])
    # evaluations 3, 4, 5 on the scale from 0.2 to 0.8: 1/3, 1/3, 1
    assert area_under(curve, 2, 5, 0.2, 0.8) == pytest.approx(5 / 9)
    assert area_under(np.full(5, 0.8), 2, 5, 0.2, 0.8) == pytest.approx(1)
    assert np.isnan(area_under(curve, 2, 5, 0.8, 0.8))


def test_evaluations_to_a_target() -> None:
    curve = np.array([np.nan, 0.2, 0.2, 0.5])
    assert evaluations_to(curve, 0.2) == 2
    assert evaluations_to(curve, 0.5 + 1e-12) == 4
    assert evaluations_to(curve, 0.6) is None


@pytest.mark.parametrize("unit", [1e-12, 1e-3, 1e12])
def test_the_unit_of_values_does_not_matter(unit: float, rng: np.random.Generator) -> None:
    values = {name: dict(enumerate(rng.normal(i / 2, 1, 9))) for i, name in enumerate("abc")}
    values["c"][0] = values["a"][0]  # a tie
    scaled = {name: {s: unit * v for s, v in found.items()} for name, found in values.items()}
    tests = zip(compare_all(scaled), compare_all(values), strict=True)
    for found, expected in tests:
        assert found == replace(expected, median=pytest.approx(unit * expected.median))
    found, expected = rank_methods(scaled), rank_methods(values)
    assert found is not None
    assert expected is not None
    assert found == expected
    curve = np.maximum.accumulate(list(values["a"].values()))
    for target in curve:
        assert evaluations_to(unit * curve, unit * target) == evaluations_to(curve, target)


@pytest.mark.parametrize("times", [[3], [4, 1], [5, 1, 3], [1, 2, 3, 4], [2, 2, 7, 7, 7, 9]])
def test_the_median_without_censoring_is_the_usual_one(times: list[float]) -> None:
    assert censored_quartiles(times, [False] * len(times))[1] == np.median(times)


def test_censored_medians_of_the_textbook_example() -> None:
    assert censored_quartiles(TREATED, [bool(c) for c in TREATED_CENSORED])[1] == 23
    assert censored_quartiles(CONTROL, [False] * len(CONTROL))[1] == 8


def test_too_much_censoring_leaves_a_quantile_open() -> None:
    times, censored = [5, 8, 50, 50, 50, 50], [False, False, True, True, True, True]
    assert censored_quartiles(times, censored) == (8, np.inf, np.inf)
    assert censored_quartiles([50, 50], [True, True])[1] == np.inf
    # half of them: later than the last that is known, but nobody knows when
    assert censored_quartiles([5, 50], [False, True])[1] == np.inf
    # a run that ends early says nothing about later times
    assert censored_quartiles([3, 10, 10, 10], [True, False, False, False])[1] == 10


@pytest.mark.parametrize("n", [1, 4, 9, 20, 45])
def test_signed_ranks_without_ties_as_scipy_has_them(n: int, rng: np.random.Generator) -> None:
    differences = rng.normal(0.3, 1, n)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank_test(differences)[1] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_signed_ranks_with_ties_by_counting_all_signs(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-3, 5, 9).astype(float)
    kept = differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(kept))]
    found = ranks[kept > 0].sum()
    tail = min(np.mean(np.array(sums) <= found), np.mean(np.array(sums) >= found))
    assert signed_rank_test(differences)[1] == pytest.approx(min(1, 2 * tail))


def test_five_seeds_cannot_show_more_than_this() -> None:
    assert signed_rank_test(np.ones(5)) == (15, 2 / 2**5)
    assert signed_rank_test(np.zeros(5)) == (0, 1)
    assert signed_rank_test(np.empty(0)) == (0, 1)


def test_holm_by_hand() -> None:
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_a_comparison_pairs_by_seed() -> None:
    first, second = {0: 0.5, 1: 0.7, 2: 0.3, 9: 0.9}, {0: 0.4, 1: 0.7, 2: 0.5, 3: 0.1}
    found = compare("a", "b", first, second)
    assert (found.n, found.wins, found.ties, found.losses) == (3, 1, 1, 1)
    assert found.median == 0
    back = found.reversed()
    assert (back.a, back.wins, back.losses, back.p) == ("b", 1, 1, found.p)


def test_the_better_one_is_the_one_that_the_test_finds_better() -> None:
    """Of 32 small wins and 28 large losses."""
    wins, losses = np.linspace(0.001, 0.002, 32), np.linspace(0.1, 0.2, 28)
    first = dict(enumerate([*wins, *-losses]))
    found = compare("a", "b", first, dict.fromkeys(first, 0.0))
    assert found.wins > found.losses
    assert found.median > 0
    assert found.p < 0.05
    assert not found.a_is_better
    assert found.reversed().a_is_better


def test_differences_that_only_rounding_makes_are_ties() -> None:
    assert compare("a", "b", {0: 0.1 + 0.2}, {0: 0.3}).ties == 1
    assert compare("a", "b", {0: 1e12 * (0.1 + 0.2)}, {0: 0.3e12}).ties == 1


def test_pairs_and_reference(rng: np.random.Generator) -> None:
    values = {name: dict(enumerate(rng.normal(i, 1, 8))) for i, name in enumerate("abc")}
    pairs = compare_all(values)
    assert [(one.a, one.b) for one in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one.p_holm for one in pairs] == pytest.approx(holm([one.p for one in pairs]))
    against = compare_all(values, "c")
    assert [(one.a, one.b) for one in against] == [("c", "a"), ("c", "b")]
    assert [one.p_holm for one in against] == pytest.approx(holm([one.p for one in against]))
    assert compare_all({**values, "d": {}}, "d") == []
    assert against[0].significant
    assert against[0].a_is_better


@pytest.mark.parametrize(("methods", "q"), list(enumerate(NEMENYI_Q, start=2)))
def test_critical_differences_of_the_published_table(methods: int, q: float) -> None:
    expected = q * np.sqrt(methods * (methods + 1) / (6 * 20))
    assert nemenyi_difference(methods, 20) == pytest.approx(expected, abs=1.1e-3)


def test_ranks_and_friedman() -> None:
    table = np.array([[3, 2, 1, 0], [9, 8, 8, 1], [0.3, 0.4, 0.2, 0.1]])
    values = {name: dict(enumerate(column)) for name, column in zip("abcd", table.T, strict=True)}
    ranking = rank_methods({**values, "d": {**values["d"], 7: 5.0}})
    assert ranking.names == ("a", "b", "c", "d")
    assert ranking.ranks == pytest.approx(((1 + 1 + 2) / 3, (2 + 2.5 + 1) / 3, 8.5 / 3, 4))
    assert ranking.n == 3
    assert ranking.p == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    assert rank_methods({"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0, 1: 2.0}}) is None
    assert rank_methods({name: {i: 1.0} for i, name in enumerate("abc")}) is None
    same = rank_methods({name: {0: 1.0, 1: 1.0} for name in "abc"})
    assert same.ranks == (2, 2, 2)
    assert same.p == 1


def test_cliques_are_the_largest_groups() -> None:
    values = {name: dict.fromkeys(range(20), -i) for i, name in enumerate("abcdef")}
    ranking = rank_methods(values)  # ranks 1 ... 6, a difference of 1.69
    assert ranking.cliques() == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    wide = rank_methods({k: {s: v for s, v in values[k].items() if s < 4} for k in "abcd"})
    assert wide.critical_difference == pytest.approx(2.345, abs=1e-3)
    assert wide.cliques() == [(0, 2), (1, 3)]


def test_a_schedule_by_hand() -> None:
    seconds = np.array([4.0, 1.0, 2.0, 5.0, 1.0])
    rounds = np.array([0, 0, 0, 1, 1])
    # two workers: 0 | 1 side by side, 2 after 1; round 1 begins at 4
    assert list_schedule(seconds, rounds, 2).tolist() == [4, 1, 3, 9, 5]
    assert list_schedule(seconds, rounds, 1).tolist() == [4, 5, 7, 12, 13]
    assert list_schedule(seconds, rounds, 9).tolist() == [4, 1, 2, 9, 5]
    assert list_schedule(seconds, np.zeros(5), 2).tolist() == [4, 1, 3, 8, 5]
    # two rounds may be open: 3 is of round 1 and takes the worker that is free at 3, 4 of round 2
    # waits for the end of round 0 at 4
    later = np.array([0, 0, 0, 1, 2])
    assert list_schedule(seconds, later, 2, window=2).tolist() == [4, 1, 3, 8, 5]
    assert list_schedule(seconds, later, 9, window=2).tolist() == [4, 1, 2, 5, 5]
    assert list_schedule(np.empty(0), np.empty(0), 2).tolist() == []


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that makes a synthetic run with the real store."""

    def run_of(
        name: str,
        values: Sequence[float | None],
        *,
        test: bool = False,
        seconds: Sequence[float] = (),
        macs: Sequence[float] = (),
        pending: Sequence[int] = (),
        predict: bool = True,
        exhausted: bool = False,
        patience: int | None = None,
        **settings,
    ) -> Path:
        defaults = {"space": "toy", "score": "exact", "strategy": "random", "acq": "ei"}
        defaults |= {"n_init": 2, "budget": len(values), "seed": 0}
        config = RunConfig(**{**defaults, **settings})
        space = SPACES[config.space]
        rng = np.random.default_rng(config.seed)
        store = RunStore.open(tmp_path / "runs" / name, config)
        archs = space.sample(len(values), rng)
        starts = [0, *range(config.n_init, len(values), config.batch_size), len(values)]
        for i, (start, stop) in enumerate(itertools.pairwise(starts)):
            batch = tuple(archs[start:stop])
            predicted = ((values[start] or 0.5, 0.01) if i and predict else None,) * len(batch)
            source = config.strategy if i else "initial"
            pool = {"pool": 10, "validity": 0.9, "uniqueness": 0.8, "novelty": 0.7} if i else {}
            spent = {"fit": 0.1, "propose": 0.2, "select": 0.3} if i else {}
            for trial in store.propose(Suggestion(batch, source, predicted, spent, pool)):
                value = values[trial.trial]
                if trial.trial in pending:
                    continue
                metrics = {"test": value / 2} if test and value is not None else {}
                if seconds and value is not None:
                    metrics["train_seconds"] = seconds[trial.trial]
                if macs and value is not None:
                    metrics["macs"] = macs[trial.trial]
                status = "failed" if value is None else "ok"
                store.record(Outcome(trial.trial, status, value, metrics, 0.5))
        if exhausted:
            store.exhaust()
        if patience is not None:
            store.lose_patience(patience)
        store.close()
        return store.out

    return run_of


def _panels(*paths: Path, split: Sequence[str] = ()) -> list[Panel]:
    runs, skipped = read_runs(find_runs(paths))
    assert not skipped
    return make_panels(runs, split)[0]


def _summary(*paths: Path, **settings) -> Summary:
    (summary,) = summarise(_panels(*paths), Settings(**settings))
    return summary


def _files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_as_it_was_recorded(make: Make) -> None:
    run = read_run(make("a", [0.3, None, 0.5, 0.4], test=True, batch_size=2, seed=3))
    assert len(run) == run.num_finished == run.budget == 4
    assert run.complete
    assert run.num_failed == 1
    assert run.seed == 3
    assert run.iteration.tolist() == [0, 0, 1, 1]
    assert run.of_incumbent("value").tolist() == [0.3, 0.3, 0.5, 0.5]
    assert run.of_incumbent("test").tolist() == [0.15, 0.15, 0.25, 0.25]
    assert run.sources == ("initial", "initial", "random", "random")
    np.testing.assert_array_equal(run.columns["predicted_mean"], [np.nan, np.nan, 0.5, 0.5])


def test_trials_behind_one_that_is_not_finished_do_not_count_yet(make: Make) -> None:
    run = read_run(make("a", [0.3, 0.2, 0.5, 0.9], pending=[2]))
    assert len(run) == 2
    assert run.num_finished == 3
    assert not run.complete


def test_reading_changes_nothing_and_needs_no_lock(make: Make, tmp_path: Path) -> None:
    path = make("a", [0.3, 0.2, 0.5])
    with (path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"event": "finis')  # torn by a crash, or being written
    config = RunConfig(space="toy", score="exact", strategy="random", n_init=2, budget=3)
    before = _files(tmp_path)
    assert len(read_run(path)) == 3
    assert _files(tmp_path) == before
    store = RunStore.open(path, config)  # holds the lock
    assert len(read_run(path)) == 3
    store.close()


def _break(path: Path, name: str, text: str) -> Path:
    (path / name).write_text(text)
    return path


def test_damage_is_named(make: Make) -> None:
    path = make("a", [0.3, 0.2, 0.5])
    lines = (path / "journal.jsonl").read_text().splitlines(keepends=True)
    second = json.loads(lines[1])
    for text, message in (
        (lines[0] + "garbage\n" + lines[1], "line 2 is damaged"),
        (lines[0] + "[]\n", "line 2 is damaged"),
        (lines[0] + '{"event": "finished", "at": 1, "trial": 0}\n', "line 2 is damaged"),
        (lines[0] + json.dumps(second | {"value": "x"}) + "\n", "line 2 is damaged"),
        (
            lines[0] + json.dumps(second | {"seconds": "x"}) + "\n",
            "trials that this version cannot read",
        ),
    ):
        with pytest.raises(DamagedRunError, match=message):
            read_run(_break(path, "journal.jsonl", text))
    record = json.loads((path / "config.json").read_text())
    for text, message in (
        (json.dumps({**record, "schema": 99}), "schema 99, this version reads 1"),
        ("{", "config.json is damaged"),
        ("[]", "config.json is damaged"),
        (json.dumps({**record, "config": {}}), "lacks acq, batch_size"),
    ):
        with pytest.raises(DamagedRunError, match=message):
            read_run(_break(path, "config.json", text))


def test_runs_are_found_below_folders_once(make: Make, tmp_path: Path) -> None:
    first, second = make("x/a", [0.3, 0.2]), make("x/y/b", [0.3, 0.2], seed=1)
    found = [source.path for source in find_runs([tmp_path, first, second])]
    assert found == [first, second]
    assert find_runs([first])[0].group == ""


def test_methods_are_called_by_what_differs(make: Make) -> None:
    for seed in range(2):
        for strategy, acq in (("mutation", "ei"), ("mutation", "pi"), ("guided", "ei")):
            make(f"{strategy}-{acq}-{seed}", [0.3, 0.2], strategy=strategy, acq=acq, seed=seed)
        make(f"rea-{seed}", [0.3, 0.2], method="rea", strategy=None, acq=None, seed=seed)
        out = make(f"steps-{seed}", [0.3, 0.2], strategy="mutation", steps=7, seed=seed)
    (panel,) = _panels(out.parent)
    assert [method.label for method in panel.methods] == [
        "guided · EI · steps 20",
        "mutation · EI · steps 20",
        "mutation · EI · steps 7",
        "mutation · PI · steps 20",
        "rea · steps 20",
    ]
    assert [method.facet for method in panel.methods] == ["EI", "EI", "EI", "PI", ""]
    assert panel.seeds == [0, 1]


def test_a_method_by_name_needs_no_acquisition_in_its_label(make: Make) -> None:
    make("a", [0.3, 0.2], strategy="guided")
    out = make("b", [0.3, 0.2], method="random-search", strategy=None, acq=None)
    (panel,) = _panels(out.parent)
    assert [method.label for method in panel.methods] == ["guided", "random-search"]


def test_panels_keep_apart_what_cannot_be_compared(make: Make) -> None:
    make("a", [0.3, 0.2])
    make("b", [0.3, 0.2, 0.1, 0.4], batch_size=2)
    for dataset, objective in ((None, "valid"), ("cifar10", "valid"), ("cifar100", "test")):
        make(
            f"c-{dataset}-{objective}", [0.3, 0.2], space="nasbench201", table=Path("t.parquet"),
            dataset=dataset, objective=objective, seed=1 if dataset is None else 0,
        )  # fmt: skip
    make("d", [0.3, 0.2], space="mobilenetv3")
    out = make("e", [0.3, 0.2], space="mobilenetv3", constraint=("macs<=300e6",))
    panels = {panel.name: panel for panel in _panels(out.parent)}
    assert list(panels) == [
        "mobilenetv3-imagenet-valid",
        "mobilenetv3-imagenet-valid-macs<=300e6",
        "nasbench201-cifar10-valid",
        "nasbench201-cifar100-test",
        "toy",
        "toy-batch2",
    ]
    assert len(panels["nasbench201-cifar10-valid"].runs) == 2  # cifar10 is the default
    assert panels["toy"].synthetic
    assert slugs([panels["mobilenetv3-imagenet-valid-macs<=300e6"]]) == [
        "mobilenetv3-imagenet-valid-macs-max300e6"
    ]
    assert published(panels["nasbench201-cifar10-valid"])["bananas"] == "94.37 ± 0.00 @46"
    assert published(panels["nasbench201-cifar100-test"])["bananas"] == "73.51 ± 0.00 @88"
    for name in ("toy", "mobilenetv3-imagenet-valid"):
        assert not published(panels[name])


def test_values_of_other_evaluators_are_not_compared(make: Make) -> None:
    found = read_run(make("a", [0.3, 0.2], space="mobilenetv3"))
    config = found.record["config"]
    runs = [
        ("", replace(found, record={**found.record, "config": {**config, "evaluator": name}}))
        for name in ("mine", "yours")
    ]
    panels, twice = make_panels(runs)
    assert not twice
    assert [panel.name for panel in panels] == ["mobilenetv3-valid-mine", "mobilenetv3-valid-yours"]
    assert [panel.name for panel in make_panels(runs[:1])[0]] == ["mobilenetv3-valid"]


@pytest.mark.parametrize("group", ["", "on images"])
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"data": "cars"}, ["cars", "pets"]),
        ({"resolution": 128}, ["resolution128", "resolution64"]),
        ({"epochs": 5}, ["", "epochs5"]),
        ({"evaluator": "supernet", "weights": "w.pt"}, ["supernet-w.pt", "train"]),
    ],
)
def test_networks_on_other_images_are_not_compared(
    make: Make, changes: dict, names: list[str], group: str
) -> None:
    """Runs of one seed would be taken for one run, those of several for one method."""
    config = {"evaluator": "train", "data": "pets", "resolution": 64, "epochs": None}
    found = read_run(make("a", [0.3, 0.2], space="mobilenetv3"))
    base = {**found.record["config"], **config, "weights": None}
    runs = [
        (group, replace(found, record={**found.record, "config": base | changed}))
        for changed in ({}, changes, {"seed": 1})
    ]
    panels, twice = make_panels(runs)
    assert not twice
    prefix = f"{group}: " if group else ""
    shown = ["-".join(filter(None, ("mobilenetv3-valid", name))) for name in names]
    assert [panel.name for panel in panels] == [prefix + name for name in shown]
    assert sorted(len(panel.runs) for panel in panels) == [1, 2]
    assert [panel.name for panel in make_panels(runs[::2])[0]] == [group or "mobilenetv3-valid"]


def test_an_experiment_may_compare_batch_sizes(make: Make) -> None:
    """A panel of its file is one, and its batches are told apart by their size."""
    runs = [
        read_run(make(name, [0.3, 0.2, 0.1, 0.4], batch_size=n)) for name, n in (("a", 1), ("b", 2))
    ]
    (panel,), _ = make_panels([("one by one or two by two", run) for run in runs])
    assert panel.name == "one by one or two by two"
    assert [method.label for method in panel.methods] == [
        "random · batch-size 1",
        "random · batch-size 2",
    ]
    assert len(make_panels([("", run) for run in runs])[0]) == 2


def test_values_of_other_tables_are_not_compared(make: Make, tmp_path: Path) -> None:
    """Whatever they are called; a copy by another name is no other table."""
    settings = {"space": "nasbench201", "dataset": "cifar10"}
    for folder, name, content in (("x", "t", "1"), ("y", "t", "2"), ("z", "u", "1")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / f"{name}.parquet"
        file.write_text(content)
        for strategy in ("random", "mutation"):
            out = make(
                f"{folder}-{strategy}", [0.2, 0.3 + (folder == "y") * 0.1], table=file,
                strategy=strategy, seed="xyz".index(folder), **settings,
            )  # fmt: skip
    panels = _panels(out.parent)
    name = "nasbench201-cifar10-valid"
    assert {panel.name: panel.seeds for panel in panels} == {
        f"{name}-6b86b273": [0, 2],  # SHA-256 of 1
        f"{name}-d4735e3a": [1],
    }
    for panel in panels:
        assert [method.label for method in panel.methods] == ["mutation", "random"]
    found = summarise(panels, Settings())
    assert [summary.optimum.value for summary in found] == [0.3, 0.4]
    files = data_checksums([run for panel in panels for run in panel.runs])
    assert [(file["name"], file["sha256"][:8]) for file in files] == [
        ("t.parquet", "6b86b273"), ("t.parquet", "d4735e3a"), ("u.parquet", "6b86b273")
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "runs" / "y-random")
    shutil.rmtree(tmp_path / "runs" / "y-mutation")
    assert [panel.name for panel in _panels(out.parent)] == [name]


def test_score_weights_are_told_apart_by_name_then_content(make: Make, tmp_path: Path) -> None:
    settings = {"strategy": "guided", "score": "network"}
    make("none", [0.2, 0.3], **settings)
    labels = ["guided · score-weights None"]
    for folder, content in (("x", "1"), ("y", "2")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "w.safetensors"
        file.write_text(content)
        out = make(folder, [0.2, 0.3], score_weights=file, **settings)
        if folder == "x":
            (panel,) = _panels(out.parent)
            assert [m.label for m in panel.methods] == [
                *labels, "guided · score-weights w.safetensors"
            ]  # fmt: skip
    (panel,) = _panels(out.parent)
    assert [method.label for method in panel.methods] == [
        *labels,
        "guided · score-weights w.safetensors 6b86b273",
        "guided · score-weights w.safetensors d4735e3a",
    ]


def test_split_makes_panels_of_a_setting(make: Make) -> None:
    make("a", [0.3, 0.2], acq="ei")
    out = make("b", [0.3, 0.6], acq="pi")
    panels = _panels(out.parent, split=["acq"])
    assert [panel.name for panel in panels] == ["toy-EI", "toy-PI"]
    assert [panel.methods[0].label for panel in panels] == ["random", "random"]
    found = summarise(panels, Settings())
    assert [summary.optimum.value for summary in found] == [0.6, 0.6]  # of the task, not the panel
    with pytest.raises(UserError, match="unknown setting 'colour'"):
        _panels(out.parent, split=["colour"])


def test_the_longer_of_two_equal_runs_counts(make: Make, tmp_path: Path) -> None:
    short = make("a", [0.3, 0.2], budget=4)
    shutil.copytree(short, tmp_path / "runs" / "copy")
    make("b", [0.3, 0.2, 0.7], budget=4)
    runs, _ = read_runs(find_runs([tmp_path]))
    (panel,), twice = make_panels(runs)
    assert [len(run) for run in panel.runs] == [3]
    assert len(twice) == 2
    assert "the same run as" in twice[0].reason


def test_marks_are_over_the_seeds_that_reached_them(make: Make) -> None:
    make("a0", [0.1, 0.2, 0.3, 0.8], seed=0)
    make("a1", [0.1, 0.4, 0.5], seed=1, budget=4)
    out = make("a2", [None, 0.2, 0.3, 0.6], seed=2)
    summary = _summary(out.parent, marks=(1, 3, 4, 9))
    (method,) = summary.panel.methods
    assert summary.at_mark(method, 1) == {0: 0.1, 1: 0.1}
    assert summary.at_mark(method, 3) == {0: 0.3, 1: 0.5, 2: 0.3}
    assert summary.at_mark(method, 4) == {0: 0.8, 2: 0.6}
    assert summary.at_mark(method, 9) == {}
    curve = summary.curve(method)
    assert curve.x.tolist() == [2, 3, 4]  # from the end of the initial design on
    assert curve.whole == 2
    np.testing.assert_allclose(curve.mean, [0.8 / 3, 1.1 / 3, 0.7])
    assert summary.areas[method.label].keys() == {0, 2}


def test_default_marks_end_at_the_horizon(make: Make) -> None:
    out = make("a", np.linspace(0.1, 0.5, 40))
    assert _summary(out).marks == (30, 40)
    assert _summary(out, horizon=30).marks == (30,)
    assert _summary(out, marks=(5,)).marks == (5,)


def test_areas_share_one_scale(make: Make) -> None:
    make("a", [0.1, 0.2, 0.2, 0.6], seed=0)
    out = make("b", [0.1, 0.4, 0.5, 0.6], seed=0, strategy="mutation")
    summary = _summary(out.parent)
    low, high = (0.2 + 0.4) / 2, 0.6
    assert summary.scale == pytest.approx((low, high))
    assert summary.areas["random"][0] == pytest.approx(np.mean([(0.2 - low), 0.3]) / (high - low))
    assert summary.areas["mutation"][0] == pytest.approx(np.mean([0.2, 0.3]) / (high - low))


def test_target_and_optimum(make: Make) -> None:
    make("a", [0.1, 0.2, 0.5, 0.6], seed=0)
    make("b", [0.1, 0.2, 0.3, 0.3], seed=1)
    out = make("c", [0.1, 0.2, 0.3], seed=2, budget=4)
    given = _summary(out.parent, target={"toy": 0.5})
    hits = given.hits(given.panel.methods[0])
    assert (hits.reached, hits.n, hits.last) == (1, 3, 4)
    assert hits.quartiles == (3, np.inf, np.inf)
    make("longer", [0.1, 0.2, 0.5, 0.6, 0.6, 0.6], seed=0)  # counts instead of a
    longer = _summary(out.parent, target={"toy": 0.5})
    assert longer.hits(longer.panel.methods[0]) == hits, "later than 6 is more than is known"
    near = _summary(out.parent, within=10)
    assert near.target.value == pytest.approx(0.5)
    assert near.target.source.startswith("within 10 points of the best value of any run")
    assert _summary(out.parent, optimum={"toy": 0.9}).optimum == (0.9, "given")
    low = _summary(out.parent, optimum={"toy": 0.55}).optimum
    assert low.value == 0.6
    assert "above the 55 % given" in low.source
    with pytest.raises(UserError, match="unknown panel 'x' for --target: choose from toy"):
        Settings(target={"x": 0.5}).check([given.panel])


def test_a_run_of_the_whole_space_stays_where_it_is(make: Make) -> None:
    settings = {"budget": 6, "exhausted": True}
    make("a", [0.1, 0.2, 0.3, 0.8], seed=0, test=True, **settings)
    make("b", [0.1, 0.2, 0.3, 0.7], seed=1, **settings, pending=[3])  # still evaluates one
    out = make("c", [0.1, 0.2, 0.5, 0.5, 0.5, 0.5], seed=2)
    summary = _summary(out.parent, target={"toy": 0.9})
    (method,) = summary.panel.methods
    assert summary.at_mark(method, 6) == {0: 0.8, 2: 0.5}
    assert summary.at_mark(method, 6, "test") == {0: 0.4}
    assert summary.areas[method.label].keys() == {0, 2}
    assert summary.curve(method).mean[-1] == pytest.approx(0.65)
    assert summary.hits(method).last == 6
    assert summary.num_at(6) == {method.label: 2}


def test_leaders_are_those_of_the_most_seeds(make: Make) -> None:
    for seed in range(8):
        make(f"a{seed}", [0.1, 0.2, 0.5], seed=seed)
        make(f"b{seed}", [0.1, 0.2, 0.3 + 0.01 * seed], seed=seed, strategy="mutation")
    out = make("c", [0.1, 0.2, 0.9], strategy="guided")
    summary = _summary(out.parent)
    assert summary.leaders(summary.at_marks(3)) == ("random", set())
    assert summary.leaders(summary.at_marks(2)) == ("mutation", {"random"})
    assert summary.leaders({"a": {}}) == (None, set())
    nothing_shared = {"a": dict.fromkeys(range(8), 0.2), "b": dict.fromkeys(range(8, 16), 0.1)}
    assert summary.leaders(nothing_shared) == ("a", {"b"}), "no test says that it is worse"


def test_leaders_are_told_apart_by_the_tests_of_every_pair(make: Make) -> None:
    """Each of four methods beats the next with all seven seeds, p = 0.016.

    That is significant among the three tests of one method, and not among those of six pairs.
    """
    values = {name: dict.fromkeys(range(7), 0.9 - 0.1 * i) for i, name in enumerate("abcd")}
    assert all(one.significant for one in compare_all(values, "a"))
    assert not any(one.significant for one in compare_all(values))
    summary = _summary(make("run", [0.1, 0.2, 0.3]), reference="random")
    assert summary.leaders(values) == ("a", {"b", "c", "d"})
    longer = {name: dict.fromkeys(range(9), found[0]) for name, found in values.items()}
    assert summary.leaders(longer) == ("a", set())


def test_the_simulated_clock(make: Make) -> None:
    out = make("a", [0.3, 0.2, 0.5, None], seconds=[10, 20, 30, 0])
    summary = _summary(out)
    assert summary.timed
    curve = summary.clock(2)["random"]
    # 0 and 1 side by side until 20, then 2 until 50; what failed takes no time
    assert (curve.x[0], curve.x[-1]) == (20, 50)
    assert (curve.mean[curve.x < 50] == 0.3).all()
    assert curve.mean[-1] == 0.5
    assert not _summary(make("b", [0.3, 0.2])).timed


def test_the_simulated_clock_knows_which_trials_waited_for_which(make: Make) -> None:
    """Three trainings of 10 s after an initial design of two, on two workers."""
    seconds = [10.0] * 5
    lasted = {}
    for name, settings in {
        "rounds": {},
        "window": {"window": 2},
        "async": {"schedule": "async"},
    }.items():
        out = make(name, [0.1, 0.2, 0.3, 0.4, 0.5], seconds=seconds, **settings)
        lasted[name] = _summary(out).clock(2)["random"].x[-1]
    assert lasted == {"rounds": 40, "window": 30, "async": 30}


def test_diagnostics_by_window(make: Make) -> None:
    values = [0.3, 0.2, *np.linspace(0.4, 0.5, 15)]
    run = read_run(make("a", values))
    found = diagnose(run, initial=2, count=2)
    assert found["tau"].tolist() == pytest.approx([1, 1])
    assert found["within 1 std"].tolist() == [1, 1]
    # predictions are exact: only the normalisation of a normal density with std 1 point remains
    assert found["nll"] == pytest.approx([np.log(2 * np.pi) / 2] * 2)
    assert found["search"] == pytest.approx([0.6, 0.6])
    assert found["evaluate"] == pytest.approx([0.5, 0.5])
    assert found["novelty"] == pytest.approx([0.7, 0.7])
    blind = diagnose(read_run(make("b", values, predict=False)), initial=2, count=2)
    assert np.isnan(blind["tau"]).all()


def test_evaluations_are_whole_numbers_in_the_figure_of_a_single_window() -> None:
    curve = Curve(np.array([15.0]), np.array([0.5]), np.array([0.1]), whole=1)
    svg = draw_diagnostics({"tau": {"": [Line("guided", Look("#d55e00"), curve)]}}, "short")
    ticks = re.findall(r'id="short-xtick_\d+".*?<text[^>]*>(.*?)</text>', svg, re.DOTALL)
    assert ticks == ["15"]


def test_the_checklist_says_what_is_not_recorded(make: Make) -> None:
    make("a", [0.1, None, 0.3], test=True, space="nasbench201", table=Path("/some/where/t.parquet"))
    out = make(
        "b", [0.1, 0.2, 0.3], test=True, space="nasbench201", table=Path("/else/t.parquet"),
        strategy="mutation",
    )  # fmt: skip
    answers = dict(panel_checklist(_summary(out.parent)))
    assert answers["Search objective"] == (
        "validation accuracy on cifar10, looked up in t.parquet, no training"
    )
    assert "the test accuracy of the architecture with the best value" in answers["Reported"]
    assert " CPUs" in answers["Hardware"]
    assert answers["Tuning of the methods"] == NOT_RECORDED
    assert answers["Cost, evaluations"] == "6, 1 of them failed"
    assert answers["Initial design"].endswith("the same for all methods with the same seed")
    assert answers["Compared with random search"] == "no random-search run here"


def test_latex_is_escaped() -> None:
    row = (Cell("a_b & 5 %"), Cell("1 ± 2", "best"), Cell("3", "tied"), Cell("not run", "missing"))
    text = to_latex(Table("t", "x", ("method", "@3, %", "a", "b"), (row,)))
    assert r"a\_b \& 5 \% & \textbf{1 $\pm$ 2} & 3$^{\approx}$ & \textit{not run} \\" in text
    assert r"\begin{tabular}{lrrr}" in text


def _report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and what was said to the user."""
    with pytest.raises(SystemExit) as exit_:
        run(app, [str(argument) for argument in arguments])
    said = capsys.readouterr()
    return exit_.value.code, said.out + said.err


@pytest.fixture
def study(make: Make) -> Path:
    """Four methods, three seeds, one missing and one not finished."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        first = rng.uniform(0.1, 0.3, 2)
        for strategy, best in (("guided", 0.9), ("mutation", 0.8), ("random", 0.6)):
            later = np.minimum(np.linspace(0.3, best, 10) + rng.normal(0, 0.02, 10), 0.99)
            count = 7 if (strategy, seed) == ("random", 2) else 10
            values = [*first, *later[: count - 2]]
            make(f"{strategy}{seed}", values, strategy=strategy, seed=seed, budget=10, test=True)
    return make("rea", [0.1, 0.2, 0.3], method="rea", strategy=None, acq=None, budget=10).parent


def test_the_page(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(study)
    out = tmp_path / "report"
    code, said = _report(capsys, study, "--out", out, "--marks", "5,10")
    assert code == 0
    assert "10 runs, 8 finished, in 1 panel: toy" in said
    assert _files(study) == before
    html = (out / "report.html").read_text()
    page = check_page(html)
    assert page.sections.keys() == {"overview", "panel-1", "made"}
    text = " ".join(page.sections["panel-1"].split())
    assert "Values are synthetic" in text
    assert "random, seed 2: 7 of 10 evaluations; rea, seed 0: 3 of 10" in text
    assert "2 runs are not finished; 2 are missing" in text
    assert "rea: no run of seed 1, 2" in text
    assert "not reached" in text
    drawn = re.findall(r'<svg[^>]*class="figure.*?</svg>', html, re.DOTALL)
    assert len(drawn) == len(svgs(html)) > 4
    assert all("SYNTHETIC" in svg for svg in drawn)
    assert "best value so far, %" in html
    assert "published" not in text.lower()


def test_runs_that_patience_ended_are_finished(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make("a", [0.1, 0.3, 0.2, 0.2], budget=10, patience=2).parent
    make("b", [0.1, 0.3, 0.2, 0.2], budget=10, seed=1)
    code, said = _report(capsys, out, "--out", tmp_path / "report")
    assert code == 0
    assert "2 runs, 1 finished, in 1 panel: toy" in said
    page = check_page((tmp_path / "report" / "report.html").read_text())
    text = " ".join(page.sections["panel-1"].split())
    assert "1 run is not finished random, seed 1: 4 of 10 evaluations." in text
    early = "Ended early: random, seed 0, at 4 of 10 evaluations, after 2 without a better one."
    assert early in text


def test_the_files_beside_the_page(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert _report(capsys, study, "--out", out, "--marks", "5,10")[0] == 0
    with (out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 10 + 7 + 3
    one = [row for row in rows if (row["method"], row["seed"]) == ("guided", "1")]
    values = [float(row["value"]) for row in one]
    assert [int(row["evaluation"]) for row in one] == list(range(1, 11))
    assert [float(row["best_value"]) for row in one] == np.maximum.accumulate(values).tolist()
    assert max(values) > 50  # percent
    with (out / "summary.csv").open() as file:
        cells = {
            (row["method"], row["quantity"], row["evaluations"]): row
            for row in csv.DictReader(file)
        }
    finals = [float(r["best_value"]) for r in rows if r["method"] == "guided"][9::10]
    found = cells["guided", "best value, %", "10"]
    assert found["seeds"] == "3"
    assert float(found["mean"]) == pytest.approx(np.mean(finals), rel=1e-6)
    assert cells["rea", "best value, %", "10"]["mean"] == ""
    with (out / "tests.csv").open() as file:
        tests = list(csv.DictReader(file))
    final = [t for t in tests if t["measure"] == "best value @10"]
    assert [(t["a"], t["b"]) for t in final] == [
        ("guided", "mutation"), ("guided", "random"), ("mutation", "random")
    ]  # fmt: skip
    assert final[0]["p"] == "0.25"  # three seeds, all won
    record = json.loads((out / "manifest.json").read_text())
    assert len(record["runs"]) == 10
    assert {run["hash"] for run in record["runs"]} == {
        json.loads(path.read_text())["hash"] for path in study.glob("*/config.json")
    }
    assert record["panels"][0]["methods"]["rea"] == [0]
    for path in (out / "figures").iterdir():
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
        assert "var(--" not in path.read_text()
    assert (out / "figures" / "toy-curves.svg").exists()
    tex = (out / "tables" / "toy-values.tex").read_text()
    assert tex.count(r"\\") == 1 + 4
    assert r"\textit{not reached}" in tex


def test_equal_runs_give_equal_reports(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for _ in range(2):
        assert _report(capsys, study, "--out", tmp_path / "report")[0] == 0
        found.append({path: text for path, (text, _) in _files(tmp_path / "report").items()})
    assert found[0] == found[1]


def test_files_of_panels_have_names_of_their_own(make: Make) -> None:
    (panel,) = _panels(make("a", [0.3, 0.2]))
    names = ["a (x)", "a: x", "A x", "a x 2", "?"]
    found = slugs([replace(panel, name=name) for name in names])
    assert found == ["a-x", "a-x-2", "A-x-3", "a-x-2-2", "panel"]


@undrawn()
def test_a_report_replaces_the_one_before_it_and_nothing_else(
    study: Path, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, others = tmp_path / "report", tmp_path / "tables"
    assert _report(capsys, study, "--out", out, "--marks", "5,10")[0] == 0
    assert (out / "figures" / "toy-ranks-best-value-5.svg").exists()
    others.mkdir()
    mine = [out / "figures" / "mine.svg", out / "notes.csv", others / "mine.tex", out / "keep.txt"]
    for path in mine:
        path.write_text("mine")
    manifest = json.loads((out / "manifest.json").read_text())
    assert {str(p.relative_to(out)) for p in _files(out)} == {
        *manifest["files"], "manifest.json", "figures/mine.svg", "notes.csv", "keep.txt"
    }  # fmt: skip
    manifest["files"] += ["keep.txt", "../tables/mine.tex", "tables/../../tables/mine.tex", 3]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert _report(capsys, study, "--out", out)[0] == 0
    assert (out / "figures" / "toy-ranks-best-value-5.svg").exists(), "that is no list of files"
    manifest["files"].remove(3)
    (out / "manifest.json").write_text(json.dumps(manifest))
    one = make("elsewhere/a", [0.1, 0.2, 0.3])
    assert _report(capsys, one, "--out", out)[0] == 0
    assert all(path.read_text() == "mine" for path in mine)
    assert (out / "tests.csv").read_text() == (
        "panel,measure,a,b,n,wins,ties,losses,median,excess,p,p_holm\n"
    ), "of one method"
    written = json.loads((out / "manifest.json").read_text())["files"]
    assert {str(p.relative_to(out)) for p in _files(out)} == {
        *written, "manifest.json", "figures/mine.svg", "notes.csv", "keep.txt"
    }  # fmt: skip
    assert not [name for name in written if "ranks" in name]


def test_against_a_reference(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert _report(capsys, study, "--out", out, "--reference", "guided")[0] == 0
    text = check_page((out / "report.html").read_text()).sections["panel-1"]
    assert "guided against every other method" in text
    assert "p 0.500 · 3/0/0" in text  # 0.25, two tests
    assert (out / "tables" / "toy-reference.tex").exists()


def test_published_numbers_have_a_column_of_their_own(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"space": "nasbench201", "table": Path("t.parquet"), "test": True}
    for seed in range(2):
        make(f"a{seed}", [0.1, 0.2, 0.3], seed=seed, seconds=[9, 9, 9], **settings)
        out = make(
            f"b{seed}", [0.1, 0.2, 0.4], seed=seed, method="rea", strategy=None, acq=None,
            seconds=[9, 9, 9], **settings,
        )  # fmt: skip
    report = tmp_path / "report"
    assert _report(capsys, out.parent, "--out", report, "--workers", "1,4", "--workers", 2)[0] == 0
    html = (report / "report.html").read_text()
    assert "in an asynchronous run, no trial waits for another" in html
    check_page(html)
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    assert ["method", "@3, %", "published, % @ evaluations"] in cells
    assert ["bananas", "not run", "94.37 ± 0.00 @46"] in cells
    (ours,) = [row for row in cells if row[0] == "rea" and len(row) == 3]
    assert ours == ["rea", "20.00 ± 0.00", "93.92 ± 0.30 @&gt;500"]
    assert all(f"p1-clock-{workers}" in html for workers in (1, 2, 4))
    assert "SYNTHETIC" not in html
    record = json.loads((report / "manifest.json").read_text())
    assert record["data"] == [{"name": "t.parquet", "sha256": None}]


def test_published_numbers_are_of_a_method_with_any_settings(make: Make) -> None:
    settings = {"space": "nasbench201", "table": Path("t.parquet"), "test": True, "acq": None}
    for pool in (20, 30):
        out = make(
            f"rea{pool}", [0.1, 0.2, 0.3], method="rea", strategy=None, pool_size=pool, **settings
        )
    table = accuracy_table(_summary(out.parent))
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[:2] == [
        ["rea · pool-size 20", "15.00", "93.92 ± 0.30 @>500"],
        ["rea · pool-size 30", "15.00", "93.92 ± 0.30 @>500"],
    ]
    assert "rea" not in [row[0] for row in rows]
    assert ["bohb", "not run", "93.61 ± 0.52 @>500"] in rows
    assert ["TNAS", "–", "94.37 ± 0.00 @29"] in rows, "it cannot be run here"


def test_an_experiment_keeps_its_panels_and_says_what_is_not_run(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = make("a", [0.1, 0.2, 0.3])
    missing = RunConfig(space="toy", score="exact", strategy="mutation", n_init=2, budget=3)
    runs = [
        {"panel": panel, "label": label, "kind": "search", "hash": "0" * 64, "config": config}
        for panel, label, config in (
            ("left", done.name, {"budget": 3}),
            ("left", "b", {**missing.identity(), "budget": 3}),
            ("right", done.name, {"budget": 3}),
        )
    ]
    runs.append({"panel": None, "label": "c", "kind": "command"})
    file = done.parent / "experiment-x.json"
    file.write_text(json.dumps({"runs": runs}))
    assert find_runs([file])[0] == Source(done, "left", runs[0])
    code, said = _report(capsys, file, "--out", tmp_path / "report")
    assert code == 0
    assert "3 runs, 2 finished, in 2 panels: left, right" in said
    page = check_page((tmp_path / "report" / "report.html").read_text())
    assert "mutation, seed 0: 0 of 3 evaluations" in page.sections["panel-1"]
    assert "not run" in page.sections["panel-1"]
    assert "mutation" not in page.sections["panel-2"]
    assert "1 command, 0 finished" in said
    assert "not run" in page.sections["c"]


def test_an_experiment_has_its_own_budgets(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another has prolonged one of its runs."""
    runs = [
        {"panel": "x", "label": path.name, "kind": "search", "config": {"budget": 3}}
        for path in (
            make("a", [0.1, 0.2, 0.3, 0.4, 0.5]),
            make("b", [0.1, 0.2, 0.3], strategy="mutation"),
        )
    ]
    file = tmp_path / "runs" / "experiment-x.json"
    file.write_text(json.dumps({"runs": runs}))
    code, said = _report(capsys, file, "--out", tmp_path / "report")
    assert code == 0
    assert "2 runs, 2 finished" in said
    manifest = json.loads((tmp_path / "report" / "manifest.json").read_text())
    assert manifest["panels"][0]["marks"] == [3]
    assert [run["budget"] for run in manifest["runs"]] == [3, 3]
    page = check_page((tmp_path / "report" / "report.html").read_text())
    assert "not run" not in page.sections["panel-1"]
    file.write_text(json.dumps({"runs": [{**run, "config": {}} for run in runs]}))
    code, said = _report(capsys, file, "--out", tmp_path / "report")
    assert (code, said.split(": ")[2][:21]) == (2, "give runs, folders of")


def test_what_commands_have_left_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "quality-1"
    left.mkdir()
    (left / "command.json").write_text("{}")
    (left / "command.log").write_text("progress")
    (left / "quality.md").write_text("`<b>`\n\n| row | max |\n|---|---|\n| guided | 94.37 |\n")
    (left / "quality.csv").write_text("row,max\nguided,94.37\n")
    (left / "quality.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    parts = [
        {"panel": "Table 3", "label": name, "kind": "command"}
        for name in ("quality-1", "quality-2")
    ]
    (tmp_path / "experiment-t.json").write_text(json.dumps({"runs": parts}))
    for given, finished in ((tmp_path / "experiment-t.json", 2), (tmp_path, 1)):
        out = tmp_path / f"report-{finished}"
        code, said = _report(capsys, given, "--out", out)
        count = "2 commands" if finished == 2 else "1 command"
        assert (code, said.splitlines()[0]) == (0, f"{count}, 1 finished")
        text = (out / "report.html").read_text()
        page = check_page(text)
        assert "94.37" in page.sections["quality-1"]
        assert "&lt;b&gt;" in text
        assert "data:image/svg+xml;base64," in text
        assert ("quality-2" in page.sections) == (finished == 2)
        copied = {file.name for file in (out / "commands" / "quality-1").iterdir()}
        assert copied == {"quality.md", "quality.csv", "quality.svg"}
    again = tmp_path / "elsewhere" / "experiment-t.json"  # where nothing has been run
    again.parent.mkdir()
    again.write_text(json.dumps({"runs": parts}))
    code, said = _report(capsys, tmp_path, again, "--out", tmp_path / "both")
    assert (code, said.splitlines()[0]) == (0, "2 commands, 1 finished")
    (left / "command.json").unlink()
    code, said = _report(capsys, tmp_path / "experiment-t.json", "--out", tmp_path / "none")
    assert code == 2
    assert said.startswith("error: no runs in ")


def test_a_level_is_of_a_panel_or_of_all(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for acq in ("ei", "pi"):
        make(acq, [0.1, 0.5], acq=acq, budget=2)
    arguments = ["--split", "acq", "--optimum", "80", "--optimum", "toy-PI=90"]
    code, _ = _report(capsys, tmp_path, *arguments, "--out", tmp_path / "report")
    assert code == 0
    manifest = json.loads((tmp_path / "report" / "manifest.json").read_text())
    assert manifest["settings"]["optimum"] == {"toy-EI": 0.8, "toy-PI": 0.9}


def test_damaged_runs_are_named_and_left_out(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _break(study / "guided0", "journal.jsonl", "garbage\n")
    _break(study / "guided1", "config.json", "{")
    code, said = _report(capsys, study, "--out", tmp_path / "report")
    assert code == 0
    assert f"left out: {study / 'guided0'}: journal.jsonl, line 1 is damaged" in said
    assert f"left out: {study / 'guided1'}: config.json is damaged" in said
    made = check_page((tmp_path / "report" / "report.html").read_text()).sections["made"]
    assert "guided0" in made


def test_searches_for_a_value_are_named_and_left_out(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest value tells nothing of them."""
    aim = {"strategy": "guided-gen", "surrogate": "gp", "guidance_form": "target", "acq": "target"}
    aimed = make("aimed", [0.1, 0.9], **aim, target=50.0, budget=2)
    code, said = _report(capsys, aimed, "--out", tmp_path / "report")
    assert code == 2
    assert f"of 1 run, none can be compared: {aimed}: it searches for a --target value" in said
    make("other", [0.1, 0.5], budget=2)
    code, said = _report(capsys, aimed.parent, "--out", tmp_path / "report")
    assert code == 0
    assert f"left out: {aimed}: it searches for a --target value, and runs are compared" in said
    assert "1 run, 1 finished" in said


def _fronts(make: Make, **settings) -> list[Path]:
    """Two methods that search for a front, with a front of (1, 0.2), (2, 0.6), (4, 0.8)."""
    settings = {"pareto": "macs", **settings}
    return [
        make("mutation", [0.8, 0.2, 0.6], strategy="mutation", macs=[4, 1, 2], **settings),
        make("random", [0.4, 0.2, 0.5], strategy="random", macs=[4, 1, 3], **settings),
    ]


# Their corner is (4.3, 0.14), a tenth beyond the ends of the front, which dominates this much:
WHOLE = 1 * 0.06 + 2 * 0.46 + 0.3 * 0.66


def test_hypervolumes_by_hand(make: Make) -> None:
    summary = _summary(*_fronts(make))
    assert summary.panel.name == "toy-pareto-macs"
    mutation, random = (next(iter(method.runs.values())) for method in summary.panel.methods)
    expected = np.array([0.3 * 0.66, 3 * 0.06 + 0.3 * 0.66, WHOLE]) / WHOLE
    assert summary.best_so_far(mutation) == pytest.approx(expected)
    expected = np.array([0.3 * 0.26, 3 * 0.06 + 0.3 * 0.26, 2 * 0.06 + 1.3 * 0.36]) / WHOLE
    assert summary.best_so_far(random) == pytest.approx(expected)
    assert list(summary.measures) == ["area @3", "hypervolume @3"]
    assert summary.optimum == (1.0, "the hypervolume of all runs in this report together")
    assert summary.target.value == pytest.approx(0.9)


def test_the_best_value_under_a_limit(make: Make) -> None:
    curves = _summary(*_fronts(make)).best_below()
    for label, front in (("mutation", {1: 0.2, 2: 0.6, 4: 0.8}), ("random", {1: 0.2, 3: 0.5})):
        x, found = curves[label].x, curves[label].mean
        assert (x[0], x[-1]) == (1, 4.3)
        assert found.tolist() == [max(v for at, v in front.items() if at <= most) for most in x]


def test_a_trial_without_amount_or_value_adds_nothing(make: Make) -> None:
    settings = {"strategy": "random", "pareto": "macs", "budget": 4}
    broken = make("broken", [None, 0.9, 0.2, 0.6], macs=[9, np.nan, 1, 2], **settings)
    summary = _summary(broken, *_fronts(make, seed=1))
    run = read_run(broken)
    expected = [np.nan, np.nan, 3.3 * 0.06 / WHOLE, (1 * 0.06 + 2.3 * 0.46) / WHOLE]
    assert summary.best_so_far(run) == pytest.approx(expected, nan_ok=True)


def test_a_front_of_one(make: Make) -> None:
    summary = _summary(make("one", [0.5, 0.4], macs=[2, 3], pareto="macs"))
    (run,) = summary.panel.runs
    assert summary.best_so_far(run).tolist() == [1, 1]


def test_runs_without_amounts_have_no_front(make: Make) -> None:
    summary = _summary(make("none", [0.5, 0.4], pareto="macs"))
    assert summary.optimum is None
    assert summary.at_mark(summary.panel.methods[0], 2) == {}


def test_fronts_are_compared_with_searches_for_the_best_only_in_experiments(make: Make) -> None:
    paths = [*_fronts(make), make("best", [0.8, 0.7, 0.6], macs=[4, 3, 2])]
    paths.append(make("params", [0.8, 0.7, 0.6], pareto="params"))
    assert [panel.name for panel in _panels(*paths)] == [
        "toy",
        "toy-pareto-macs",
        "toy-pareto-params",
    ]
    (panel,) = make_panels([("G", read_run(path)) for path in paths[:3]])[0]
    assert (panel.name, panel.pareto) == ("G", "macs")
    answers = dict(panel_checklist(summarise([panel], Settings())[0]))
    assert answers["Search objective"] == "a synthetic formula; its Pareto front with macs"
    assert answers["Reported"] == "the Pareto front of the search objective, and its hypervolume"
    assert answers["Performance over time"] == "yes: hypervolume after every evaluation"
    assert [method.label for method in panel.methods] == [
        "mutation",
        "random",
        "random · for the best value",
    ]
    panels, _ = make_panels([("G", read_run(path)) for path in paths])
    assert [panel.name for panel in panels] == [
        "G: toy-best",
        "G: toy-pareto-macs",
        "G: toy-pareto-params",
    ]


def test_a_page_of_fronts_on_which_every_method_has_a_seed_without_a_value(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"strategy": "random", "pareto": "macs", "budget": 2}
    paths = [make("0", [0.5, 0.6], macs=[1, 2], **settings), make("1", [None], seed=1, **settings)]
    code, said = _report(capsys, *paths, "--out", tmp_path / "report")
    assert code == 0, said
    check_page((tmp_path / "report" / "report.html").read_text())
    figures = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert "toy-pareto-macs-curves.svg" in figures
    assert "toy-pareto-macs-fronts.svg" not in figures


def test_the_page_of_fronts(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [*_fronts(make), make("best", [0.8, 0.7, 0.6])]
    code, said = _report(capsys, *paths, "--out", tmp_path / "report")
    assert code == 0, said
    html = (tmp_path / "report" / "report.html").read_text()
    check_page(html)
    assert "Best value or hypervolume at the horizon" in html
    assert "toy-pareto-macs, hypervolume @3, %" in html
    assert "in the plane of value and MACs" in html
    figures = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert {"toy-pareto-macs-fronts.svg", "toy-regret.svg"} <= figures
    assert not {"toy-pareto-macs-regret.svg", "toy-fronts.svg"} & figures
    with (tmp_path / "report" / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "mutation"]
    assert [float(row["hypervolume"]) for row in rows][-1] == 100
    with (tmp_path / "report" / "summary.csv").open() as file:
        found = {(row["method"], row["quantity"]): row["mean"] for row in csv.DictReader(file)}
    expected = 100 * (2 * 0.06 + 1.3 * 0.36) / WHOLE
    assert float(found["random", "hypervolume, %"]) == pytest.approx(expected)
    arguments = ["--optimum", "toy-pareto-macs=90", "--out", tmp_path / "other"]
    code, said = _report(capsys, *paths, *arguments)
    assert code == 2
    assert "--optimum cannot be given for 'toy-pareto-macs': its runs search for" in said
    code, said = _report(capsys, *paths, "--optimum", "90", "--out", tmp_path / "other")
    assert code == 0, said  # for the others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUNS"], "--out is required"),
        (["--out", "OUT"], "name at least one run"),
        (["OUT", "--out", "OUT"], "no such folder"),
        (["EMPTY", "--out", "OUT"], "no runs in"),
        (["EMPTY/notes.txt", "--out", "OUT"], "is not an experiment"),
        (["RUNS", "--out", "RUNS/rea"], "is a run: choose another folder"),
        (["RUNS", "--out", "EMPTY/notes.txt"], "is not a folder"),
        (["RUNS", "--out", "EMPTY/broken-link"], "is not a folder"),
        (["RUNS", "--out", "OUT", "--reference", "x"], "unknown method 'x' for --reference"),
        (
            ["RUNS", "--out", "OUT", "--optimum", "toy"],
            "must be PANEL=VALUE or VALUE, accuracies in percent",
        ),
        (["RUNS", "--out", "OUT", "--optimum", "0.9"], "--optimum 0.9 is in percent: it must be"),
        (
            ["RUNS", "--out", "OUT", "--optimum", "a=9"],
            "unknown panel 'a' for --optimum: choose from",
        ),
        (["RUNS", "--out", "OUT", "--target", "toy=nan"], "must be PANEL=VALUE"),
        (["RUNS", "--out", "OUT", "--marks", "0"], "--marks must be at least 1"),
        (
            ["RUNS", "--out", "OUT", "--marks", "5,x"],
            "--marks: '5,x' must be whole numbers separated by commas",
        ),
        (["RUNS", "--out", "OUT", "--workers", "1.5"], "--workers: '1.5' must be whole numbers"),
        (["RUNS", "--out", "OUT", "--workers", "0"], "--workers must be at least 1"),
        (["RUNS", "--out", "OUT", "--horizon", "0"], "--horizon must be at least 1"),
        (["RUNS", "--out", "OUT", "--within", "-1"], "--within must be 0 or more points"),
        (["RUNS", "--out", "OUT", "--within", "inf"], "--within must be 0 or more points"),
        (["RUNS", "--out", "OUT", "--split", "x"], "unknown setting 'x'"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    (tmp_path / "empty" / "broken-link").symlink_to("nowhere")
    places = {"RUNS": study, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    given = [re.sub(r"^(RUNS|OUT|EMPTY)", lambda m: str(places[m[1]]), a) for a in arguments]
    code, said = _report(capsys, *given)
    assert code == 2
    assert message.lower() in said.lower()
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_left_to_report(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("a", [0.3, 0.2])
    journal = (path / "journal.jsonl").read_text()
    _break(path, "journal.jsonl", journal.splitlines(keepends=True)[0])
    code, said = _report(capsys, path, "--out", tmp_path / "report")
    assert (code, said) == (2, "error: none of the runs has a finished trial yet\n")
    _break(path, "config.json", "{")
    code, said = _report(capsys, path, "--out", tmp_path / "report")
    assert code == 2
    assert "of 1 run, none can be compared" in said


def test_runs_that_end_before_the_horizon(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", [0.1, 0.2, 0.3, 0.4, 0.5])
    out = make("b", [0.1, 0.2, 0.3], strategy="mutation")
    code, _ = _report(capsys, out.parent, "--out", tmp_path / "report", "--horizon", 5)
    assert code == 0
    text = check_page((tmp_path / "report" / "report.html").read_text()).sections["panel-1"]
    assert "not reached" in text
    assert "not run" not in text


def test_runs_whose_trials_all_failed(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", [None, None, None])
    out = make("b", [None, None, None], strategy="mutation")
    code, _ = _report(capsys, out.parent, "--out", tmp_path / "report")
    assert code == 0
    text = check_page((tmp_path / "report" / "report.html").read_text()).sections["panel-1"]
    assert "–" in text
    assert "not run" not in text, "they were"
    assert "nan" not in text


def test_seeds_without_a_value_are_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        failed = seed == 1
        make(f"a{seed}", [None] * 4 if failed else [0.1, 0.2, 0.3, 0.4], seed=seed)
        values = [None if seed == 2 else 0.1, None if seed == 2 else 0.2, 0.3, 0.4]
        out = make(f"b{seed}", values, seed=seed, strategy="mutation")
    code, _ = _report(capsys, out.parent, "--out", tmp_path / "report", "--marks", "2,4")
    assert code == 0
    html = (tmp_path / "report" / "report.html").read_text()
    text = " ".join(check_page(html).sections["panel-1"].split())
    assert (
        "Left out of means and tests because there is no value: "
        "mutation, seed 2, in its first 2 evaluations; random, seed 1, in its first 4 evaluations."
    ) in text
    assert "40.00 ± 0.00 (n=2, 1 without a value)" in text


def test_what_is_undefined_is_not_called_not_run(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No initial design succeeded; a horizon within the initial design."""
    make("a", [None, None, 0.3, 0.4])
    out = make("b", [None, None, 0.3, 0.5], strategy="mutation")
    for arguments, said in (
        ([], "over evaluations 3 to 4. Evaluations to target"),
        (["--horizon", 2], "No area: the horizon is within the initial design."),
    ):
        assert _report(capsys, out.parent, "--out", tmp_path / "report", *arguments)[0] == 0
        html = (tmp_path / "report" / "report.html").read_text()
        text = " ".join(check_page(html).sections["panel-1"].split())
        assert said in text
        assert "nan %" not in text
        assert "not run" not in text


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _report(capsys, "--help")
    assert code == 0
    for option in ("--out", "--marks", "--reference", "--optimum", "--workers", "--split"):
        assert option in said


def test_the_real_command_line(make: Make, tmp_path: Path) -> None:
    out = make("a", [0.1, 0.2, 0.3])
    command = [sys.executable, "-m", "orchestrator.report", out, "--out", tmp_path / "report"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith(f"report: {tmp_path / 'report' / 'report.html'}\n")
    assert not made.stderr
