"""A run under a real Prometheus: every documented metric arrives, every panel finds its numbers."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from nag.errors import UserError
from nag.spaces.nasbench201 import CELL_OPERATORS, NASBENCH201, OPERATORS
from orchestrator.dashboards import __main__ as dashboards
from orchestrator.executors.metrics import METRICS
from trainers.rows import write_rows

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "orchestrator" / "dashboards" / "nag.json").read_text())
DOCUMENTED = re.findall(r"^\| `(ray_nag_\w+)`", (ROOT / "docs" / "cluster.md").read_text(), re.M)
SUFFIXES = {"Counter": "_total", "Histogram": "_bucket", "Gauge": ""}
RUN = "run-under-test"


def expressions():
    """(title, expression) of every target in the dashboard."""
    return [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


def test_the_documentation_names_every_metric_as_prometheus_has_it():
    exported = {f"ray_{name}{SUFFIXES[m.kind.__name__]}" for name, m in METRICS.items()}
    assert sorted(DOCUMENTED) == sorted(exported)


def test_the_dashboard_is_one_that_grafana_reads():
    assert {"uid", "title", "schemaVersion", "templating", "time"} <= DASHBOARD.keys()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(x + i, y + j) for i in range(w) for j in range(h)}
        assert x + w <= 24
        assert not taken & cells
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "session", "run"}


def test_the_dashboard_shows_every_metric():
    shown = {name for _, expr in expressions() for name in re.findall(r"ray_nag_\w+", expr)}
    assert shown == set(DOCUMENTED)


def free_ports(count):
    """Out of the range that the kernel gives to others meanwhile, and not where Ray looks."""
    found = []
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found[:count]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """All cells with synthetic accuracies, which measure nothing: only so that regret is known."""
    rng = np.random.default_rng(0)
    inner = itertools.product(map(OPERATORS.index, CELL_OPERATORS), repeat=6)
    archs = [NASBENCH201.render((0, *ops, 1)) for ops in inner]
    values = rng.uniform(50, 90, len(archs))
    columns = ("arch", "c10_valid_200", "c10_test_200")
    rows = [dict(zip(columns, (a, v, v), strict=True)) for a, v in zip(archs, values, strict=True)]
    path = tmp_path_factory.mktemp("table") / "synthetic.parquet"
    write_rows(rows, columns, path)
    return path


@pytest.fixture(scope="module")
def ask(table, tmp_path_factory):
    """A function that asks a Prometheus which watches a run that goes on and on."""
    if shutil.which("prometheus") is None:
        pytest.skip("no program `prometheus` (apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    exported, port = free_ports(2)
    dashboards.main(out=folder, target=(f"127.0.0.1:{exported}",))
    settings = ["--space", "nasbench201", "--table", str(table), "--strategy", "guided-gen"]
    settings += ["--budget", "3000", "--n-init", "4", "--pool-size", "20", "--steps", "10"]
    settings += ["--auth", "disabled", "--no-dashboard", "--metrics-port", str(exported)]
    environment = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
    commands = (
        [sys.executable, "-m", "orchestrator.run_bo", *settings, "--out", str(folder / RUN)],
        [
            "prometheus",
            f"--config.file={folder / 'prometheus' / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
    )
    logs = [(folder / name).open("w+") for name in ("run.log", "prometheus.log")]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        for command, log in zip(commands, logs, strict=True)
    ]

    def ask(expression):
        """Labels and value of each series that answers now; none while Prometheus is not there."""
        for process, log in zip(started, logs, strict=True):
            assert process.poll() is None, Path(log.name).read_text()[-2000:]
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{port}/api/v1/query?{query}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                return []
            pytest.fail(f"{expression}: {error.read().decode()}")
        except OSError:  # refused, broken off, or too late
            return []
        return [(series["metric"], float(series["value"][1])) for series in found]

    yield ask
    for process in started:
        process.send_signal(signal.SIGINT)
    codes = [process.wait(timeout=300) for process in started]
    assert codes[0] == 130, (folder / "run.log").read_text()[-2000:]


def wait_for(ask, queries, seconds=300):
    """The answers; every query must have one in that time."""
    deadline, answers = time.monotonic() + seconds, {}
    while left := [query for query in queries if not answers.get(query)]:
        assert time.monotonic() < deadline, left
        answers |= {query: ask(query) for query in left}
        time.sleep(1)
    return answers


@pytest.mark.slow
@pytest.mark.ray
def test_every_documented_metric_arrives(ask):
    later = [  # some of these have values before the first pool
        'ray_nag_utilisation{role="generate"} > 0',
        "count(ray_nag_phase_seconds_total) == 6",
        "count(ray_nag_guidance_scale) == 2",
    ]
    wait_for(ask, later)
    largest = "ray_nag_regret + ray_nag_best_value"
    answers = wait_for(ask, [*DOCUMENTED, largest])
    for found in answers.values():
        assert {labels["run"] for labels, _ in found} == {RUN}

    def value(name, **labels):
        (found,) = (x for seen, x in answers[name] if labels.items() <= seen.items())
        return found

    assert value("ray_nag_budget") == 3000
    assert value("ray_nag_slots", role="evaluate") >= 1
    assert 0 <= value("ray_nag_regret") < 1
    assert 0.89 < value(largest) <= 0.9  # of the table
    assert 0 < value("ray_nag_utilisation", role="generate") <= 1
    assert 0 <= value("ray_nag_utilisation", role="evaluate") <= 1
    phases = {labels["phase"] for labels, _ in answers["ray_nag_phase_seconds_total"]}
    assert phases == {"fit", "propose", "generate", "select", "evaluate", "wait"}
    assert {seen["end"] for seen, _ in answers["ray_nag_guidance_scale"]} == {"low", "high"}


@pytest.mark.slow
@pytest.mark.ray
def test_every_panel_finds_its_numbers(ask):
    known = {"$run": RUN, "$session": ".*", "$__rate_interval": "40s"}

    def filled(expression):
        for name, text in known.items():
            expression = expression.replace(name, text)
        return expression

    queries = [filled(expression) for _, expression in expressions()]
    assert not any("$" in query for query in queries)
    wait_for(ask, queries)


def test_targets_and_ray_s_own_files(tmp_path, capsys):
    """What Ray has written is kept: the dashboard is put among its own."""
    provisioning = tmp_path / "grafana" / "provisioning" / "dashboards" / "default.yml"
    provisioning.parent.mkdir(parents=True)
    provisioning.write_text("of Ray")
    dashboards.main(out=tmp_path)
    assert provisioning.read_text() == "of Ray"
    assert json.loads((tmp_path / "grafana" / "dashboards" / "nag.json").read_text()) == DASHBOARD
    config = json.loads((tmp_path / "prometheus" / "prometheus.yml").read_text())
    (scraped,) = config["scrape_configs"]
    assert scraped["file_sd_configs"][0]["files"]
    assert f"kept {provisioning}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "target",
    ["a", ":80", "a:", "http://a:80", "a:80/metrics", "a b:80", "a:99999", "a:0", "b:a:80"],
)
def test_targets_that_are_none(target, tmp_path):
    with pytest.raises(UserError, match="must be HOST:PORT"):
        dashboards.main(out=tmp_path, target=("node-1.local:80", "[::1]:80", target))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["foo", "127.0.0.1:9090", "http://", "http://a:99999", "ftp://a"])
def test_addresses_that_are_none(url, tmp_path):
    with pytest.raises(UserError, match="must be http://HOST:PORT"):
        dashboards.main(out=tmp_path, prometheus=url)
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_not_what_was_asked_for(tmp_path):
    """Another target than that of the configuration that is there is refused, not ignored."""
    dashboards.main(out=tmp_path, target=("127.0.0.1:8080",))
    dashboards.main(out=tmp_path, target=("127.0.0.1:8080",))
    dashboards.main(out=tmp_path)
    with pytest.raises(UserError, match=r"prometheus\.yml exists and differs from --target"):
        dashboards.main(out=tmp_path, target=("127.0.0.1:9090",))
    with pytest.raises(UserError, match=r"default\.yml exists and differs from --prometheus"):
        dashboards.main(out=tmp_path, prometheus="http://elsewhere:9090")
