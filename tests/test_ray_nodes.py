"""Machines that come and go, and a run in which everything is killed again and again.

The machines are raylets of Ray's own test cluster on this machine.
"""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
from processes import marked

pytest.importorskip("ray")

import ray
from chaos_driver import finished
from ray import cloudpickle

from nag.spaces import Architecture
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.executors.cluster import ClusterError, Machines
from orchestrator.executors.ray_core import RayExecutor
from orchestrator.executors.ray_tune import TuneExecutor
from orchestrator.executors.tasks import RayTasks
from orchestrator.history.trials import Trial
from orchestrator.runtime import Runtime
from orchestrator.search import trial as trial_module
from trainers.base import Measurement
from trainers.evaluators.toy import ToyEvaluator

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HERE = Path(__file__).parent
MARK = "NAG_TEST_CLUSTER"  # in the environment of all processes of a test's cluster
CONFIG = RunConfig(space="toy", score="exact", budget=16, n_init=4, batch_size=3)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


class Nodes:
    """A cluster whose machines have two CPUs each, but for the head, which has none."""

    def __init__(self, count: int) -> None:
        from ray_cluster import PatientCluster

        self.mark = os.environ[MARK]
        self._cluster = PatientCluster(num_cpus=0, object_store_memory=100 * 2**20)
        self._nodes = [self._add() for _ in range(count)]
        self.address: str = self._cluster.address

    def _add(self, **more: Any) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20, **more)

    def add(self, **more: Any) -> None:
        self._nodes.append(self._add(**more))

    def kill(self, i: int) -> None:
        self._cluster.remove_node(self._nodes.pop(i), allow_graceful=False)

    def processes(self, name: str) -> list[int]:
        """Of this cluster and of those who use it, by the first 15 letters of their name."""
        return [pid for found, pid in marked(f"{MARK}={self.mark}") if found == name[:15]]

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """As many machines as the parameter says."""
    monkeypatch.setenv(MARK, uuid.uuid4().hex)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # a machine is known to be dead after seconds, not half a minute
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    nodes = Nodes(request.param)
    yield nodes
    nodes.shutdown()


