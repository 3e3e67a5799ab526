"""The command with its default executor: the trials of a local run, and no process left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from processes import marked
from test_run_bo import found

pytest.importorskip("ray")

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
SEARCH = ["--space", "toy", "--score", "exact", "--n-init", "4", "--batch-size", "3"]
SEARCH += ["--pool-size", "100", "--steps", "30", "--seed", "2"]
SETTINGS = [*SEARCH, "--budget", "16"]
LONG = [*SEARCH, "--budget", "144"]  # the same search, which is stopped long before its end
LOCAL = ["--executor", "local"]
RAY = ["--executor", "ray", "--auth", "disabled", "--no-dashboard"]
MARK = "NAG_TEST_RUN"  # in the environment of a command and of all that it starts
# Ray's processes look for a GCS that is gone for 60 s, unless they are told otherwise
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
AGENTS = {"ray::DashboardA", "ray::RuntimeEnv"}


class Run:
    """A command in a process of its own, recognisable by the environment it passes on."""

    def __init__(self, out, *arguments, **environment):
        self.out, self._mark = out, uuid.uuid4().hex
        inherited = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run_bo", *arguments, "--out", str(out)],
            cwd=ROOT,
            env=inherited | PATIENCE | {"OMP_NUM_THREADS": "1", MARK: self._mark} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self):
        """Exit code, stdout and stderr; soon after no process of this run must be left.

        But for two of Ray's agents, which after a kill take a while to see that they are alone.
        """
        try:
            stdout, stderr = self.process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            raise
        self.wait_until_gone(AGENTS if self.process.returncode == -signal.SIGKILL else set())
        return self.process.returncode, stdout, stderr

    def wait_until_gone(self, but_for=frozenset(), seconds=120):
        deadline = time.monotonic() + seconds
        while left := set(self.processes()) - but_for:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    def processes(self):
        """Names of the processes that this run has started, its own among them, and their pids."""
        return dict(marked(f"{MARK}={self._mark}"))

    def outcomes(self):
        journal = self.out / "journal.jsonl"
        return journal.read_bytes().count(b'"finished"') if journal.exists() else 0

    def wait_for(self, outcomes):
        self.wait_until(lambda: self.outcomes() >= outcomes)

    def wait_until(self, condition):
        """While the command goes on."""
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)


@pytest.fixture(scope="module")
def killed():
    """Runs that were killed: the last of their processes must end while the other tests run."""
    runs = []
    yield runs
    for run in runs:
        run.wait_until_gone()


def continued(run, *options):
    """The rest of a stopped run: to 16 trials, or a few more than it has made before it ended."""
    budget = max(16, run.outcomes() + 3)
    return Run(run.out, *SEARCH, "--budget", str(budget), *options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The trials of the same run without Ray."""
    out = tmp_path_factory.mktemp("local") / "run"
    code, _, stderr = Run(out, *SETTINGS, *LOCAL).finish()
    assert (code, stderr) == (0, "")
    assert len(found(out)) == 16
    return found(out)


def test_the_trials_are_those_of_a_local_run(expected, tmp_path):
    """With a Ray of its own and two workers; the test of a joined cluster has one."""
    run = Run(tmp_path / "run", *SETTINGS, *RAY, "--workers", "2")
    run.wait_until(lambda: {"raylet", "gcs_server"} <= set(run.processes()))
    code, stdout, stderr = run.finish()
    assert (code, stderr) == (0, "")
    assert found(run.out) == expected
    assert f"report: {run.out / 'report.html'}" in stdout.splitlines()
    assert (run.out / "report.html").exists()


def stopped_twice(out, killed, *options):
    """A run that was killed, repeated, and interrupted when three more trials had ended."""
    first = Run(out, *LONG, *options)
    first.wait_for(7)
    assert "raylet" in first.processes()
    first.process.send_signal(signal.SIGKILL)
    code, _, stderr = first.finish()
    assert (code, "Traceback" in stderr) == (-signal.SIGKILL, False)
    killed.append(first)
    more = first.outcomes() + 3
    second = Run(out, *LONG, *options)
    second.wait_for(more)
    second.process.send_signal(signal.SIGINT)
    code, stdout, stderr = second.finish()
    assert (code, stderr) == (130, "")
    assert f"\ncontinuing {out}: " in stdout
    assert "\ninterrupted: " in stdout
    return second


def test_a_stopped_run_leaves_no_process_and_continues(expected, killed, tmp_path):
    """Also with another executor: where a run happens is no part of it."""
    run = stopped_twice(tmp_path / "run", killed, *RAY, "--workers", "2")
    code, stdout, stderr = continued(run, *LOCAL).finish()
    assert (code, stderr) == (0, "")
    assert f"\ncontinuing {run.out}: " in stdout
    assert found(run.out)[:16] == expected


def test_a_run_whose_gcs_dies_ends_and_continues(expected, killed, tmp_path):
    """Ray ends the driver itself; before that it has said why."""
    patience = dict.fromkeys(PATIENCE, "15")
    run = Run(tmp_path / "run", *LONG, *RAY, "--workers", "2", **patience)
    run.wait_for(7)
    os.kill(run.processes()["gcs_server"], signal.SIGKILL)
    _, stderr = run.process.communicate(timeout=180)
    assert run.process.returncode != 0
    assert "the head of the cluster does not answer" in stderr
    killed.append(run)
    code, _, stderr = continued(run, *LOCAL).finish()
    assert (code, stderr) == (0, "")
    assert found(run.out)[:16] == expected


def test_a_cluster_that_was_joined_goes_on(expected, tmp_path, monkeypatch):
    from ray_cluster import PatientCluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = PatientCluster(num_cpus=2, object_store_memory=150 * 2**20)
    try:
        options = [*SETTINGS, *RAY, "--workers", "1"]
        run = Run(tmp_path / "run", *options, RAY_ADDRESS=cluster.address)
        run.wait_for(1)
        assert "raylet" not in run.processes()  # it has no Ray of its own
        assert run.finish()[0] == 0
        assert found(run.out) == expected
        assert not cluster.head_node.dead_processes()
        host, _, port = cluster.address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    finally:
        cluster.shutdown()


def test_bad_settings_of_the_generator_are_one_line(tmp_path):
    options = [*SETTINGS, *RAY, "--device", "warp"]
    code, stdout, stderr = Run(tmp_path / "run", *options).finish()
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert "device 'warp' is not available" in stderr
    assert not (tmp_path / "run").exists()
