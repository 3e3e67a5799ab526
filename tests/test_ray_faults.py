"""What the Ray executor does when workers die, evaluations raise, or the cluster is not there."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from ray import cloudpickle

from nag.errors import UserError
from nag.generate import Samples
from nag.generator import DiffusionGenerator, Guidance, Part
from nag.spaces import Architecture
from nag.spaces.toy import TOY
from orchestrator.build import build_optimizer, make_evaluator, plan_of
from orchestrator.config import RunConfig
from orchestrator.executors import ray_core, ray_tune
from orchestrator.executors.cluster import ClusterError
from orchestrator.executors.local import LocalExecutor
from orchestrator.executors.ray_core import RayExecutor, RayGenerator
from orchestrator.history.trials import Outcome, Trial
from orchestrator.runtime import Runtime
from orchestrator.search.loop import run_study
from orchestrator.search.store import RunStore
from orchestrator.search.trial import Executor
from trainers.base import Evaluator, Measurement
from trainers.evaluators.toy import ToyEvaluator

pytestmark = pytest.mark.ray

CONFIG = RunConfig(space="toy", score="exact", budget=16, n_init=4, batch_size=3, threads=1)
TOY_EVALUATOR = partial(make_evaluator, RunConfig(space="toy"))
RAISES, KILLS, KILLS_ONCE = "ca/aa", "ca/bb", "ca/cc"
HANGS, STUCK, TOO_LARGE, TOO_LARGE_FOR_TWO = "cb/aa", "cb/ab", "cb/bb", "cb/cc"
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


class _Faulty(ToyEvaluator):
    """Raises at one architecture, kills its process at another, and once at a third."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        text = TOY.to_str(arch)
        if text == RAISES:
            raise RuntimeError("the training diverged")
        if text == KILLS or (text == KILLS_ONCE and not self._marker.exists()):
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if text == HANGS:
            time.sleep(3600)
        if text == STUCK:
            sum(range(10**13))  # for hours, without a look at signals
        if text == TOO_LARGE:
            raise MemoryError("as always")
        if (
            text == TOO_LARGE_FOR_TWO
            and ray.get_runtime_context().get_assigned_resources()["CPU"] < 2
        ):
            raise MemoryError("with one CPU")
        time.sleep(0.2)
        return super().evaluate(arch, seed=seed)


class _Last(ToyEvaluator):
    """Synthetic: once it has evaluated, the time of its process is over."""

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        for module in (ray_core, ray_tune):
            module.time = SimpleNamespace(time=lambda: math.inf)  # type: ignore[attr-defined]
        return super().evaluate(arch, seed=seed)


def _no_table() -> Evaluator:
    raise FileNotFoundError("no such file: table.parquet")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of two CPUs that all tests of this file join."""
    from ray_cluster import PatientCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = PatientCluster(num_cpus=2, object_store_memory=150 * 2**20)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture
def start(address: str) -> Iterator[Callable[..., RayExecutor]]:
    """Start executors on that Ray; they are closed after the test."""
    started: list[RayExecutor] = []

    def make(evaluator: Callable[[], Evaluator] = TOY_EVALUATOR, **settings: Any) -> RayExecutor:
        runtime = Runtime(address=address, auth="disabled", device="cpu", **settings)
        started.append(RayExecutor(CONFIG, runtime, evaluator))
        return started[-1]

    yield make
    for executor in started:
        executor.close()


def _search(executor: Executor, out: Path) -> list[tuple[str, float | None]]:
    store = RunStore.open(out, CONFIG)
    run_study(
        build_optimizer(CONFIG, executor.generator),
        executor,
        store,
        plan_of(CONFIG),
    )
    store.close()
    return [(TOY.to_str(trial.arch), store.outcomes[trial.trial].value) for trial in store.trials]


def test_several_generators_make_the_samples_of_one(start: Callable[..., RayExecutor]) -> None:
    executor = start(workers=1, generators=2)
    parts = [Part(20, 1), Part(20, 2), Part(30, 3)]
    expected = DiffusionGenerator(CONFIG.generator("cpu")).generate_parts(parts)
    found = executor.generator.generate_parts(parts)
    assert [samples.archs for samples in found] == [samples.archs for samples in expected]
    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert names >= {"generator", "generator-1"}


def _trials(*archs: str) -> list[Trial]:
    return [Trial(i, 0, TOY.from_str(arch), "initial", seed=i) for i, arch in enumerate(archs)]


def _outcomes(executor: Executor, trials: Sequence[Trial]) -> list[Outcome]:
    left = iter(trials)
    return sorted(executor.run(lambda room: [*islice(left, room)]), key=lambda o: o.trial)


def test_trials_do_not_depend_on_the_executor(
    start: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    local = LocalExecutor(CONFIG.generator("cpu"), TOY_EVALUATOR(), retries=2)
    expected = _search(local, tmp_path / "local")
    assert len(expected) == CONFIG.budget
    for workers in (1, 2):
        executor = start(workers=workers)
        assert _search(executor, tmp_path / str(workers)) == expected
        executor.close()


@pytest.fixture(scope="class")
def executor(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    evaluator = partial(_Faulty, tmp_path_factory.mktemp("faults") / "died once")
    runtime = Runtime(address=address, auth="disabled", device="cpu", workers=2, retries=1)
    executor = RayExecutor(CONFIG, runtime, evaluator)
    yield executor
    executor.close()


@pytest.fixture
def five_seconds(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an evaluation; in other tests a busy machine may take longer."""
    monkeypatch.setattr(executor, "_runtime", replace(executor._runtime, timeout=5))


