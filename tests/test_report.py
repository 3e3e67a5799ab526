"""The report of real small runs: complete, self-contained, and equal to what the store says."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_page import Page, check_page, svgs

from nag.errors import counted
from nag.spaces import ABSENT, SPACES, Architecture, Stage, StagedSpace
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import CELL_EDGES, OPERATORS
from nag.spaces.toy import TOY
from orchestrator.build import build_optimizer, make_evaluator, plan_of
from orchestrator.config import RunConfig
from orchestrator.executors.local import LocalExecutor
from orchestrator.history.trials import Outcome, Trial
from orchestrator.reporting.drawing import draw
from orchestrator.reporting.figures import BLUE, GREEN, GREY, ORANGE, RED, draw_pareto
from orchestrator.reporting.pareto import Front, hypervolume, pareto_front
from orchestrator.reporting.run_report import (
    Calibration,
    Finished,
    Limit,
    write_report,
)
from orchestrator.reporting.view import QUANTITIES
from orchestrator.search.loop import run_study
from orchestrator.search.store import RunStore
from trainers.base import EvaluationError, Evaluator, Measurement
from trainers.evaluators.toy import ToyEvaluator

CONFIG = RunConfig(space="toy", score="exact", budget=12, n_init=4, batch_size=3)
MOBILE = {"space": "mobilenetv3", "pool_size": 10, "steps": 5, "guidance_scale": "1,10"}
SECTIONS = {
    "headline", "progress", "calibration", "best", "seconds", "pools", "failed", "configuration",
    "checklist",
}  # fmt: skip
LONG = StagedSpace(  # stages and a name that are longer than a row of the drawing
    name="long",
    operators=("conv 3x3", "depthwise convolution " * 4 + "3x3"),
    stages=(Stage(choices=((0, 1),) * 12, depths=(0, 1, 12)), Stage(choices=((0,),), depths=(1,))),
)


class _Failing(ToyEvaluator):
    """Fails at every architecture whose text begins with one of some letters."""

    def __init__(self, letters: str) -> None:
        self._letters = letters

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        if TOY.to_str(arch)[0] in self._letters:
            raise EvaluationError("<script>alert('loss & more')</script>")
        found = super().evaluate(arch, seed=seed)
        return Measurement(found.value, {"macs": 2.5e6, "test": found.value / 2}, found.seconds)


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Callable[..., tuple[RunStore, str]]]:
    """Run a search to its end and write its report."""
    stores: list[RunStore] = []

    def run(evaluator: Callable[[], Evaluator] | None = None, **settings) -> tuple[RunStore, str]:
        config = RunConfig(**{**vars(CONFIG), **settings})
        stores.append(store := RunStore.open(tmp_path / "run", config))
        made = evaluator() if evaluator else make_evaluator(config)
        executor = LocalExecutor(config.generator("cpu"), made, retries=0)
        run_study(
            build_optimizer(config, executor.generator),
            executor,
            store,
            plan_of(config),
        )
        path = write_report(store)
        assert path == store.out / "report.html"
        assert not list(store.out.glob("*.tmp"))
        return store, path.read_text(encoding="utf-8")

    yield run
    for store in stores:
        store.close()


def _count(svg: str, kind: str) -> int:
    return sum(kind in node.get("class", "").split() for node in ElementTree.fromstring(svg).iter())


def _check_page(html: str) -> Page:
    """What holds for every report."""
    page = check_page(html)
    assert page.sections.keys() - {"pareto"} == SECTIONS
    return page


def test_the_report_says_what_the_store_says(search) -> None:
    store, html = search(partial(_Failing, "b"))
    page = _check_page(html)
    trial, value = store.best
    headline = page.sections["headline"]
    assert f"{100 * value:.3f} %" in headline
    assert f"{50 * value:.3f} %" in headline  # the test accuracy
    assert "2.50 M" in headline
    assert "parameters" not in headline
    assert TOY.to_str(trial.arch) in headline
    assert json.dumps(TOY.to_config(trial.arch)) in headline
    assert "synthetic" in headline
    num_failed = sum(outcome.value is None for outcome in store.outcomes.values())
    assert num_failed > 0
    facts = " ".join(headline.split())
    assert f"found in trial{trial.trial}" in facts
    assert "evaluations12 of 12" in facts
    assert f"failures{num_failed}" in facts
    # figures: progress, calibration, Pareto front, seconds, pools, guidance; then one drawing per
    # architecture
    num_drawn = min(5, store.num_finished - num_failed)
    assert len(svgs(html)) == 6 + num_drawn
    ranked = sorted(store.observations().values, reverse=True)
    for value in ranked[:5]:
        assert f"{100 * value:.3f}" in page.sections["best"]
    for name, setting in json.loads((store.out / "config.json").read_text())["config"].items():
        assert name in page.sections["configuration"]
        shown = ", ".join(setting) if isinstance(setting, list) else str(setting)
        assert setting is None or shown in page.sections["configuration"]


def test_the_report_of_a_search_for_a_target_ranks_by_distance(search) -> None:
    store, html = search(guidance_form="target", target=55.0, acq="target")
    values = store.observations().values
    ranked = values[np.argsort(np.abs(values - 0.55), kind="stable")][:5]
    assert ranked[0] < values.max()
    page = _check_page(html)
    assert "acquisition target · target 55 % · seed" in " ".join(html.split())
    assert f"nearest to the target{100 * ranked[0]:.3f} %" in page.sections["headline"]
    shown = re.findall(r"(\d+\.\d{3}) %", page.sections["best"])
    assert shown == [f"{100 * value:.3f}" for value in ranked]
    best = {row[0]: float(row[4]) / 100 for row in _table(html, "progress")}
    for source, value in best.items():
        found = [
            outcome.value
            for trial, outcome in store.outcomes.items()
            if store.trials[trial].strategy == source
        ]
        assert value == pytest.approx(min(found, key=lambda x: abs(x - 0.55)), abs=1e-5)


def _table(html: str, section: str) -> list[list[str]]:
    """The rows of the tables of a section, without their heads."""
    text = html[html.index(f'<section id="{section}">') :]
    rows = re.findall(r"<tr>(.*?)</tr>", text[: text.index("</section>")])
    cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in rows]
    return [row for row in cells if row]


def _marks(html: str, name: str) -> Counter[str]:
    """How many markers of each colour a figure has, its legend included."""
    svg = next(
        svg for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if f'id="{name}-' in svg
    )
    return Counter(re.findall(r"<use [^>]*style=\"fill: (#\w{6})", svg))


def test_the_pareto_section_of_a_constrained_run(search) -> None:
    """Two quantities, one of which has two limits."""
    limits = ("macs<=300e6", "params<=6.2e6", "macs >= 150e6")
    store, html = search(constraint=limits, **MOBILE)
    page = _check_page(html)
    pareto = page.sections["pareto"]
    assert "Limits: MACs ≤ 300 M, params ≤ 6.2 M, MACs ≥ 150 M." in pareto
    assert "MACs ≤ 300 M · params ≤ 6.2 M · MACs ≥ 150 M" in html.split("</header>")[0]
    assert ", ".join(limits) in page.sections["configuration"]
    assert len(re.findall(r'<svg[^>]* class="figure"', html)) == 7
    best, value = store.best
    metrics = store.outcomes[best.trial].metrics
    assert f"{metrics['macs'] / 1e6:.2f} M" in page.sections["headline"]
    found = [(outcome, store.trials[i]) for i, outcome in store.outcomes.items()]
    fronts = []
    for name in ("macs", "params"):
        front = [
            (outcome, trial)
            for outcome, trial in found
            if all(
                other.value < outcome.value
                or other is outcome
                or other.metrics[name] > outcome.metrics[name]
                for other, _ in found
            )
        ]
        fronts += [
            [
                f"{outcome.metrics[name] / 1e6:.2f}",
                f"{100 * outcome.value:.3f}",
                str(trial.trial),
                trial.strategy,
            ]
            for outcome, trial in sorted(front, key=lambda pair: -pair[0].value)[:10]
        ]
        # every trial is one point, and one line of the legend is one more
        marks = _marks(html, f"pareto-{QUANTITIES[name].label}")
        points = sum(marks[c] - 1 for c in (BLUE, ORANGE, GREY) if marks[c])
        assert points == store.num_finished == 12
        assert marks[GREEN] == 2  # the best, and its line of the legend
    assert _table(html, "pareto") == fronts
    assert fronts[0][1] == f"{100 * value:.3f}"


@pytest.mark.parametrize(
    ("limit", "text", "expected"),
    [
        (Limit("macs", True, 2e6), "MACs ≤ 2 M", True),
        (Limit("macs", True, 1.9e6), "MACs ≤ 1.9 M", False),
        (Limit("macs", False, 2e6), "MACs ≥ 2 M", True),
        (Limit("latency", False, 3.5), "latency ≥ 3.5 ms", False),
        (Limit("latency", True, 25), "latency ≤ 25 ms", True),
        (Limit("params", True, 1e9), "params ≤ 1000 M", False),  # not known
    ],
)
def test_limits(limit: Limit, text: str, expected: bool) -> None:
    outcome = Outcome(0, "ok", 0.7, {"macs": 2e6, "latency": 3.0})
    assert str(limit) == text
    assert limit.satisfied(outcome) == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_by_comparing_all_pairs(seed: int) -> None:
    """Of small whole numbers, so that there are many equals; of these the first counts."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    amounts, values = rng.integers(0, 10, (2, n)).astype(float)
    expected = [
        i
        for i in range(n)
        if not any(
            amounts[j] <= amounts[i]
            and values[j] >= values[i]
            and ((amounts[j], values[j]) != (amounts[i], values[i]) or j < i)
            for j in range(n)
        )
    ]
    front = pareto_front(amounts, values)
    assert sorted(front) == expected
    assert (np.diff(amounts[front]) > 0).all()
    assert (np.diff(values[front]) > 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_hypervolume_by_counting_cells(seed: int) -> None:
    """Of points at whole numbers, some of them beyond the corner."""
    rng = np.random.default_rng(seed)
    amounts, values = rng.integers(0, 10, (2, int(rng.integers(1, 10)))).astype(float)
    most, least = (int(corner) for corner in rng.integers(2, 8, 2))
    cells = sum(
        any((amounts <= x) & (values >= y + 1)) for x in range(most) for y in range(least, 10)
    )
    assert hypervolume(amounts, values, most, least) == cells


@pytest.mark.parametrize("seed", range(10))
def test_a_front_grows_to_its_whole(seed: int) -> None:
    """Trial by trial as if it were computed from all trials so far; NaN adds nothing."""
    amounts, values = np.random.default_rng(seed).uniform(1, 2, (2, 20))
    amounts[[0, 5]] = values[[0, 9]] = np.nan
    front = Front.of(amounts, values)
    grown = front.progress(amounts, values)
    expected = [hypervolume(amounts[:n], values[:n], front.most, front.least) for n in range(2, 21)]
    assert np.isnan(grown[0])
    np.testing.assert_allclose(grown[1:], np.array(expected) / front.whole)
    assert grown[-1] == pytest.approx(1)
    assert Front.of(amounts[:1], values[:1]) is None


@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize(
    ("limits", "drawn"),
    [
        ((), 0),
        (((9.0, True),), 1),
        (((2.0, False), (9.0, True)), 2),
        (((1e9, True),), 0),  # would squeeze all trials into one corner
        (((-1e9, False),), 0),
    ],
)
def test_limits_are_drawn_unless_they_are_far_away(
    n: int, limits: tuple[tuple[float, bool], ...], drawn: int, rng: np.random.Generator
) -> None:
    amounts, values = rng.uniform(3, 8, n), rng.uniform(0.5, 0.8, n)
    if n > 1:
        amounts[:2] = 3, 8
    else:
        limits, drawn = (), 0
    front = pareto_front(amounts, values)
    svg = draw_pareto(
        "MACs, M", amounts, values, np.arange(n) < 3, front=front, best=None, limits=limits
    )
    ElementTree.fromstring(svg)
    assert len(re.findall(rf"stroke-dasharray[^>]*stroke: {RED}", svg)) == drawn + (drawn > 0)
    assert ">limit<" in svg or not drawn


def test_limits_of_what_is_negative_are_drawn_too() -> None:
    one = np.array([0])
    svg = draw_pareto(
        "own", -5.0 + one, 0.5 + one, one < 1, front=one, best=0, limits=[(-4.9, True)]
    )
    assert ">limit<" in svg


def test_an_unconstrained_run_shows_values_against_macs(search) -> None:
    _, html = search(strategy="random", budget=6, **{**MOBILE, "n_init": 5})
    pareto = _check_page(html).sections["pareto"]
    assert "MACs, M" in pareto
    assert "params, M" not in pareto
    assert "limit" not in pareto.lower()


def test_the_report_of_a_search_for_a_front_says_so(search) -> None:
    _, html = search(strategy="random", pareto="macs", budget=6, **{**MOBILE, "n_init": 5})
    assert " · Pareto front with macs · " in html
    assert "no training; its Pareto front with macs" in html
    assert "the Pareto front of the search objective, and its hypervolume" in html


def test_a_run_without_metrics_has_no_pareto_section(search) -> None:
    _, html = search(strategy="random")
    assert "pareto" not in _check_page(html).sections


class _Broken:
    """Fails at everything."""

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        raise EvaluationError("out of memory")


def test_a_constrained_run_of_failures_has_no_pareto_section(search) -> None:
    settings = {**MOBILE, "constraint": ("macs<=250e6",), "strategy": "random"}
    store, html = search(_Broken, budget=6, **settings)
    assert store.num_finished == 6
    page = _check_page(html)
    assert "pareto" not in page.sections
    assert "MACs ≤ 250 M" in html.split("</header>")[0]


def test_pools_tell_how_strong_guidance_was_and_what_it_kept(search) -> None:
    """Rows of means and medians, computed once more from the store."""
    generated = {"strategy": "guided-gen", "guidance_scale": "auto"}
    store, html = search(**{**MOBILE, "constraint": ("macs<=250e6",), **generated})
    pools = [spent["diagnostics"] for spent in store.rounds if "pool" in spent["diagnostics"]]
    rows = dict(_table(html, "pools"))
    share = np.mean([pool["feasible"] for pool in pools])
    assert rows["feasible, %"] == f"{100 * share:.1f}"
    for name, row in (
        ("scale_low", "smallest guidance scale, median"),
        ("scale_high", "largest guidance scale, median"),
    ):
        assert rows[row] == f"{np.median([pool[name] for pool in pools]):.3g}"
    ratio = np.median([pool["norm_ratio"] for pool in pools])
    assert rows["norm of guidance / norm of score, median"] == f"{ratio:.3f}"
    text = _check_page(html).sections["pools"]
    assert "feasible: share of the valid that are within the limits" in text
    assert {"strongest", "weakest", "guidance / score"} <= set(re.split(r"\s*\n\s*", text))


def test_pools_tell_how_often_guided_search_stayed_near_the_best(search) -> None:
    store, html = search(**MOBILE)
    near = sum(spent["diagnostics"].get("near", 0) for spent in store.rounds)
    assert near > 0
    assert (
        f"In {counted(int(near), 'round')}, the pool consisted of mutations"
        in _check_page(html).sections["pools"]
    )


@pytest.mark.parametrize("strategy", ["mutation", "uncond+sort"])
def test_pools_without_guidance_do_not_speak_of_it(strategy: str, search) -> None:
    _, html = search(strategy=strategy)
    pools = _check_page(html).sections["pools"]
    assert "guidance" not in pools
    assert "feasible" not in pools
    assert "near the best" not in pools


def test_equal_stores_give_equal_reports(search) -> None:
    store, html = search()
    _check_page(html)
    store.close()
    replayed = RunStore.open(store.out, CONFIG)
    assert write_report(replayed).read_text(encoding="utf-8") == html
    replayed.close()


def test_an_error_text_is_shown_and_not_run(search) -> None:
    _, html = search(partial(_Failing, "b"))
    assert "<script" not in html
    assert "alert('loss & more')" in _check_page(html).sections["failed"]


def test_all_trials_failed(search) -> None:
    store, html = search(partial(_Failing, "abc"))
    page = _check_page(html)
    assert store.best is None
    assert "No evaluation succeeded" in page.sections["headline"]
    assert page.sections["failed"].count("EvaluationError") == store.num_finished == 12
    for section in ("progress", "calibration", "best", "pools"):
        assert "None" in page.sections[section]


def test_one_trial(search) -> None:
    store, html = search(budget=1, n_init=1)
    page = _check_page(html)
    assert store.num_finished == 1
    assert "1 evaluation, including the initial design of 1" in page.sections["checklist"]
    assert f"{100 * store.best[1]:.3f} %" in page.sections["headline"]
    assert "no evaluated trial had a prediction" in page.sections["calibration"]
    assert "no round proposed from a pool" in page.sections["pools"]


def test_a_run_without_a_generator_has_pools_without_rates(search) -> None:
    _, html = search(strategy="random")
    pools = _check_page(html).sections["pools"]
    assert "pool size" in pools
    assert "not recorded" in pools


def test_calibration_of_calibrated_predictions(rng: np.random.Generator) -> None:
    n = 20_000
    mean, std = rng.uniform(0.6, 0.8, n), rng.uniform(0.01, 0.02, n)
    observed = rng.normal(mean, std)
    arch = TOY.from_str("a-/a-")
    finished = [
        Finished(
            Trial(i, 1, arch, "guided", 0, float(mean[i]), float(std[i])),
            Outcome(i, "ok", float(observed[i])),
        )
        for i in range(n)
    ]
    failed = Finished(Trial(n, 1, arch, "guided", 0, 0.5, 0.1), Outcome(n, "failed", error="no"))
    first = Finished(Trial(n + 1, 0, arch, "initial", 0), Outcome(n + 1, "ok", 0.5))
    found = Calibration.of([*finished, failed, first])
    assert len(found.mean) == n
    assert found.coverage(1) == pytest.approx(0.6827, abs=0.01)
    assert found.coverage(2) == pytest.approx(0.9545, abs=0.006)
    assert found.errors.mean() == pytest.approx(0, abs=0.02)
    assert found.rmse == pytest.approx(float(np.sqrt(np.mean(std**2))), rel=0.02)
    assert found.rank_correlation > 0.7
    four = np.arange(4.0)  # of six pairs one is the other way round
    assert Calibration(four, np.ones(4), four[[0, 2, 1, 3]]).rank_correlation == pytest.approx(
        4 / 6
    )
    assert Calibration(mean[:1], std[:1], observed[:1]).rank_correlation is None


@pytest.mark.parametrize("space", [TOY, MOBILENETV3, LONG], ids=lambda space: space.name)
def test_a_box_for_every_layer(space: StagedSpace, rng: np.random.Generator) -> None:
    for arch in space.sample(20, rng):
        svg = draw(space, arch)
        assert _count(svg, "layer") == sum(op != ABSENT for op in arch.ops)
        labels = [text.text for text in ElementTree.fromstring(svg).iter() if "text" in text.tag]
        assert len(labels) == _count(svg, "layer") + len(space.stages)


def test_a_labelled_edge_for_every_operation(rng: np.random.Generator) -> None:
    space = SPACES["nasbench201"]
    for arch in space.sample(20, rng):
        svg = draw(space, arch)
        missing = arch.ops.count(OPERATORS.index("none"))
        assert _count(svg, "node") == 4
        assert _count(svg, "none") == missing
        assert _count(svg, "edge") == len(CELL_EDGES) - missing
        assert svg.count("<text") == 4 + len(CELL_EDGES) - missing


def test_drawings_stay_inside_their_frame(rng: np.random.Generator) -> None:
    for space in (*SPACES.values(), LONG):
        for arch in space.sample(50, rng):
            svg = ElementTree.fromstring(draw(space, arch))
            _, _, width, height = map(float, svg.get("viewBox").split())
            for box in svg.iter("{http://www.w3.org/2000/svg}rect"):
                x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
                assert 0 <= x <= x + w <= width
                assert 0 <= y <= y + h <= height
