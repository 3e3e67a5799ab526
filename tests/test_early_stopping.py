"""Trainings that are stopped early: what the store, the surrogate and Ray Tune make of them."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import colours
from processes import marked

from nag.cli import run
from nag.predictors.gp import GaussianProcess
from nag.spaces.toy import TOY
from orchestrator.build import build_optimizer
from orchestrator.config import RunConfig
from orchestrator.history.trials import Outcome, Trial
from orchestrator.reporting import figures
from orchestrator.reporting.figures import BLUE
from orchestrator.reporting.run_report import write_report
from orchestrator.run_bo import app
from orchestrator.search.bayesopt import Suggestion, with_early_values
from orchestrator.search.store import RunStore
from orchestrator.search.trial import evaluate_trial
from trainers.base import Measurement
from trainers.rows import PERCENT

ROOT = Path(__file__).parent.parent
CONFIG = RunConfig(space="toy", score="exact")
MARK = {"NAG_TEST_TRAININGS": uuid.uuid4().hex}  # in the environment of all that is started here
TEXTS = ("aa/aa", "ab/aa", "ac/aa", "ba/aa")


@pytest.fixture
def store(tmp_path):
    """Two whole trainings of three epochs and one that was stopped after the first; synthetic."""
    with closing(RunStore.open(tmp_path / "run", CONFIG)) as opened:
        opened.propose(Suggestion(tuple(map(TOY.from_str, TEXTS)), "initial", (None,) * 4))
        for number, curve in enumerate([(0.1, 0.2, 0.5), (0.3,), (0.2, 0.3, 0.6)]):
            stopped = 1 if len(curve) == 1 else None
            opened.record(Outcome(number, "ok", curve[-1], curve=curve, stopped=stopped))
        yield opened


def values(observations):
    texts = map(TOY.to_str, observations.archs)
    return dict(zip(texts, observations.values.tolist(), strict=True))


def check(store):
    assert values(store.observations()) == {"aa/aa": 0.5, "ac/aa": 0.6}
    assert values(store.after(1)) == {"aa/aa": 0.1, "ab/aa": 0.3, "ac/aa": 0.2}
    assert values(store.after(2)) == {"aa/aa": 0.2, "ac/aa": 0.3}
    assert values(store.after(1, before=0)) == {}
    assert (store.best[1], store.spent) == (0.6, 3)


def test_what_was_stopped_is_no_value_and_counts_as_an_evaluation(store):
    check(store)
    check(RunStore.read(store.out))
    (row,) = (row for row in store.rows() if "stopped" in row)
    assert (row["trial"], row["stopped"], row["curve"]) == (1, 1, [30.0])


def shown_as_best(html):
    """Epochs of the learning curves that stand out in a report."""
    figure = html[html.index('<h2 id="curves">') : html.index('<section id="calibration">')]
    lines = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {BLUE}; stroke-width: 1.8', figure)
    return [len(re.findall("[ML]", line)) for line in lines][:-1]  # the last is in the legend


def test_learning_curves_are_drawn_from_the_first_epoch_to_the_last(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "to_svg", lambda figure, name: drawn.append(figure))
    figures.draw_curves([[0.1, 0.2, 0.3], [0.2]], best=0, unit=PERCENT)
    first, last = drawn[0].axes[0].get_xlim()
    assert (0 < first < 1, 3 < last < 4) == (True, True)


def test_the_best_learning_curve_is_that_of_a_whole_training(store, tmp_path):
    """Also where one that was stopped, or a brief one, was better when it ended."""
    html = write_report(store).read_text()
    store.record(Outcome(3, "ok", 0.9, curve=(0.8, 0.9), stopped=2))
    assert shown_as_best(html) == shown_as_best(write_report(store).read_text()) == [3]
    with closing(RunStore.open(tmp_path / "all stopped", CONFIG)) as other:
        other.propose(Suggestion((TOY.from_str("aa/aa"),), "initial", (None,)))
        other.record(Outcome(0, "ok", 0.9, curve=(0.8, 0.9), stopped=2))
        html = write_report(other).read_text()
        assert shown_as_best(html) == []
        assert "No complete evaluation succeeded" in html


def test_early_values_are_another_task_to_the_gaussian_process(store):
    optimizer = build_optimizer(CONFIG, generator=None)
    full, early = store.observations(), store.after(1)
    found, known = with_early_values(optimizer, full, early)
    assert known is full
    assert isinstance(found.predictor, GaussianProcess)
    assert len(found.predictor.priors) == 1
    (arch,) = (TOY.from_str("ab/aa"),)
    of_early = optimizer.predictor.fit(early, np.random.default_rng(0)).predict([arch])
    assert found.predictor.priors[0].predict([arch]).mean == pytest.approx(of_early.mean)


def test_early_values_are_all_there_is_at_first(store):
    optimizer = build_optimizer(CONFIG, generator=None)
    full = store.observations(before=0)
    found, known = with_early_values(optimizer, full, store.after(1))
    assert (found.predictor.priors, len(known)) == ((), 3)


class _InSteps:
    """Trains for three epochs, and fails once before the second; synthetic."""

    epochs = 3

    def __init__(self):
        self.done, self.failed = 0, False

    def epoch_by_epoch(self, arch, *, seed):
        while self.done < 3:
            if self.done == 1 and not self.failed:
                self.failed = True
                raise OSError("a cable came loose")
            self.done += 1
            yield Measurement(self.done / 10, curve=(0.1, 0.2, 0.3)[: self.done])


def test_an_error_in_between_goes_on_where_it_was():
    from orchestrator.executors.ray_tune import _Epochs

    training = _Epochs(_InSteps())
    trial = Trial(0, 0, TOY.from_str("aa/aa"), "initial", seed=1)
    found = [evaluate_trial(training, trial, retries=1) for _ in range(3)]
    assert [(len(outcome.curve), outcome.attempts) for outcome in found] == [(1, 1), (2, 2), (3, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


SETTINGS = {
    "--space": "nasbench201",
    "--evaluator": "train",
    "--resolution": 8,
    "--recipe": "small",
    "--epochs": 9,
    "--executor": "tune",
    "--early-stopping": "asha",
    "--score": "exact",
    "--steps": 5,
    "--pool-size": 20,
    "--n-init": 6,
    "--schedule": "async",
    "--budget": 12,
    "--workers": 2,
    "--auth": "disabled",
}


def arguments(data, out, changes=()):
    settings = {**SETTINGS, "--data": data, "--out": out, **dict(changes)}
    return ["--no-dashboard", *map(str, itertools.chain(*settings.items()))]


def start(data, out):
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run_bo", *arguments(data, out)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"OMP_NUM_THREADS": "1", **MARK},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def evaluations():
    """Pids of the workers that hold an evaluator: idle ones, and those that train."""
    started = marked("=".join(*MARK.items()))
    names = {"ray::_Evaluation"[:15], "ray::ResourceTrainable.train"[:15]}
    return [pid for name, pid in started if name in names]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--executor": "local", "--workers": 1}, "--early-stopping requires --executor tune"),
        ({"--grace-epochs": 9}, "--grace-epochs 9 must be less than the 9 epochs of a training"),
        ({"--grace-epochs": 0}, "--grace-epochs must be at least 1"),
        ({"--method": "bohb", "--schedule": "rounds"}, "bohb requires --early-stopping none"),
    ],
)
def test_settings_that_do_not_fit(data, tmp_path, changes, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(app, arguments(data, tmp_path / "run", changes))
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.ray
@pytest.mark.slow
def test_twelve_trainings_of_which_the_workers_are_killed(data, tmp_path):
    """Real trainings, of tiny networks on made pictures; the first has saved an epoch by then."""
    process = start(data, tmp_path / "run")
    while not [*(tmp_path / "run" / "checkpoints").glob("*.safetensors")]:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    for worker in evaluations():
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=500)
    assert (process.returncode, err) == (0, ""), out
    found = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert list(found["trial"]) == list(range(12))
    assert set(found["status"]) == {"ok"}
    assert 12 < found["attempts"].sum() <= 14
    lengths = found["curve"].map(len)
    stopped = found["stopped"].notna()
    assert (lengths[stopped] == found["stopped"][stopped]).all()
    assert (lengths[~stopped] == 9).all()
    assert stopped.any()
    assert (~stopped).any()
    assert set(found["stopped"][stopped]) <= {1, 3}
    assert found["test"].notna().eq(~stopped).all()
    assert "Learning curves" in (tmp_path / "run" / "report.html").read_text()
