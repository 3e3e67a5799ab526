"""Token authentication of a run: who lacks the token is refused, and nobody is told it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

pytest.importorskip("ray")

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
TOKEN = uuid.uuid4().hex + uuid.uuid4().hex
SETTINGS = ["--budget", "5000", "--auth", "token"]  # goes on until it is stopped
JOIN = """
import sys
import ray
from orchestrator.runtime import Runtime
from orchestrator.executors.cluster import connect
connect(Runtime(address=sys.argv[1]))
print(ray.nodes())
"""


def environment(home, **more):
    """That of this process without anything of Ray's, at home in an empty folder."""
    inherited = {name: x for name, x in os.environ.items() if not name.startswith("RAY_")}
    settings = {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    return inherited | settings | {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"} | more


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a Ray of its own, after its first outcome; then its driver pauses."""
    folder = tmp_path_factory.mktemp("token")
    out, log = folder / "run", (folder / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run_bo", *SETTINGS, "--out", str(out)],
        cwd=ROOT,
        env=environment(folder, RAY_AUTH_TOKEN=TOKEN),
        stdout=log,
        stderr=log,
    )
    journal = out / "journal.jsonl"
    while not journal.exists() or b'"finished"' not in journal.read_bytes():
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    yield process, folder
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait(timeout=300)


def raylet_of(process):
    """The arguments of the raylet that a run has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if parent == process.pid and arguments[0].endswith("raylet"):
            return dict(one.lstrip("-").partition("=")[::2] for one in arguments)
    return pytest.fail("the run has no raylet")


def join(address, home, **more):
    """A client that wants to use the cluster of a run, and prints its machines."""
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, address],
        cwd=ROOT,
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def status(url, token=None):
    """HTTP status of the dashboard's answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_client_without_the_token_is_refused(run, tmp_path):
    process, _ = run
    address = raylet_of(process)["gcs-address"]
    settings = {
        "the token": {"RAY_AUTH_TOKEN": TOKEN},
        "another token": {"RAY_AUTH_TOKEN": "0" * 64},
        "no token": {},
        "no authentication": {"RAY_AUTH_MODE": "disabled"},
    }
    clients = {name: join(address, tmp_path, **more) for name, more in settings.items()}
    for name, client in clients.items():
        found, errors = client.communicate(timeout=400)
        welcome = name == "the token"
        assert (client.returncode == 0, "NodeID" in found) == (welcome, welcome), (name, errors)
    assert process.poll() is None


def test_the_dashboard_asks_for_the_token(run):
    _, folder = run
    dashboard = re.search(r", dashboard (http\S+)", (folder / "log").read_text())
    api = f"{dashboard[1]}/api/v0/actors"
    assert [status(api), status(api, "0" * 64), status(api, TOKEN)] == [401, 403, 200]


def test_nobody_is_told_the_token(run):
    """Neither who looks at the terminal, nor at processes, the run's files or Ray's logs."""
    process, folder = run
    raylet = raylet_of(process)
    assert TOKEN not in str(raylet)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=300)
    printed = (folder / "log").read_text()
    assert process.returncode == 130, printed
    assert json.loads((folder / "run" / "config.json").read_text())["command"]
    assert TOKEN not in printed
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.json", "journal.jsonl", "trials.parquet"} <= {path.name for path in written}
    logs = [path for path in Path(raylet["log_dir"]).rglob("*") if path.is_file()]
    assert len(logs) > 5
    assert not [path for path in written + logs if TOKEN.encode() in path.read_bytes()]
