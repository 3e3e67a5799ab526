"""What a run tells Ray's metrics, read where it is told; no Ray is started."""

import os
import socket
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from ray.util.metrics import Counter, Gauge, Histogram

from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.executors import metrics as ray_metrics
from orchestrator.executors.cluster import ClusterError, connect
from orchestrator.executors.metrics import RayMetrics, rank_correlation
from orchestrator.history.trials import Outcome
from orchestrator.runtime import Runtime
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore
from trainers.evaluators.toy import ToyEvaluator

pytestmark = pytest.mark.filterwarnings("error")  # a user would see them

CONFIG = RunConfig(space="toy", score="exact", budget=20, n_init=3, batch_size=2)
ARCHS = ("aa/aa", "ab/c-", "c-/bb", "ca/bc", "ba/bc", "bb/bb")


@pytest.fixture
def clock(monkeypatch):
    at = [100.0]
    monkeypatch.setattr(ray_metrics, "perf_counter", lambda: at[0])
    return at


@pytest.fixture
def told(monkeypatch):
    """The last value of each gauge and the sum of each counter, by name and label."""
    found = {}

    def name(metric, tags):
        assert metric.info["default_tags"] == {"run": "a-run"}
        return (metric.info["name"], *tags.values())

    def inc(metric, amount, tags):
        found[name(metric, tags)] = found.get(name(metric, tags), 0) + amount

    monkeypatch.setattr(Gauge, "set", lambda m, x, tags: found.__setitem__(name(m, tags), x))
    monkeypatch.setattr(Counter, "inc", inc)
    monkeypatch.setattr(Histogram, "observe", lambda metric, x: None)
    return found


@pytest.fixture
def store(tmp_path):
    store = RunStore.open(tmp_path / "run", CONFIG)
    yield store
    store.close()


def propose(store, archs, predicted=None, seconds=None, diagnostics=None):
    found = Suggestion(
        tuple(map(TOY.from_str, archs)),
        "guided",
        tuple((mean, 0.1) for mean in predicted) if predicted else (None,) * len(archs),
        seconds or {},
        diagnostics or {},
    )
    store.propose(found)
    return found


def metrics(store, executor=None, optimum=None, reserved=None):
    executor = executor or SimpleNamespace(
        slots=2, generators=1, generator_request={}, evaluation_request=reserved or {"CPU": 1.0}
    )
    return RayMetrics("a-run", CONFIG, executor, optimum, store)


def test_a_round(store, told, clock):
    observer = metrics(store, reserved={"CPU": 2.0, "GPU": 0.25, "evaluator": 1.0})
    clock[0] += 10
    seconds = {"fit": 1.0, "propose": 5.0, "select": 2.0}
    diagnostics = {"generator_seconds": 4.0, "validity": 0.9, "uniqueness": 0.8}
    diagnostics |= {"scale_low": 2.0, "scale_high": 50.0, "pending": 1}
    observer.proposed(store, propose(store, ARCHS[:2], (0.1, 0.2), seconds, diagnostics))
    assert told["nag_pending",] == 2
    assert told["nag_staleness",] == 1
    clock[0] += 10
    for outcome in (Outcome(0, "ok", 0.5, seconds=8.0), Outcome(1, "failed", seconds=4.0)):
        store.record(outcome)
        observer.finished(store, outcome)
    expected = {
        ("nag_budget",): 20,
        ("nag_spent",): 2,
        ("nag_best_value",): 0.5,
        ("nag_evaluations", "ok"): 1,
        ("nag_evaluations", "failed"): 1,
        ("nag_pending",): 0,
        ("nag_staleness",): 1,
        ("nag_slots", "evaluate"): 2,
        ("nag_slots", "generate"): 1,
        ("nag_utilisation", "evaluate"): 12 / (2 * 20),
        ("nag_utilisation", "generate"): 4 / 20,
        **{("nag_phase_seconds", phase): x for phase, x in seconds.items()},
        ("nag_phase_seconds", "generate"): 4,
        ("nag_phase_seconds", "evaluate"): 12,
        ("nag_phase_seconds", "wait"): 12,  # of 20 seconds the driver worked 8
        ("nag_cost_seconds", "cpu"): 12 * 2 + 4,
        ("nag_cost_seconds", "gpu"): 12 * 0.25,
        ("nag_pool_validity",): 0.9,
        ("nag_pool_uniqueness",): 0.8,
        ("nag_guidance_scale", "low"): 2,
        ("nag_guidance_scale", "high"): 50,
    }
    assert told == pytest.approx(expected)