class Where(ToyEvaluator):
    """Synthetic: takes half a second and says which machine it was on.

    All but the first three that begin wait until one has begun on a second machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        begun = len([*self._folder.iterdir()])
        node = ray.get_runtime_context().get_node_id()
        (self._folder / f"{seed} {node}").touch()
        while begun >= 3 and len({path.name.split()[1] for path in self._folder.iterdir()}) < 2:
            time.sleep(0.1)
        time.sleep(0.5)
        return Measurement(super().evaluate(arch, seed=seed).value, {"node": int(node[:8], 16)})


@pytest.mark.parametrize("executor_of", [RayExecutor, TuneExecutor])
@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_machines_that_join_are_used_and_those_that_leave_are_survived(
    cluster: Nodes, executor_of: type[RayExecutor | TuneExecutor], tmp_path: Path
) -> None:
    archs = [TOY.from_str(f"{a}{b}/{c}-") for a in "abc" for b in "abc" for c in "abc"]
    trials = iter([Trial(i, 0, arch, "initial", seed=i) for i, arch in enumerate(archs)])
    begun, out = tmp_path / "begun", tmp_path / "run"
    begun.mkdir()
    runtime = Runtime(address=cluster.address, auth="disabled", device="cpu", timeout=300, out=out)
    with closing(executor_of(CONFIG, runtime, partial(Where, begun))) as executor:
        assert "room for 2 evaluations" in executor.description
        outcomes = []
        for outcome in executor.run(lambda room: [*islice(trials, room)]):
            outcomes.append(outcome)
            if len(outcomes) == 3:
                cluster.add()
            machines = {outcome.metrics.get("node") for outcome in outcomes}
            if len(machines) == 2 and len(cluster._nodes) == 2:
                assert executor.slots == 4
                cluster.kill(0)
    assert len(machines) == 2, "the new machine was not used"
    assert len(cluster._nodes) == 1, "no machine was killed"
    assert sorted(outcome.trial for outcome in outcomes) == list(range(len(archs)))
    assert {outcome.status for outcome in outcomes} == {"ok"}


def meet(folder: Path, machines: int) -> str:
    """The machine this is on, once so many have begun something."""
    node = ray.get_runtime_context().get_node_id()
    (folder / node).touch()
    while len([*folder.iterdir()]) < machines:
        time.sleep(0.1)
    return node


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_tasks_wait_for_machines_and_use_all_that_come(cluster: Nodes, tmp_path: Path) -> None:
    runtime = Runtime(address=cluster.address, auth="disabled")
    with closing(RayTasks(runtime)) as tasks:
        found: list[str] = []
        for _, ended in tasks.run([partial(meet, tmp_path, 2)] * 8):
            found += [node for _, node in ended]
            if len(cluster._nodes) < 2:
                cluster.add()
    assert len(found) == 8
    assert len({*found}) == 2


def hungry() -> ToyEvaluator:
    """Only pretended, in the process of a worker: all evaluations take 30 % of a GPU."""
    trial_module._gpu_memory = lambda: 0.3
    return ToyEvaluator()


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_evaluations_are_packed_by_what_they_took(
    cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.executors.packing._LOOK_SECONDS", 0.0)
    cluster.add(num_gpus=1)
    runtime = Runtime(address=cluster.address, auth="disabled", device="cpu", gpus_per_eval="auto")
    with closing(RayExecutor(CONFIG, runtime, hungry)) as executor:
        assert (executor.slots, executor.evaluation_request["GPU"]) == (1, 1.0)
        archs = [TOY.from_str(f"{a}/a-") for a in ("a-", "b-", "c-", "ab")]
        trials = [Trial(i, 0, arch, "initial", i) for i, arch in enumerate(archs)]
        batches, reserved = [trials[:3]], {}
        for outcome in executor.run(lambda room: batches.pop() if batches else []):
            assert outcome.gpu_memory == 0.3
            if not reserved:
                batches.append(trials[3:])
            reserved[outcome.trial] = executor.evaluation_request["GPU"]
        assert reserved == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.5}, "what has begun keeps what it has"
        assert executor.slots == 2


def process() -> int:
    return os.getpid()


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_each_task_on_a_gpu_has_a_process_of_its_own(cluster: Nodes) -> None:
    cluster.add(num_gpus=1)
    runtime = Runtime(address=cluster.address, auth="disabled", gpus_per_eval=1)
    with closing(RayTasks(runtime)) as tasks:
        found = [pid for _, ended in tasks.run([process] * 3) for _, pid in ended]
    assert len({*found}) == 3


class Bound(ToyEvaluator):
    """Synthetic: says on which GPU its process was first, to which CUDA would be bound."""

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        reserved = os.environ["CUDA_VISIBLE_DEVICES"]
        first = os.environ.setdefault("FIRST_GPU", reserved)
        time.sleep(0.2 + 0.1 * (7 * seed % 4))  # to end in another order than that of the GPUs
        return Measurement(0.5, {"first": int(first), "reserved": int(reserved)})


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_evaluations_are_on_the_gpu_they_reserve(cluster: Nodes) -> None:
    cluster.add(num_gpus=4)
    runtime = Runtime(
        address=cluster.address, auth="disabled", device="cpu", cpus_per_eval=0.5, gpus_per_eval=1
    )
    with closing(RayExecutor(CONFIG, runtime, Bound)) as executor:
        for number in range(2):
            trials = [Trial(4 * number + i, 0, TOY.from_str("a-/a-"), "", i) for i in range(4)]
            left = iter(trials)
            found = [o.metrics for o in executor.run(lambda room, left=left: [*islice(left, room)])]
            assert all(gpus["first"] == gpus["reserved"] for gpus in found)


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_generator_without_a_machine_is_waited_for_and_given_up(
    cluster: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine of the generator is lost; first there is another one, then none."""

    def lose(machine: int) -> None:
        there = len(Machines.now().each)
        cluster.kill(machine)
        while len(Machines.now().each) == there:
            time.sleep(0.1)

    cluster.add(resources={"generator": 1})
    runtime = Runtime(address=cluster.address, auth="disabled", device="cpu")
    with closing(RayExecutor(CONFIG, runtime, ToyEvaluator)) as executor:
        before = executor.generator.generate(8, seed=3)
        cluster.add(resources={"generator": 1})
        lose(machine=0)
        assert executor.generator.generate(8, seed=3).archs == before.archs
        monkeypatch.setattr("orchestrator.executors.cluster._RETURN_SECONDS", 3.0)
        lose(machine=0)
        lack = "no machine has room: the generator needs 1 generator; the cluster has 0 generator"
        with pytest.raises(ClusterError, match=f"^{lack}$"):
            executor.generator.generate(8, seed=3)
    assert caplog.messages == [f"{lack}: waiting up to 0.05 minutes for a machine"]


