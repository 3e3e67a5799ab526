"""The README's commands for a cluster, word for word, on three pretend hosts with sshd.

The hosts are namespaces of this machine (tests/cluster/hosts.sh). They have no internet: of
clusters/local.yaml the addresses, the user and the installation are replaced, the latter by the
environment of this test, in which Ray takes a silent machine for dead after 15 seconds, not 65,
and what was sent there for lost after 15, too, not 120, and its workers do not give way to other
processes.
Everything else is run as a person would, from a fourth host.

The tests are steps: each goes on where the one before ended.
"""

import fcntl
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOSTS = ROOT / "tests" / "cluster" / "hosts.sh"
STATE = Path("/run/nag-hosts")
FILE = "clusters/local.yaml"
TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "ss", "unshare", "nsenter", "curl")
HEAD, WORKERS = "10.77.0.11", ["10.77.0.12", "10.77.0.13"]
PROFILE = "PYTHONPATH=~/nag RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000"
PROFILE += " RAY_grpc_client_keepalive_timeout_ms=15000 RAY_worker_niceness=0"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def _missing() -> str:
    """Why the hosts cannot be had here; empty where they can."""
    if os.geteuid():
        return "pretend hosts need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if tools := [tool for tool in TOOLS if not shutil.which(tool, path=path)]:
        return f"pretend hosts need {', '.join(tools)}"
    possible = subprocess.run([HOSTS, "possible"], capture_output=True).returncode == 0
    return "" if possible else "no namespaces can be made here"