def test_the_generator_s_gpu_costs_gpu_seconds(store, told, clock):
    observer = metrics(
        store,
        SimpleNamespace(
            slots=1, generators=1, generator_request={"GPU": 0.5}, evaluation_request={"CPU": 1.0}
        ),
    )
    clock[0] += 10
    observer.proposed(store, propose(store, ARCHS[:1], None, None, {"generator_seconds": 4.0}))
    assert told["nag_cost_seconds", "gpu"] == 2
    assert ("nag_cost_seconds", "cpu") not in told


def test_machines_that_join_count_from_then_on(store, told, clock):
    executor = SimpleNamespace(
        slots=1, generators=1, generator_request={}, evaluation_request={"CPU": 1.0}
    )
    observer = metrics(store, executor)
    propose(store, ARCHS[:2])
    for trial, slots in ((0, 1), (1, 3)):
        executor.slots = slots
        clock[0] += 10
        outcome = Outcome(trial, "ok", 0.5, seconds=10.0)
        store.record(outcome)
        observer.finished(store, outcome)
    assert told["nag_utilisation", "evaluate"] == pytest.approx(20 / (10 * 1 + 10 * 3))


def test_a_continued_run_is_told_at_once(store, told, clock):
    propose(store, ARCHS[:2])
    store.record(Outcome(0, "ok", 0.5))
    metrics(store, optimum=ToyEvaluator().optimum)
    assert told["nag_best_value",] == 0.5
    assert told["nag_spent",] == 1
    assert told["nag_pending",] == 1
    assert told["nag_slots", "evaluate"] == 2
    assert ("nag_regret",) in told


def test_regret_is_told_where_the_optimum_is_known(store, told, clock):
    observer = metrics(store, optimum=ToyEvaluator().optimum)
    propose(store, ARCHS[:1])
    outcome = Outcome(0, "ok", 0.5)
    store.record(outcome)
    observer.finished(store, outcome)
    best = max(ToyEvaluator().evaluate(arch, seed=0).value for arch in _all_of_toy())
    assert told["nag_regret",] == pytest.approx(best - 0.5)


def _all_of_toy():
    import numpy as np

    return set(TOY.sample(5000, np.random.default_rng(0)))


def test_gauges_are_told_again(store, told, clock, monkeypatch):
    """Ray forgets what is not, and a long evaluation tells nothing."""
    alive = [True, True, False]
    monkeypatch.setattr(ray_metrics.ray, "is_initialized", lambda: alive.pop(0))
    monkeypatch.setattr(ray_metrics, "sleep", lambda seconds: told.clear())
    monkeypatch.setattr(ray_metrics, "Thread", lambda target, daemon: SimpleNamespace(start=target))
    sets = []
    monkeypatch.setattr(Gauge, "set", lambda metric, x, tags: sets.append(metric.info["name"]))
    metrics(store)
    assert sets.count("nag_budget") == 3


def test_rank_correlation(store):
    assert rank_correlation(store) is None
    propose(store, ARCHS[:1])  # not predicted
    propose(store, ARCHS[1:], (0.1, 0.2, 0.3, 0.4, 0.5))
    for trial, value in ((0, 0.9), (1, 0.2), (2, 0.3)):
        store.record(Outcome(trial, "ok", value))
    assert rank_correlation(store) == 1
    store.record(Outcome(3, "failed", error="Error: no"))
    store.record(Outcome(4, "ok", 0.1))
    assert rank_correlation(store) == pytest.approx(-1 / 3)


def test_rank_correlation_is_of_the_last_trials(store, monkeypatch):
    monkeypatch.setattr(ray_metrics, "_WINDOW", 2)
    propose(store, ARCHS[:4], (0.1, 0.2, 0.3, 0.4))
    for trial, value in enumerate((0.9, 0.8, 0.1, 0.2)):
        store.record(Outcome(trial, "ok", value))
    assert rank_correlation(store) == 1


def test_rank_correlation_looks_no_further_back(store, monkeypatch):
    """A search without a surrogate would read all of its trials after every outcome."""
    monkeypatch.setattr(ray_metrics, "_WINDOW", 2)
    propose(store, ARCHS[:2], (0.1, 0.2))
    propose(store, ARCHS[2:4])
    for trial in range(4):
        store.record(Outcome(trial, "ok", 0.5 + trial / 10))
    assert rank_correlation(store) is None


def test_ranks_of_equal_predictions_mean_nothing(store):
    propose(store, ARCHS[:3], (0.5, 0.5, 0.5))
    for trial, value in enumerate((0.1, 0.2, 0.3)):
        store.record(Outcome(trial, "ok", value))
    assert rank_correlation(store) is None


def test_a_port_that_is_taken_is_one_line(monkeypatch):
    """Ray would start without metrics."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"--metrics-port {port} cannot be used: Address"):
            connect(Runtime(metrics_port=port, auth="disabled"))