class Monkey:
    """Kills something every two seconds: a worker, the generator, a machine, the driver.

    What is killed again only after so many outcomes, or on a slow machine the run would never end.
    """

    APART: ClassVar = {"worker": 1, "generator": 20, "machine": 20, "driver": 50}

    def __init__(self, cluster: Nodes, out: Path) -> None:
        self._cluster, self._random, self._out = cluster, random.Random(0), out
        self._outcomes = dict.fromkeys(self.APART, 0)  # when one of a kind was last killed
        self.killed: Counter[str] = Counter()

    def strike(self, driver: "subprocess.Popen[str]") -> None:
        outcomes = finished(self._out)
        kinds = [k for k, apart in self.APART.items() if outcomes >= self._outcomes[k] + apart]
        unharmed = [kind for kind in kinds if not self.killed[kind]]
        if kinds and self._kill(kind := self._random.choice(unharmed or kinds), driver):
            self._outcomes[kind] = outcomes
            self.killed[kind] += 1

    def _kill(self, kind: str, driver: "subprocess.Popen[str]") -> bool:
        """Whether there was one of the kind to kill."""
        if kind == "machine":
            self._cluster.kill(0)
            self._cluster.add()
            return True
        name = {"worker": "ray::evaluate", "generator": "ray::GeneratorActor"}
        pids = [driver.pid] if kind == "driver" else self._cluster.processes(name[kind])
        try:
            os.kill(self._random.choice(pids), signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            return False
        return True


def _driver(*arguments: object, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "chaos_driver.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


def _trials(out: Path) -> list[tuple[str, float]]:
    columns = pq.read_table(out / "trials.parquet").to_pydict()
    assert columns["trial"] == list(range(200))
    assert set(columns["status"]) == {"ok"}
    assert len(set(columns["arch"])) == 200
    return list(zip(columns["arch"], columns["value"], strict=True))


@pytest.mark.timeout(1800)  # minutes, but for a machine with other things to do
@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_chaos(cluster: Nodes, tmp_path: Path) -> None:
    """200 evaluations, and every two seconds something is killed: the undisturbed trials."""
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    assert _driver("local", undisturbed, out=undisturbed).wait() == 0
    hold = out.with_suffix(".hold")
    hold.touch()  # it cannot end before one of each kind was killed
    monkey, start = Monkey(cluster, out), partial(_driver, "ray", out, cluster.address, out=out)
    driver, drivers = start(), 1
    while driver.poll() != 0:
        time.sleep(2)
        if driver.poll() is None:
            monkey.strike(driver)
            if monkey.killed.keys() == monkey.APART.keys():
                hold.unlink(missing_ok=True)
        elif driver.returncode != 0:
            assert driver.returncode == -signal.SIGKILL, out.with_suffix(".log").read_text()
            driver, drivers = start(), drivers + 1
    print(f"killed: {dict(monkey.killed)}, {drivers} drivers")  # noqa: T201
    assert _trials(out) == _trials(undisturbed)
    assert monkey.killed.keys() == monkey.APART.keys()
    assert finished(out) == 200