def test_what_waits_when_the_time_is_over_does_not_begin(start: Callable[..., RayExecutor]) -> None:
    executor = start(_Last, ends_at=time.time() + 1e6)
    outcomes = _outcomes(executor, trials := _trials(*(f"{a}{b}/a-" for a in "abc" for b in "abc")))
    assert 0 < len(outcomes) < len(trials)
    assert {outcome.status for outcome in outcomes} == {"ok"}


class TestFaults:
    """All with one executor, because starting one takes seconds."""

    def test_a_lost_worker_costs_one_attempt(self, executor: RayExecutor) -> None:
        outcomes = _outcomes(executor, _trials(KILLS_ONCE, *["a-/a-", "b-/b-", "c-/c-"] * 2))
        assert [outcome.status for outcome in outcomes] == ["ok"] * 7
        assert [outcome.attempts for outcome in outcomes] == [2, 1, 1, 1, 1, 1, 1]

    def test_an_architecture_that_kills_its_worker_is_given_up(self, executor: RayExecutor) -> None:
        outcomes = _outcomes(executor, _trials("a-/a-", KILLS, "b-/b-", "c-/c-"))
        assert [outcome.status for outcome in outcomes] == ["ok", "failed", "ok", "ok"]
        assert outcomes[1].attempts == 2
        assert "the worker was lost" in str(outcomes[1].error)
        assert [o.status for o in _outcomes(executor, _trials("bb/bb", "cc/cc"))] == ["ok", "ok"]

    def test_an_exception_is_a_result(self, executor: RayExecutor) -> None:
        failed, fine = _outcomes(executor, _trials(RAISES, "a-/a-"))
        assert failed.status == "failed"
        assert str(failed.error).startswith("RuntimeError: the training diverged (")
        assert failed.attempts == 2
        assert fine.status == "ok"

    @pytest.mark.usefixtures("five_seconds")
    def test_a_hung_evaluation_is_given_up(self, executor: RayExecutor) -> None:
        hung, fine = _outcomes(executor, _trials(HANGS, "a-/a-"))
        assert hung.status == "failed"
        assert hung.error == "TimeoutError: the evaluation took more than 5 s"
        assert hung.attempts == 1
        assert fine.status == "ok"

    @pytest.mark.usefixtures("five_seconds")
    def test_what_ignores_its_deadline_is_ended(
        self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.executors.ray_core.LAST_RESORT_SECONDS", 1.0)
        stuck, fine = _outcomes(executor, _trials(STUCK, "a-/a-"))
        assert (stuck.status, stuck.attempts, fine.status) == ("failed", 2, "ok")
        assert "the worker was lost" in str(stuck.error)

    def test_out_of_memory_is_tried_once_more_alone(self, executor: RayExecutor) -> None:
        others = ["a-/a-", "b-/b-", "c-/c-", "aa/aa"]
        outcomes = _outcomes(executor, _trials(TOO_LARGE_FOR_TWO, TOO_LARGE, *others))
        assert [outcome.status for outcome in outcomes] == ["ok", "failed", *["ok"] * 4]
        assert [outcome.attempts for outcome in outcomes] == [2, 2, 1, 1, 1, 1]
        assert outcomes[1].error == "MemoryError: as always"

    def test_the_generator_comes_back(self, executor: RayExecutor) -> None:
        before = executor.generator.generate(8, seed=3)
        ray.kill(executor.generator._actors[0], no_restart=False)
        after = executor.generator.generate(8, seed=3)
        assert after.archs == before.archs


@ray.remote(num_cpus=0)
class _Raising:
    """In place of a generator."""

    def generate(self, n: int, seed: int, guidance: Guidance | None) -> Samples:
        raise UserError("the GPU failed") if n else ValueError("a bug")


def test_what_ends_the_generator_ends_the_run(start: Callable[..., RayExecutor]) -> None:
    start()  # joins Ray
    generator = RayGenerator([_Raising.remote()], {})
    with pytest.raises(UserError, match=r"^the GPU failed$"):
        generator.generate(8, seed=3)
    with pytest.raises(ValueError, match="a bug"):
        generator.generate(0, seed=3)


def test_one_proposal_serves_all_that_have_ended(
    start: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    executor = start(partial(_Faulty, tmp_path / "none"), workers=4, cpus_per_eval=0.5)
    trials = _trials(*["a-/a-", "b-/b-", "c-/c-", "aa/aa"] * 3)
    left, rooms = iter(trials), []

    def ask(room: int) -> list[Trial]:
        running = list(executor._running)
        if running:  # meanwhile all of them end
            ray.wait(running, num_returns=len(running))
        asked = [*islice(left, room)]
        rooms.append(len(asked))
        return asked

    assert len([*executor.run(ask)]) == len(trials)
    assert rooms[0] == 4
    assert max(rooms[1:]) > 1, "as if there were one worker"


def test_an_evaluator_that_cannot_start_stops_the_run(
    start: Callable[..., RayExecutor],
) -> None:
    executor = start(_no_table)
    with pytest.raises(ClusterError, match=r"^an evaluator could not start: .*table\.parquet$"):
        _outcomes(executor, _trials("a-/a-"))


def _on_a_full_gpu(cpus: int) -> Evaluator:
    """Starts only where there are so many CPUs, as an attempt has that is alone."""
    if ray.get_runtime_context().get_assigned_resources()["CPU"] < cpus:
        raise UserError("device 'cuda' is not available (CUDA error: out of memory)")
    return ToyEvaluator()


def test_an_evaluator_without_memory_starts_alone(start: Callable[..., RayExecutor]) -> None:
    executor = start(partial(_on_a_full_gpu, 2))
    outcomes = _outcomes(executor, _trials("a-/a-", "b-/b-"))
    assert [outcome.status for outcome in outcomes] == ["ok", "ok"]
    assert max(outcome.attempts for outcome in outcomes) == 2
    executor.close()
    with pytest.raises(ClusterError, match=r"^an evaluator could not start: .*out of memory\)$"):
        _outcomes(start(partial(_on_a_full_gpu, 3)), _trials("a-/a-", "b-/b-"))


def test_a_generator_that_cannot_start_stops_the_run(address: str) -> None:
    runtime = Runtime(address=address, auth="disabled", device="cpu")
    with pytest.raises(
        ClusterError, match=r"^the generator could not start: .*no trained weights .* 'toy'"
    ):
        RayExecutor(replace(CONFIG, score="network"), runtime, TOY_EVALUATOR)


def test_what_no_machine_has_is_refused() -> None:
    runtime = Runtime(auth="disabled", dashboard=False, device="cpu", gpus_per_eval=0.5)
    with pytest.raises(
        ClusterError, match=r"needs 1 CPU, 0\.5 GPU; the cluster has \d+ CPU, 0 GPU"
    ):
        RayExecutor(CONFIG, runtime, TOY_EVALUATOR)


def test_an_address_nobody_answers_at_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is not asked: it would try for minutes."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    runtime = Runtime(address="127.0.0.1:1", auth="disabled")
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        RayExecutor(CONFIG, runtime, TOY_EVALUATOR)
