"""`run_bo --executor tune`: the trials of a local run, whatever happens to it."""

import os
import signal
import sys
import time
from contextlib import closing
from functools import partial
from itertools import islice

import pytest

pytest.importorskip("ray")

from ray import cloudpickle
from test_ray_faults import (
    CONFIG,
    KILLS,
    KILLS_ONCE,
    RAISES,
    STUCK,
    TOO_LARGE,
    _Faulty,
    _Last,
    _no_table,
    _outcomes,
    _trials,
    address,  # noqa: F401
)
from test_ray_run import LOCAL, continued, expected, found, killed, stopped_twice  # noqa: F401

from nag.spaces.toy import TOY
from orchestrator.executors.cluster import ClusterError
from orchestrator.executors.ray_tune import TuneExecutor
from orchestrator.runtime import Runtime
from trainers.base import Measurement
from trainers.evaluators.toy import ToyEvaluator

pytestmark = [pytest.mark.ray, pytest.mark.slow]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
TUNE = ["--executor", "tune", "--auth", "disabled", "--no-dashboard"]


def test_a_stopped_run_continues(expected, killed, tmp_path):  # noqa: F811
    """With Tune, or with another executor: where a run happens is no part of it."""
    run = stopped_twice(tmp_path / "run", killed, *TUNE, "--workers", "2")
    logged = list((run.out / "tune").glob("trial-*/result.json"))
    assert len(logged) >= 3, "Tune logs what it has run, at the latest when it is interrupted"
    code, _, stderr = continued(run, *LOCAL).finish()
    assert (code, stderr) == (0, "")
    assert found(run.out)[:16] == expected


@pytest.fixture
def executor_of(address):  # noqa: F811
    """All join one Ray, because starting one takes seconds."""

    def make(evaluator, out, **settings):
        runtime = Runtime(
            address=address, auth="disabled", workers=2, retries=1, out=out, **settings
        )
        return closing(TuneExecutor(CONFIG, runtime, evaluator))

    return make


def test_an_evaluator_that_cannot_start_ends_the_run(executor_of, tmp_path):
    with (
        executor_of(_no_table, tmp_path) as executor,
        pytest.raises(ClusterError, match=r"could not start: .*no such file: table\.parquet"),
    ):
        _outcomes(executor, _trials("aa/aa", "ab/aa"))


def test_faults_are_outcomes(executor_of, tmp_path):
    """Two evaluators, one retry: an exception, a worker that always dies, one that dies once."""
    with executor_of(partial(_Faulty, tmp_path / "marker"), tmp_path) as executor:
        for archs in (["aa/aa", KILLS_ONCE, RAISES], [KILLS, "ab/aa"]):
            outcomes = _outcomes(executor, _trials(*archs))
            statuses = {arch: o.status for arch, o in zip(archs, outcomes, strict=True)}
            assert statuses == {a: "failed" if a in (RAISES, KILLS) else "ok" for a in archs}
            if RAISES in archs:
                assert outcomes[2].error.startswith("RuntimeError: the training diverged (")
                assert outcomes[2].attempts == 2
                assert outcomes[1].attempts == 2
            else:
                assert outcomes[0].error == "the worker was lost"
                assert [outcome.attempts for outcome in outcomes] == [2, 1]


class Where(ToyEvaluator):
    """Synthetic: says which process it was in."""

    def evaluate(self, arch, *, seed):
        return Measurement(super().evaluate(arch, seed=seed).value, {"pid": os.getpid()})


def test_an_idle_worker_that_died_costs_an_attempt(executor_of, tmp_path):
    """Tune gives the next trial to it, and would not try that again."""
    with executor_of(Where, tmp_path) as executor:
        (before,) = _outcomes(executor, _trials("aa/aa"))
        os.kill(int(before.metrics["pid"]), signal.SIGKILL)
        (after,) = _outcomes(executor, _trials("ab/aa"))
    assert (after.status, after.attempts) == ("ok", 2)
    assert after.metrics["pid"] != before.metrics["pid"]


@pytest.mark.timeout(300)  # without the last resort it would take for ever
def test_what_ignores_its_deadline_is_ended(executor_of, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.executors.ray_tune.LAST_RESORT_SECONDS", 1.0)
    evaluator = partial(_Faulty, tmp_path / "marker")
    with executor_of(evaluator, tmp_path, timeout=5) as executor:
        stuck, fine = _outcomes(executor, _trials(STUCK, "ab/aa"))
    assert (stuck.status, stuck.error) == ("failed", "the worker was lost")
    assert fine.status == "ok"


def test_what_waits_when_the_time_is_over_does_not_begin(executor_of, tmp_path):
    trials = _trials(*(f"{a}{b}/a-" for a in "abc" for b in "abc"))
    with executor_of(_Last, tmp_path, ends_at=time.time() + 1e6) as executor:
        outcomes = _outcomes(executor, trials)
    assert 0 < len(outcomes) < len(trials)
    assert {outcome.status for outcome in outcomes} == {"ok"}


class OnlyAlone(ToyEvaluator):
    """Synthetic: one network runs out of memory at first, and then if another is beside it."""

    def __init__(self, folder):
        self._folder = folder

    def evaluate(self, arch, *, seed):
        first, others = self._folder / "first", self._folder / "others"
        if TOY.to_str(arch) == TOO_LARGE:
            if not first.exists() or [*others.iterdir()]:
                first.touch()
                raise MemoryError("there is another one")
        else:
            (others / str(seed)).touch()
            time.sleep(1)
            (others / str(seed)).unlink()
        return super().evaluate(arch, seed=seed)


def test_out_of_memory_is_tried_once_more_alone(executor_of, tmp_path):
    (tmp_path / "others").mkdir()
    left = iter(_trials("aa/aa", TOO_LARGE, "ab/aa", "ac/aa", "ba/aa", "bc/aa"))

    def ask(room):
        return [*islice(left, min(room, 3))]

    with executor_of(partial(OnlyAlone, tmp_path), tmp_path / "run") as executor:
        outcomes = sorted(executor.run(ask), key=lambda outcome: outcome.trial)
    assert [outcome.status for outcome in outcomes] == ["ok"] * 6
    assert [outcome.attempts for outcome in outcomes] == [1, 2, 1, 1, 1, 1]