def readme_commands() -> list[str]:
    """The indented lines of the README's section on clusters, without their comments."""
    section = (ROOT / "README.md").read_text().split("\n## On a cluster\n")[1].split("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


@cache
def command(pattern: str) -> str:
    """The only command of the README that matches."""
    (found,) = [line for line in readme_commands() if re.search(pattern, line)]
    return found


class Person:
    """Somebody with this project on a machine of their own, who types commands."""

    def __init__(self) -> None:
        self._home = _on("laptop", "pwd").strip()
        self._project = f"{self._home}/project"

    def popen(self, line: str, output: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
        terminal = ["env", "-i", f"HOME={self._home}", f"PATH={path}", "TERM=dumb"]
        terminal += ["LANG=C.UTF-8", "RAY_USAGE_STATS_ENABLED=0", "OMP_NUM_THREADS=1"]
        script = "\n".join((f"cd {self._project}", command("^export"), line))
        return subprocess.Popen(
            [str(HOSTS), "exec", "laptop", *terminal, "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def types(self, line: str) -> str:
        """Run the command to its end, which has to be good; what it says."""
        code, output = self.tries(line)
        assert code == 0, f"{line}: exit code {code}\n{output[-3000:]}"
        return output

    def reads(self, line: str, text: str) -> bool:
        """Whether the command, run to its end, which is good, says so by now."""
        code, output = self.tries(line)
        return code == 0 and text in output

    def tries(self, line: str) -> tuple[int, str]:
        process = self.popen(line)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    def unpack(self, files: bytes) -> None:
        _on("laptop", f"mkdir {self._project} && tar -x -C {self._project}", files)


def _on(host: str, script: str, stdin: bytes = b"") -> str:
    return _bytes_on(host, script, stdin).decode()


def _bytes_on(host: str, script: str, stdin: bytes = b"") -> bytes:
    line = [str(HOSTS), "exec", host, "bash", "-c", script]
    return subprocess.run(line, input=stdin, stdout=subprocess.PIPE, check=True).stdout


def _cluster_file() -> str:
    """clusters/local.yaml for the pretend hosts."""
    config = yaml.safe_load((ROOT / FILE).read_text())
    config["provider"] |= {"head_ip": HEAD, "worker_ips": WORKERS}
    config["auth"]["ssh_user"] = "root"
    profile = f"grep -q PYTHONPATH ~/.bashrc || sed -i '1i export {PROFILE}' ~/.bashrc"
    for i, step in enumerate(config["setup_commands"]):
        if "-m venv" in step:
            config["setup_commands"][i] = f"ln -sfn {shlex.quote(sys.prefix)} ~/nag-env"
        elif "pip install" in step:
            config["setup_commands"][i] = profile
    return yaml.safe_dump(config, sort_keys=False)


def _environment_folders() -> str:
    """What hosts.sh has to keep visible of this Python: what is below the home or /tmp."""
    hidden = (Path.home(), Path("/tmp"))
    folders = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    kept = [f for f in folders if any(f.is_relative_to(h) for h in hidden)]
    return " ".join(str(f) for f in kept)


def _hosts(*arguments: str) -> None:
    environment = os.environ | {"KEEP": _environment_folders()}
    subprocess.run([HOSTS, *arguments], check=True, env=environment)


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    """Hosts laptop and node1 to node3; the person's home on laptop has a copy of the project."""
    if reason := _missing():
        pytest.skip(reason)
    # However this process ends, `guard` sees the end of its input and stops the hosts.
    guard = ["bash", "-c", 'read; exec "$0" stop', str(HOSTS)]
    with STATE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one set of hosts on a machine, until the guard ends
        shared = {"pass_fds": [lock.fileno()], "start_new_session": True}
        with subprocess.Popen(guard, stdin=subprocess.PIPE, **shared):
            _hosts("start", "3")
            person = Person()
            without = ["--exclude-vcs", "--exclude=.venv", "--exclude=./runs"]
            tar = ["tar", "-c", *without, "--exclude=__pycache__", "-C", str(ROOT), "."]
            person.unpack(subprocess.run(tar, stdout=subprocess.PIPE, check=True).stdout)
            _on("laptop", f"cat >project/{FILE}", _cluster_file().encode())
            yield person


def _trials(run: str) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(_bytes_on("node1", f"cat runs/{run}/trials.parquet")))


def _found(run: str) -> list[tuple[str, float]]:
    trials = _trials(run)
    return list(zip(trials["arch"], trials["value"], strict=True))


def _finished(run: str) -> int:
    """Trials with an outcome, while the run goes on."""
    journal = f"runs/{run}/journal.jsonl"
    return int(_on("node1", f"grep -vc proposed {journal} 2>/dev/null || true") or 0)


def _token() -> str:
    return _on("laptop", "cat .ray/auth_token").strip()


def _http(address: str, options: str = "") -> int:
    """What a server answers to laptop: 401 and so on, 0 where there is none."""
    line = f"curl -s -o /dev/null -w '%{{http_code}}' {options} http://{address} || true"
    return int(_on("laptop", line))


@pytest.fixture(scope="module")
def failed_before(request: pytest.FixtureRequest) -> int:
    """Number of tests that failed before the first step."""
    return request.session.testsfailed


def _skip_after_failure(request: pytest.FixtureRequest, failed_before: int) -> None:
    """A step that goes on from a failed one would wait in vain."""
    if request.session.testsfailed > failed_before:
        pytest.skip("an earlier step failed")


@pytest.fixture(autouse=True)
def _only_after_success(request: pytest.FixtureRequest, failed_before: int) -> None:
    _skip_after_failure(request, failed_before)


@pytest.fixture(scope="module")
def tunnel(person: Person, request: pytest.FixtureRequest, failed_before: int) -> None:
    """From laptop to the head's dashboard, until the hosts are stopped."""
    _skip_after_failure(request, failed_before)
    person.popen(command("^ray dashboard"), subprocess.DEVNULL)
    _until(lambda: _http("127.0.0.1:8265"), 300, "the tunnel")


def _has_raylet(host: str) -> bool:
    return "raylet" in _on(host, "ps -eo comm")


def _until(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.2) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(pause)


def _up(person: Person) -> None:
    person.types(command("^ray up"))
    _until(lambda: _has_raylet("node2") and _has_raylet("node3"), 600, "three raylets")
    status = command("^ray exec .*ray status")
    _until(lambda: person.reads(status, " 3 local.cluster.node"), 600, "three machines", 5)


def test_up(person: Person) -> None:
    said = person.types(command("^ray get-auth-token"))
    assert _token() not in said
    _up(person)


def test_exec(person: Person) -> None:
    person.types(command("^ray exec .*run_bo"))
    assert list(_trials("exec")["status"]) == ["ok"] * 20


def test_submit(person: Person) -> None:
    person.types(command("^ray submit"))
    assert _found("submit") == _found("exec")


def test_the_exit_code_comes_back(person: Person) -> None:
    code, _ = person.tries(f"ray exec {FILE} 'exit 3'")
    assert code != 0


def test_nobody_gets_in_without_the_token(person: Person, tunnel: None) -> None:
    code, output = person.tries(f"RAY_AUTH_TOKEN=wrong ray status --address {HEAD}:6379")
    assert code != 0
    assert "InvalidAuthToken" in output
    assert _http(f"{HEAD}:52365/api/job_agent/jobs/", "-X POST") == 401
    assert _http(f"{HEAD}:8265") == 0, "the dashboard listens to the head only"
    assert _on("node2", "stat -c %a .ray/auth_token").strip() == "600"
    through_the_tunnel = "127.0.0.1:8265/api/version"
    assert _http(through_the_tunnel) == 401
    assert _http(through_the_tunnel, f"-H 'Authorization: Bearer {_token()}'") == 200


def test_a_host_loses_its_power_during_a_job(person: Person, tunnel: None, tmp_path: Path) -> None:
    log = tmp_path / "job"
    job = person.popen(command("ray job submit"), log.open("w"))
    begun = lambda: _finished("job") > 12 or job.poll() is not None  # noqa: E731
    _until(begun, 600, f"the job does not get on: see {log}")
    _hosts("kill", "node3")
    at_that_time = _finished("job")
    assert job.wait(600) == 0, log.read_text()[-3000:]
    assert at_that_time < 60, "the job was faster than the power cut"
    assert list(_trials("job")["trial"]) == list(range(60))
    assert set(_trials("job")["status"]) == {"ok"}
    assert _found("job")[:20] == _found("exec")
    nodes = f"ray exec {FILE} 'ray list nodes --filter state=ALIVE'"
    _until(lambda: person.reads(nodes, "Total: 2"), 300, "node3 is dead", 5)


def test_up_on_a_running_cluster(person: Person) -> None:
    """It brings back a machine that has its power again, and has lost its disk."""
    _hosts("boot", "node3")
    _up(person)


def test_down(person: Person) -> None:
    person.types(command("^ray rsync-down"))
    assert _on("laptop", "ls project/runs").split() == ["exec", "job", "submit"]
    person.types(command("^ray down"))
    _until(lambda: not _has_raylet("node1"), 300, "a raylet on node1")


def test_all_of_the_readme_was_run(person: Person) -> None:
    """Each command was asked for by one of the steps above."""
    assert command.cache_info().currsize == len(readme_commands())
