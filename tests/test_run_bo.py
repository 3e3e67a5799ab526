"""The command `python -m orchestrator.run_bo`, on the toy space and on synthetic tables."""

import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from commands import arguments
from report_page import undrawn
from rich.console import Console

from acquisition.strategies import GuidedGeneration, NearAfterFailure
from nag.checkpoint import save_network
from nag.cli import run
from nag.errors import UserError
from nag.generator import DiffusionGenerator
from nag.laws import UniformLaw, sde_of
from nag.properties import Property
from nag.score_net import ScoreNetConfig, ScoreNetwork
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import LAYERS, MOBILENETV3
from nag.spaces.nasbench201 import CELL_OPERATORS, NASBENCH201, OPERATORS
from nag.spaces.toy import TOY
from orchestrator.build import WithProperties, build_single_fidelity, quantities_of
from orchestrator.config import RunConfig
from orchestrator.reporting.view import View
from orchestrator.run_bo import app
from orchestrator.runtime import Runtime
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import COLUMNS, RunStore
from orchestrator.status import app as status
from trainers.base import Measurement
from trainers.cost import cost_property
from trainers.evaluators.toy import ToyEvaluator
from trainers.latency.tables import latency_property, once_for_all_block, once_for_all_ends
from trainers.plans import mobilenetv3_plan
from trainers.training.task import NetworkOptions

ROOT = Path(__file__).parent.parent
STRATEGIES = ("guided", "mutation", "mutation+random", "random", "uncond+sort")
ACQUISITIONS = ("ei", "pi", "its", "ucb")
QUICK = {
    "--space": "toy",
    "--score": "exact",
    "--executor": "local",
    "--budget": 8,
    "--n-init": 4,
    "--pool-size": 10,
    "--steps": 5,
}
MOBILE = QUICK | {"--space": "mobilenetv3", "--budget": 7, "--guidance-scale": "1,10"}
UNUSED = re.compile("warning: no effect on this search: --.*\n")  # some settings, by some methods
LONG = QUICK | {"--budget": 14, "--pool-size": 100, "--steps": 30}  # rounds take a while
LONGER = LONG | {"--budget": 144}  # the same search, which is stopped long before its end

run_here, refusal = partial(commands.run_here, app), partial(commands.refusal, app)


def start(settings, **changes):
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run_bo", *arguments(settings, **changes)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(autouse=True)
def _this_process(tmp_path, monkeypatch):
    """A command run here finds an empty working directory, and no Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def search(capsys, settings, **changes):
    """stdout of a command that must end well; nobody looks at the figures of its report."""
    with undrawn():
        code, out, err = run_here(capsys, settings, **changes)
    assert (code, UNUSED.sub("", err)) == (0, "")
    return out


def trials(out):
    return pd.read_parquet(out / "trials.parquet")


def found(out):
    """(architecture, value) of all trials in order."""
    columns = pq.read_table(out / "trials.parquet").to_pydict()
    assert columns["trial"] == list(range(len(columns["trial"])))
    return list(zip(columns["arch"], columns["value"], strict=True))


def num_finished(out):
    """How many outcomes are in the journal, while another process writes it."""
    journal = out / "journal.jsonl"
    return journal.read_bytes().count(b'"event": "finished"') if journal.exists() else 0


def enough(out):
    """A budget with which a stopped LONGER run continues, however far it got."""
    return max(LONG["--budget"], num_finished(out) + 1)


def wait_for(process, out, finished):
    while num_finished(out) < finished:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


# The command as the shell sees it


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory and stdout of a quick run in a process of its own."""
    out = tmp_path_factory.mktemp("finished") / "run"
    process = start(QUICK, out=out)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (0, "")
    return out, stdout


def test_a_run_leaves_its_files(finished):
    out, _ = finished
    files = {file.name for file in out.iterdir()}
    assert files == {"config.json", "journal.jsonl", "trials.parquet", "report.html"}
    assert (out / "report.html").read_text()
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["space"], config["evaluator"], config["budget"]) == ("toy", "toy", 8)


def test_the_table_of_trials(finished):
    table = trials(finished[0])
    assert list(table.columns) == list(COLUMNS)
    assert set(COLUMNS) >= {"trial", "arch", "value", "status", "error", "iteration", "strategy"}
    assert set(COLUMNS) >= {"seed", "seconds"}
    assert list(table.trial) == list(range(8))
    assert list(table.iteration) == [0, 0, 0, 0, 1, 2, 3, 4]
    assert list(table.strategy) == ["initial"] * 4 + ["guided"] * 4
    assert set(table.status) == {"ok"}
    assert table.error.isna().all()
    assert table.arch.is_unique
    assert table.seed.is_unique
    for arch, value in found(finished[0]):
        expected = 100 * ToyEvaluator().evaluate(TOY.from_str(arch), seed=0).value
        assert value == pytest.approx(expected, rel=1e-12)


def test_the_last_lines_name_the_result(finished):
    out, stdout = finished
    best = max(enumerate(found(out)), key=lambda pair: pair[1][1])
    trial, (arch, value) = best
    assert stdout.splitlines()[-5:] == [
        f"best architecture (trial {trial}): value {value:.3f} %",
        f"  {arch}",
        f"  {json.dumps(TOY.to_config(TOY.from_str(arch)))}",
        f"trials: {out / 'trials.parquet'}",
        f"report: {out / 'report.html'}",
    ]


def test_the_first_line_tells_what_is_done_where(finished):
    first = finished[1].splitlines()[0]
    assert first == "toy, toy, guided, ei: in this process, generator on cpu"


def test_every_trial_is_told_of(finished):
    out, stdout = finished
    lines = [line for line in stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 8
    for i, (line, (_, value)) in enumerate(zip(lines, found(out), strict=True)):
        assert line.startswith(f"[{i + 1}/8] trial {i} ")
        assert f"value {value:.3f} %" in line


@pytest.mark.slow
def test_bad_input_as_the_shell_sees_it(tmp_path):
    process = start(QUICK, space="nowhere", out=tmp_path / "run")
    assert process.communicate(timeout=300) == (
        "",
        f"error: unknown space 'nowhere': choose from {', '.join(SPACES)}\n",
    )
    assert process.returncode == 2
    assert not list(tmp_path.iterdir())


# Again, and more of it


def test_the_same_command_again_does_nothing_new(tmp_path, capsys):
    out = tmp_path / "run"
    first = search(capsys, QUICK, out=out)
    journal, before = (out / "journal.jsonl").read_bytes(), found(out)
    again = search(capsys, QUICK, out=out)
    assert (out / "journal.jsonl").read_bytes() == journal
    assert found(out) == before
    where, *rest = again.splitlines()
    assert where == first.splitlines()[0]
    assert rest == [f"continuing {out}: 8 trials are finished", *first.splitlines()[-5:]]


def test_a_larger_budget_prolongs_a_run(tmp_path, capsys):
    search(capsys, QUICK, out=tmp_path / "run")
    before = found(tmp_path / "run")
    search(capsys, QUICK, budget=12, out=tmp_path / "run")
    assert len(found(tmp_path / "run")) == 12
    assert found(tmp_path / "run")[:8] == before
    code, _, err = run_here(capsys, QUICK, budget=6, out=tmp_path / "run")
    assert code == 2
    assert err.endswith("run has 12 evaluations, more than --budget 6\n")
    assert len(found(tmp_path / "run")) == 12  # nothing is taken back


def test_the_trials_do_not_depend_on_the_process(finished, tmp_path, capsys):
    search(capsys, QUICK, out=tmp_path / "run")
    assert found(tmp_path / "run") == found(finished[0])


def test_another_seed_is_another_run(finished, tmp_path, capsys):
    search(capsys, QUICK, seed=1, out=tmp_path / "run")
    assert found(tmp_path / "run") != found(finished[0])


def test_a_run_has_a_directory_of_its_own_by_default(tmp_path, capsys):
    search(capsys, QUICK, strategy="random", acq="ucb", seed=5, budget=4)
    assert len(found(tmp_path / "runs" / "toy-random-ucb-seed5")) == 4


def test_a_space_that_is_exhausted_ends_the_run(tmp_path, capsys):
    sizes = {"budget": 500, "n_init": 100, "batch_size": 50, "pool_size": 100}
    out = search(capsys, QUICK, strategy="random", out=tmp_path / "run", **sizes)
    assert "the space is exhausted after 144 trials\n" in out
    assert len(set(found(tmp_path / "run"))) == 144


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({}, ""),
        ({"guidance": "noise-aware", "prior": "runs/one"}, ""),
        ({"method": "rea", "guidance_scale": 3}, "--score, --steps, --guidance-scale, --pool-size"),
        ({"strategy": "random", "threads": 1, "window": 2}, "--score, --steps"),
        ({"strategy": "uncond+sort", "guidance_scale": 3}, "--guidance-scale"),
        ({"grace_epochs": 5}, "--grace-epochs"),
        ({"space": "mobilenetv3", "method": "rea", "constraint": "macs<=300e6"}, ""),  # generates
    ],
)
def test_options_without_effect_are_named(capsys, changes, unused):
    if "prior" in changes:
        search(capsys, QUICK, out="runs/one")
    code, _, err = run_here(capsys, QUICK, **changes)
    warning = f"warning: no effect on this search: {unused}\n" if unused else ""
    assert (code, err) == (0, warning)


def test_nothing_that_satisfies_the_constraints_ends_the_run(tmp_path, capsys):
    constraint = ("macs<=1.3e8", "params>=7e6")  # each alone is possible
    for _ in range(2):
        code, _, err = run_here(capsys, MOBILE, constraint=constraint, out=tmp_path / "run")
        assert code == 2
        assert err == f"error: no architecture found that satisfies {' and '.join(constraint)}\n"
    assert RunStore.read(tmp_path / "run").exhausted


def test_a_run_out_of_patience_ends_and_goes_on_with_more(finished, tmp_path, capsys):
    out = tmp_path / "run"
    shown = search(capsys, QUICK, patience=2, out=out)
    short = found(out)
    assert short == found(finished[0])[: len(short)]
    assert (
        f"stopped after {len(short)} trials: --patience 2 is exhausted; to continue, repeat the "
        "command with more\n"
    ) in shown
    assert "best architecture" in shown
    ended = "ended after 2 evaluations without a better one"
    assert ended in (out / "report.html").read_text()
    with pytest.raises(SystemExit):
        run(status, [str(out), "--watch"])  # which does not wait
    assert ended in capsys.readouterr().out
    search(capsys, QUICK, patience=100, out=out)
    assert found(out) == found(finished[0])
    assert ended not in (out / "report.html").read_text()


def test_a_run_out_of_time_ends_and_goes_on_when_repeated(finished, tmp_path, capsys, monkeypatch):
    out, real, hours = tmp_path / "run", time.time, iter([0] * 6 + [1] * 100)
    later = SimpleNamespace(time=lambda: real() + 3600 * next(hours))
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.search.loop.time", later)
        shown = search(capsys, QUICK, max_hours=0.5, out=out)
    assert (
        "stopped after 6 trials: --max-hours 0.5 are over; to continue, repeat the comma" in shown
    )
    assert "best architecture" in shown
    assert found(out) == found(finished[0])[:6]
    search(capsys, QUICK, max_hours=0.5, out=out)
    assert found(out) == found(finished[0])


def test_a_run_whose_time_is_over_before_it_begins(tmp_path, capsys):
    with undrawn():
        code, shown, _ = run_here(capsys, QUICK, max_hours=1e-9, out=tmp_path / "run")
    assert code == 1
    assert "stopped after 0 trials: --max-hours 1e-09 are over" in shown
    assert "no evaluation succeeded" not in shown


# Stopped, and repeated


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The trials of a long run that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.raises(SystemExit) as exit_:
        run(app, arguments(LONG, out=out))
    assert exit_.value.code == 0
    return found(out)


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_run_says_so_and_continues(expected, tmp_path, capsys, stop):
    out = tmp_path / "run"
    process = start(LONGER, out=out)
    wait_for(process, out, 5)
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (130, "")
    n = num_finished(out)
    assert 5 <= n < 144
    assert stdout.splitlines()[-1] in {  # the last one may be written but not yet counted
        f"interrupted: {saved} trials are saved in {out}; repeat the command to continue"
        for saved in (n - 1, n)
    }
    again = search(capsys, LONG, budget=enough(out), out=out)
    assert f"continuing {out}: {n} trials are finished" in again.splitlines()
    assert found(out)[:14] == expected


def test_a_run_that_is_stopped_while_it_prints_says_so(tmp_path, capsys, monkeypatch):
    """Rich then holds back whatever the same console is to print."""
    leave, said = Console.__exit__, itertools.count()

    def interrupted(console, *how):
        if next(said) == 5:
            raise KeyboardInterrupt
        leave(console, *how)

    monkeypatch.setattr(Console, "__exit__", interrupted)
    code, out, err = run_here(capsys, QUICK, out=tmp_path / "run")
    assert (code, err) == (130, "")
    saved = num_finished(tmp_path / "run")
    assert 0 < saved < 8
    assert out.splitlines()[-1].startswith(f"interrupted: {saved} trial")


@pytest.mark.slow
def test_a_run_killed_three_times_ends_as_if_it_had_not_been(expected, tmp_path, capsys):
    moments = np.sort(np.random.default_rng().choice(np.arange(1, 11), size=3, replace=False))
    print(f"killed after {moments} outcomes")  # noqa: T201
    out = tmp_path / "run"
    for moment in moments:
        process = start(LONGER, out=out)
        wait_for(process, out, moment)
        process.kill()
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
    search(capsys, LONG, budget=enough(out), out=out)
    assert found(out)[:14] == expected


@pytest.mark.slow
def test_a_run_killed_at_any_time_ends_as_if_it_had_not_been(expected, tmp_path, capsys):
    """By the clock: also while it starts, writes its table, or draws its report."""
    for i, seconds in enumerate(np.random.default_rng().uniform(0.5, 6, size=4)):
        out = tmp_path / str(i)
        process = start(LONG, out=out)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate(timeout=300)
        with undrawn():
            code, _, err = run_here(capsys, LONG, out=out)
        assert (code, err) == (0, ""), f"killed after {seconds:.3f} s"
        assert found(out) == expected


def test_a_directory_that_is_in_use(tmp_path, capsys):
    """A lock belongs to an open file: this process stands for two."""
    store = RunStore.open(
        tmp_path / "run",
        RunConfig(space="toy", score="exact", budget=8, n_init=4, pool_size=10, steps=5),
    )
    message = refusal(capsys, QUICK, out=tmp_path / "run")
    assert message == f"error: {tmp_path / 'run'} is in use by another process\n"
    store.close()
    search(capsys, QUICK, out=tmp_path / "run")


# All methods


def _complete(capsys, out, strategy, acq):
    code, _, err = run_here(capsys, QUICK, strategy=strategy, acq=acq, out=out)
    assert (code, UNUSED.sub("", err)) == (0, "")
    table = trials(out)
    assert list(table.status) == ["ok"] * 8
    assert list(table.strategy) == ["initial"] * 4 + [strategy] * 4
    assert table.arch.is_unique
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("strategy", "acq"),
    [*((strategy, "ei") for strategy in STRATEGIES), *(("guided", a) for a in ACQUISITIONS[1:])],
)
def test_every_strategy_and_every_acquisition_completes(tmp_path, capsys, strategy, acq):
    _complete(capsys, tmp_path / "run", strategy, acq)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "acq"), list(itertools.product(STRATEGIES[1:], ACQUISITIONS[1:]))
)
def test_every_other_pair_completes_too(tmp_path, capsys, strategy, acq):
    with undrawn():
        _complete(capsys, tmp_path / "run", strategy, acq)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"guidance": "noise-aware", "budget": 6}, marks=pytest.mark.slow),
        {"batch_size": 3, "budget": 9},
        {"budget": 1, "n_init": 1},
        {"sampler": "predictor-corrector"},
        {"objective": "test"},
        {"noise_schedule": "karras"},
        {"schedule": "async"},
        {"window": 2},
        {"guidance_scale": "2"},
        {"guidance_scale": "1,20"},
        {"guidance_form": "improvement"},
        {"guidance_form": "target", "target": 60},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_other_settings_complete_too(tmp_path, capsys, changes):
    code, _, err = run_here(capsys, QUICK, out=tmp_path / "run", **changes)
    assert (code, err) == (0, "")
    assert len(found(tmp_path / "run")) == changes.get("budget", 8)


@pytest.mark.parametrize("target", [74, 77])
def test_proposals_are_of_the_value_that_is_aimed_at(target, tmp_path, capsys):
    """As predicted when they are picked."""
    sizes = {"n_init": 10, "budget": 14, "steps": 10, "guidance_scale": 10}
    aim = {"guidance_form": "target", "target": target}
    search(capsys, MOBILE, out=tmp_path / "run", **sizes, **aim)
    predicted = trials(tmp_path / "run").predicted_mean[10:]
    assert np.abs(predicted - target).mean() < 0.3


def test_a_search_for_a_value_comes_nearer_to_it_than_one_for_the_best(tmp_path, capsys):
    """Of a pool near the target an acquisition function that wants the best takes what is farther
    away: 22 points on average instead of 2.5."""
    aim = {"guidance_form": "target", "target": 55}
    distance = {}
    for name, form in (("aimed", aim), ("plain", {})):
        search(capsys, QUICK, out=tmp_path / name, budget=12, pool_size=30, **form)
        distance[name] = np.abs(trials(tmp_path / name).value - 55)
    assert distance["aimed"].min() < distance["plain"].min()
    assert distance["aimed"][4:].mean() < 8 < 15 < distance["plain"][4:].mean()
    config = json.loads((tmp_path / "aimed" / "config.json").read_text())["config"]
    assert config["acq"] == "target"


# Constraints


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_trial_keeps_the_constraint(strategy, tmp_path, capsys):
    """Of random networks, four in five do not."""
    search(capsys, MOBILE, out=tmp_path / "run", strategy=strategy, constraint="macs<=240e6")
    rows = trials(tmp_path / "run")
    assert list(rows.strategy) == ["initial"] * 4 + [strategy] * 3
    assert (rows.macs <= 240e6).all()
    assert rows.arch.is_unique


def test_two_constraints(tmp_path, capsys):
    constraints = ("macs<=300e6", "params >= 5.5e6")
    stdout = search(capsys, MOBILE, out=tmp_path / "run", constraint=constraints)
    rows = trials(tmp_path / "run")
    assert len(rows) == 7
    assert (rows.macs <= 300e6).all()
    assert (rows.params >= 5.5e6).all()
    first = stdout.splitlines()[0]
    assert first.startswith("mobilenetv3, surrogate, guided, ei, macs<=300e6, params >= 5.5e6: in ")
    best = rows.iloc[rows.value.argmax()]
    assert (
        f"\nbest architecture with macs<=300e6, params >= 5.5e6 (trial {best.trial}): "
        f"value {best.value:.3f} %, MACs {best.macs / 1e6:.2f} M, "
        f"params {best.params / 1e6:.2f} M\n"
    ) in stdout
    page = (tmp_path / "run" / "report.html").read_text()
    assert "MACs ≤ 300 M, params ≥ 5.5 M" in page


@pytest.mark.parametrize("strategy", ["guided", "random"])
def test_a_constraint_that_random_networks_do_not_meet(strategy, tmp_path, capsys):
    """The generator finds the initial design, and fills up for a strategy that finds nothing."""
    macs = cost_property(MOBILENETV3, "macs", "imagenet")
    assert macs(MOBILENETV3.sample(20_000, np.random.default_rng(0))).min() > 135e6
    search(capsys, MOBILE, out=tmp_path / "run", strategy=strategy, constraint="macs<=135e6")
    rows = trials(tmp_path / "run")
    assert list(rows.strategy) == ["initial"] * 4 + [strategy] * 3
    assert (rows.macs <= 135e6).all()
    assert rows.arch.is_unique


def test_all_that_keeps_a_constraint_may_be_little(tmp_path, capsys):
    """One network is the smallest; few come near it."""
    stdout = search(capsys, MOBILE, out=tmp_path / "run", constraint="macs<=121.6e6", budget=20)
    rows = trials(tmp_path / "run")
    assert 0 < len(rows) < 20
    assert (rows.macs <= 121.6e6).all()
    assert f"the space is exhausted after {len(rows)} trials\n" in stdout


def test_a_constrained_run_that_is_continued(tmp_path, capsys):
    settings = MOBILE | {"--constraint": "macs<=240e6", "--n-init": 3, "--batch-size": 2}
    search(capsys, settings, out=tmp_path / "at once")
    for budget in (3, 4, 7):
        search(capsys, settings, budget=budget, out=tmp_path / "in parts")
    assert found(tmp_path / "in parts") == found(tmp_path / "at once")


class _Counting:
    """Counts in a way of its own, and measures latency on a device or not; synthetic."""

    def __init__(self, device):
        self.device = device

    def evaluate(self, arch, *, seed):
        return Measurement(0.5, {"macs": 1.0, "latency": 2.0, "loss": 3.0}, device=self.device)


@pytest.mark.parametrize(("device", "latency"), [("", 20.0), ("a phone", 2.0)])
def test_what_is_constrained_is_reported_as_it_is_constrained(device, latency):
    """But for a latency that was measured."""
    (arch,) = MOBILENETV3.sample(1, np.random.default_rng(0))
    zero = np.zeros(MOBILENETV3.shape)
    amounts = {"macs": 10.0, "latency": 20.0}
    known = tuple(Property(name, MOBILENETV3, one, zero) for name, one in amounts.items())
    found = WithProperties(_Counting(device), known).evaluate(arch, seed=0)
    assert found.metrics == {"macs": 10.0, "latency": latency, "loss": 3.0}


@pytest.fixture
def latencies(tmp_path):
    """Synthetic: measured networks, a sum over the layers in ms with noise."""
    archs = MOBILENETV3.sample(300, np.random.default_rng(0))
    macs = cost_property(MOBILENETV3, "macs", "imagenet")(archs)
    noise = np.random.default_rng(1).normal(0, 0.5, len(archs))
    frame = pd.DataFrame([MOBILENETV3.to_config(arch) for arch in archs])
    frame["lat_phone"] = 2 + macs / 20e6 + noise
    frame.to_parquet(tmp_path / "measured.parquet")
    return tmp_path / "measured.parquet"


def test_a_limit_on_a_latency_that_is_estimated(latencies, tmp_path, capsys):
    settings = {"constraint": "latency<=15", "latency_table": f"{latencies}:lat_phone"}
    stdout = search(capsys, MOBILE, out=tmp_path / "run", **settings)
    rows = trials(tmp_path / "run")
    quantity = latency_property(MOBILENETV3, str(latencies))
    expected = quantity([MOBILENETV3.from_str(arch) for arch in rows.arch])
    np.testing.assert_allclose(rows.latency, expected)
    assert 0.3 < quantity.std < 1.2
    assert (rows.latency <= 15).all()
    best = rows.iloc[rows.value.argmax()]
    assert f"M, latency {best.latency:.2f} ms\n" in stdout
    assert "latency ≤ 15 ms" in (tmp_path / "run" / "report.html").read_text()


def test_another_constraint_is_another_run(capsys):
    search(capsys, MOBILE, out="run", strategy="random", budget=4, constraint="macs<=300e6")
    for constraint in ("macs<=250e6", ("macs<=300e6", "params<=5e6"), None):
        changes = {"strategy": "random", "budget": 4, "constraint": constraint}
        message = refusal(capsys, MOBILE, out="run", **changes)
        assert "(constraint is ['macs<=300e6'] there, [" in message


def test_a_live_line_tells_how_much_of_the_pool_is_feasible(tmp_path):
    """On a terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    store = RunStore.open(tmp_path / "run", RunConfig(space="toy", score="exact"))
    view = View(console, 10)
    with view.live(store):
        for diagnostics in ({"validity": 0.875, "feasible": 0.5}, {"validity": 0.75}, {"pool": 3}):
            view.proposed(store, Suggestion((), "guided", (), {}, diagnostics))
            view._progress.refresh()
            console.file.write("|")
    first, second, third, _ = console.file.getvalue().split("|", 3)
    assert "pool valid 87.5 %, feasible 50.0 %" in first
    assert "pool valid 75.0 %" in second
    assert "feasible" not in second
    assert "pool" not in third
    store.close()


# Tables


def on_validation(cell):
    """Synthetic, in percent: it grows with the convolutions and falls with cuts."""
    return (
        20 + 11 * cell.count("nor_conv_3x3") + 7 * cell.count("nor_conv_1x1") - cell.count("none")
    )


def on_test(cell):
    return on_validation(cell) - 2.5 + cell.count("skip_connect") / 8


def write_table(path, cells, **columns):
    """A synthetic benchmark table; columns are functions of a cell."""
    pd.DataFrame(
        {"arch": cells} | {name: [f(cell) for cell in cells] for name, f in columns.items()}
    ).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def cells():
    """All 15,625 cells of NAS-Bench-201."""
    inner = itertools.product(map(OPERATORS.index, CELL_OPERATORS), repeat=6)
    return [NASBENCH201.render((0, *ops, 1)) for ops in inner]


@pytest.fixture(scope="module")
def table(cells, tmp_path_factory):
    """A synthetic table of all cells."""
    path = tmp_path_factory.mktemp("table") / "synthetic.parquet"
    return write_table(path, cells, c10_valid_200=on_validation, c10_test_200=on_test)


CELLS = QUICK | {"--space": "nasbench201", "--evaluator": "table", "--budget": 14, "--n-init": 8}


@pytest.mark.parametrize(("objective", "value"), [("valid", on_validation), ("test", on_test)])
def test_searching_a_table(table, tmp_path, capsys, objective, value):
    """The column `test` is there whatever is searched on; all accuracies are percent."""
    asked = {"table": table, "dataset": "cifar10", "objective": objective}
    stdout = search(capsys, CELLS, **asked, out=tmp_path / "run")
    task = "cifar10, test" if objective == "test" else "cifar10"
    assert stdout.startswith(f"nasbench201, table, {task}, guided, ei: ")
    rows = trials(tmp_path / "run")
    assert list(rows.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert set(rows.status) == {"ok"}
    assert list(rows.strategy) == ["initial"] * 8 + ["guided"] * 6
    np.testing.assert_allclose(rows.value, [value(cell) for cell in rows.arch])
    np.testing.assert_allclose(rows.test, [on_test(cell) for cell in rows.arch])
    best = rows.iloc[rows.value.argmax()]
    lines = stdout.splitlines()[-5:]
    assert f": value {best.value:.3f} %, test {best.test:.3f} %, MACs " in lines[0]
    assert lines[1].strip() == best.arch
    assert json.loads(lines[2]) == {"name": "infer.tiny", "arch_str": best.arch}


def test_the_evaluator_of_a_space_need_not_be_named(table, tmp_path, capsys):
    for i, evaluator in enumerate(("table", None)):
        search(capsys, CELLS, evaluator=evaluator, table=table, budget=9, out=tmp_path / str(i))
    assert found(tmp_path / "0") == found(tmp_path / "1")


def test_cells_that_the_table_lacks_fail(cells, tmp_path, capsys):
    """Synthetic: only cells without a cut edge. A run goes on without the others."""
    some = [cell for cell in cells if "none" not in cell]
    path = write_table(tmp_path / "some.parquet", some, c10_valid_200=on_validation)
    stdout = search(capsys, CELLS, table=path, out=tmp_path / "run")
    rows = trials(tmp_path / "run")
    missing = rows.arch.str.contains("none")
    assert 0 < missing.sum() < 14
    assert ((rows.status == "failed") == missing).all()
    assert (rows.value.isna() == missing).all()
    assert (rows.attempts == 1).all()
    for trial, arch, error in rows[missing][["trial", "arch", "error"]].itertuples(index=False):
        assert error == f"EvaluationError: {arch} is not in {path}"
        assert f"trial {trial} failed: {error}\n" in stdout
    assert rows.arch.is_unique


def test_a_table_in_which_nothing_is_found(tmp_path, capsys):
    path = write_table(tmp_path / "t.parquet", ["no cell"], c10_valid_200=on_validation)
    _, stdout, err = run_here(capsys, CELLS, table=path, out=tmp_path / "run")
    assert err == ""
    assert "no evaluation succeeded; see " in stdout
    assert set(trials(tmp_path / "run").status) == {"failed"}
    assert (tmp_path / "run" / "report.html").exists()


def test_a_path_is_never_broken_over_lines(tmp_path, capsys):
    path = write_table(tmp_path / "t.parquet", ["no cell"], c10_valid_200=on_validation)
    out = tmp_path / "a name that is rather long" / "and another one"
    _, stdout, _ = run_here(capsys, CELLS, table=path, out=out)
    assert str(out / "trials.parquet") in stdout


def test_a_path_is_printed_as_it_is(tmp_path, capsys):
    out = tmp_path / ":fire:" / "run"
    assert search(capsys, QUICK, out=out).endswith(f"report: {out / 'report.html'}\n")


def test_a_name_that_is_not_utf_8_and_a_terminal_that_is_ascii(tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"caf\xe9 \xc3\xbc")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", ascii_only)
        patch.setattr(sys, "orig_argv", ["python", "--out", str(out)])
        code, *_ = run_here(capsys, QUICK, out=out)
    ascii_only.flush()
    assert code == 0
    assert ascii_only.buffer.getvalue().endswith(rb"caf\udce9 \xfc/report.html" + b"\n")
    assert r"caf\udce9 ü" in (out / "report.html").read_text(encoding="utf-8")


# Trained networks


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that was never trained: its weights load, that is all."""
    path = tmp_path_factory.mktemp("weights") / "W.safetensors"
    save_network(ScoreNetwork(TOY, sde_of(UniformLaw(TOY)), ScoreNetConfig(width=16)), path, {})
    return path


def test_weights_of_ones_own(weights, tmp_path, capsys):
    search(capsys, QUICK, score="network", score_weights=weights, out=tmp_path / "run")
    assert len(found(tmp_path / "run")) == 8


# Bad input: exit code 2, one line, and nothing is made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": "nowhere"},
            f"unknown space 'nowhere': choose from {', '.join(SPACES)}",
        ),
        ({"acq": "luck"}, "unknown acquisition function 'luck': choose from ei, pi"),
        ({"strategy": "luck"}, "unknown strategy 'luck': choose from guided, guided-gen"),
        ({"score": "luck"}, '"luck" for --score'),
        ({"guidance": "luck"}, '"luck" for --guidance'),
        ({"executor": "luck"}, '"luck" for --executor'),
        ({"objective": "luck"}, '"luck" for --objective'),
        ({"auth": "luck"}, '"luck" for --auth'),
        ({"noise_schedule": "luck"}, '"luck" for --noise-schedule'),
        ({"schedule": "luck"}, '"luck" for --schedule'),
        ({"guidance_form": "luck"}, '"luck" for --guidance-form'),
        ({"guidance_form": "target"}, "--target requires --guidance-form target, and vice versa"),
        ({"target": 70}, "--target requires --guidance-form target, and vice versa"),
        (
            {"target": 70, "guidance_form": "target", "acq": "pi"},
            "--target requires --acq target, and vice versa",
        ),
        ({"acq": "target"}, "--target requires --acq target, and vice versa"),
        (
            {"target": 70, "guidance_form": "target", "strategy": "mutation"},
            "--target requires --strategy guided or guided-gen, not mutation",
        ),
        ({"target": "high", "guidance_form": "target"}, "high"),
        ({"constraint": "macs<=3e8"}, "unknown quantity 'macs' of the space toy: it has none"),
        ({"pareto": "macs"}, "unknown quantity 'macs' of the space toy: it has none"),
        (
            {"pareto": "macs", "target": 70, "guidance_form": "target"},
            "--pareto cannot be used with --target",
        ),
        ({"pareto": "macs", "method": "bohb"}, "--pareto cannot be used with --method bohb"),
        (
            {"pareto": "macs", "early_stopping": "asha"},
            "--pareto cannot be used with --early-stopping",
        ),
        ({"pareto": "macs", "patience": 3}, "it cannot be used with --pareto"),
        ({"sampler": "luck"}, "unknown sampler 'luck': choose from predictor-corrector"),
        ({"evaluator": "luck"}, "unknown evaluator 'luck': choose from surrogate, table, toy"),
        ({"evaluator": "table"}, "the table evaluator supports the space nasbench201, not toy"),
        ({"evaluator": "surrogate"}, "surrogate evaluator supports the space mobilenetv3, not toy"),
        ({"device": "luck"}, "device 'luck' is not available"),
        ({"budget": 3}, "--budget 3 is smaller than --n-init 4"),
        ({"budget": 0}, "--budget 0 is smaller than --n-init 4"),
        ({"n_init": 0}, "--n-init must be at least 1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"pool_size": -1}, "--pool-size must be at least 1"),
        ({"batch_size": 11}, "--pool-size 10 is smaller than --batch-size 11"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"patience": 0}, "--patience must be at least 1"),
        ({"max_hours": 0.0}, "--max-hours must be more than 0"),
        ({"max_hours": math.nan}, "--max-hours must be more than 0"),
        ({"retries": -1}, "--retries must not be negative"),
        ({"executor": "local", "workers": 4}, "--executor local evaluates one at a time"),
        ({"metrics_port": 65536}, "--metrics-port must be 1 to 65535"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"seed": 2**63}, "and below 2^63"),
        ({"budget": "many"}, "many"),
        ({"seed": "1e400"}, "1e400"),
        ({"sigma_min": "small"}, "small"),
        ({"sigma_min": "nan"}, "sigma_min nan must be positive"),
        ({"sigma_min": 5}, "sigma_min 5 must be positive and below sigma_max 5"),
        ({"colour": "red"}, "--colour"),
        ({"table": "t.parquet"}, "the toy evaluator takes no --table"),
        ({"score_weights": "W.safetensors", "score": "network"}, "no such file: W.safetensors"),
        ({"score": "network"}, "no trained weights ship for space 'toy'"),
    ],
    ids=str,
)
def test_bad_settings(changes, message, capsys):
    assert message in refusal(capsys, QUICK, out="run", **changes)


@pytest.mark.parametrize("target", ["nan", "inf"])
def test_a_target_must_be_finite(target, capsys):
    changes = {"guidance_form": "target", "target": target}
    assert "must be finite" in refusal(capsys, QUICK, out="run", **changes)


@pytest.mark.parametrize("target", ["0.76", "760"])
def test_a_target_is_in_percent(target, capsys):
    changes = {"guidance_form": "target", "target": target}
    message = f"--target {target} is in percent: it must be 1 to 100"
    assert message in refusal(capsys, QUICK, out="run", **changes)


@pytest.mark.parametrize("scale", ["0", "-1", "", "strong", "nan", "inf", "5,1", "0,1", "1,2,3"])
def test_bad_guidance_scales(scale, capsys):
    message = refusal(capsys, QUICK, out="run", guidance_scale=scale)
    assert f"--guidance-scale {scale!r} must be auto, a positive number, or LOW,HIGH" in message


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        *(
            (text, f"{text!r} is not a constraint: expected QUANTITY<=NUMBER or QUANTITY>=NUMBER")
            for text in ("macs", "macs<300e6", "macs<=", "macs<=small", "macs<=nan")
        ),
        (
            "macs<=100e6",
            "no architecture of mobilenetv3 satisfies 'macs<=100e6': macs is between 1.21279e+08 "
            "and 5.66171e+08\n",
        ),
        ("energy<=3", "'energy' of the space mobilenetv3: choose from macs, params, latency\n"),
        (("macs<=300e6", "params>=1e9"), "satisfies 'params>=1e9': params is between "),
        ("latency<=25", "latency needs --latency-table"),
    ],
)
def test_bad_constraints(constraint, message, capsys):
    assert message in refusal(capsys, MOBILE, out="run", constraint=constraint)


def test_a_latency_table_of_other_networks_than_the_surrogate_knows(capsys):
    """It estimates networks of width 1.0. In Tune, and with values at hand, those are only known if
    the evaluator is named."""
    plan = mobilenetv3_plan(224, 1.2)
    blocks = [once_for_all_block(slot, k, e) for slot in plan.slots for k, e in LAYERS]
    times = dict.fromkeys([*once_for_all_ends(plan), *blocks], 1.0)
    Path("phone.json").write_text(json.dumps({"tables": {"224": times}}))
    settings = {"constraint": "latency<=20", "latency_table": "phone.json"}
    message = "phone.json is for networks of width 1.2, but those evaluated are of width 1\n"
    assert message in refusal(capsys, MOBILE, out="run", **settings)
    config = RunConfig(constraint=("latency<=20",), latency_table="phone.json")
    assert [quantity.name for quantity in quantities_of(config).properties] == ["latency"]
    with pytest.raises(UserError, match=r"of width 1\.2, but those evaluated are of width 1"):
        quantities_of(replace(config, evaluator="surrogate"))


def test_a_pareto_front(tmp_path, capsys):
    """Printed by increasing cost, in the report as a whole, and a run of its own."""
    changes = {"pareto": "macs", "constraint": "macs<=400e6", "out": tmp_path / "run"}
    lines = search(capsys, MOBILE, **changes).splitlines()
    assert ", macs<=400e6, pareto macs: " in lines[0]
    first = lines.index("Pareto front with macs<=400e6:") + 1
    front = lines[first : lines.index(f"trials: {tmp_path / 'run' / 'trials.parquet'}")]
    table = trials(tmp_path / "run").sort_values("macs")
    on_it = table[table["value"] > table["value"].cummax().shift(fill_value=0)]
    expected = [
        f"  value {row.value:.3f} %, MACs {row.macs / 1e6:.2f} M, params {row.params / 1e6:.2f} M "
        f"(trial {row.trial}): {row.arch}"
        for row in on_it.itertuples()
    ]
    assert front == expected
    assert "Hypervolume: the area" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(SystemExit, match="0"):
        run(status, [str(tmp_path / "run")])
    assert "pareto macs" in capsys.readouterr().out
    assert "pareto is 'macs' there, None here" in refusal(
        capsys, MOBILE, **changes | {"pareto": None}
    )


@pytest.mark.parametrize("aim", [{"pareto": "macs"}, {"guidance_form": "target", "target": 75}])
def test_a_search_that_does_not_seek_the_best_is_guided_in_every_round(aim):
    """Mutants of the best would lead away from the target, or neglect the rest of the front."""
    generator = DiffusionGenerator(RunConfig(score="exact").generator("cpu"))
    found = build_single_fidelity(RunConfig(score="exact", **aim), generator).strategy
    assert isinstance(found, GuidedGeneration)
    best = build_single_fidelity(RunConfig(score="exact"), generator).strategy
    assert isinstance(best, NearAfterFailure)


def test_without_a_pareto_front_runs_are_what_they_were():
    config = RunConfig()
    assert "pareto" not in config.identity()
    assert replace(config, pareto="macs").identity() == config.identity() | {"pareto": "macs"}
    assert replace(config, pareto="macs").name == "mobilenetv3-guided-ei-pareto-macs-seed0"


def test_a_latency_table_that_is_not_there(capsys):
    settings = {"constraint": "latency<=25", "latency_table": "nowhere.json"}
    assert "no such table: " in refusal(capsys, MOBILE, out="run", **settings)


@pytest.mark.parametrize(
    "name",
    ["budget", "seed", "n_init", "pool_size", "workers", "epochs", "calibration", "latency_batch"],
)
def test_a_number_that_is_not_whole(name, capsys):
    for text in ("6.5", "many"):
        said = refusal(capsys, QUICK, out="run", **{name: text})
        assert f"{name.replace('_', '-')}: {text!r} is not a whole number" in said


def test_an_argument_that_belongs_to_no_option(capsys):
    assert "stray" in refusal(capsys, QUICK | {"--dashboard": "stray"}, out="run")


@pytest.mark.parametrize("name", ["out", "score_weights"])
def test_a_name_that_is_too_long(name, capsys):
    changes = {"out": "run", "score": "network", name: "x" * 300}
    assert "x" * 300 in refusal(capsys, QUICK, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "the table evaluator needs --table"),
        ({"table": "nowhere.parquet"}, "no such table: "),
        ({"table": "."}, "is not a readable parquet file"),
        ({"table": "notes.txt"}, "notes.txt is not a readable parquet file"),
        ({"table": "torn.parquet"}, "torn.parquet is not a readable parquet file"),
        ({"table": "some.parquet", "dataset": "mnist"}, "no data set 'mnist': choose from cifar10"),
        (
            {"table": "some.parquet", "dataset": "cifar100"},
            "some.parquet has no column c100_valid_200; accuracies it has: c10_valid_200\n",
        ),
        ({"table": "some.parquet", "objective": "test"}, "has no column c10_test_200"),
        ({"table": "bare.parquet"}, "has no column c10_valid_200; accuracies it has: none\n"),
        ({"table": "other.parquet"}, "other.parquet has no column arch"),
    ],
    ids=str,
)
def test_bad_tables(changes, message, cells, capsys):
    write_table("some.parquet", cells[:9], c10_valid_200=on_validation)
    write_table("bare.parquet", cells[:9])
    pd.DataFrame({"c10_valid_200": [50.0]}).to_parquet("other.parquet")
    Path("torn.parquet").write_bytes(Path("some.parquet").read_bytes()[:-30])
    Path("notes.txt").write_text("not a table\n")
    assert message in refusal(capsys, CELLS, out="run", **changes)


def test_a_table_of_texts(cells, capsys):
    write_table("texts.parquet", cells[:9], c10_valid_200=lambda cell: "ninety")
    assert "texts.parquet" in refusal(capsys, CELLS, out="run", table="texts.parquet")


def test_a_table_with_damage_inside(cells, capsys):
    write_table("damaged.parquet", cells, c10_valid_200=on_validation)
    content = bytearray(Path("damaged.parquet").read_bytes())
    content[1000:40_000] = bytes(39_000)
    Path("damaged.parquet").write_bytes(content)
    assert "damaged.parquet" in refusal(capsys, CELLS, out="run", table="damaged.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "cifar10"}, "the surrogate evaluator has no data set 'cifar10': choose from"),
        ({"objective": "test"}, "the surrogate evaluator has no objective 'test'"),
        ({"table": "t.parquet"}, "the surrogate evaluator takes no --table"),
    ],
    ids=str,
)
def test_what_the_surrogate_does_not_have(changes, message, capsys):
    assert message in refusal(capsys, QUICK, space="mobilenetv3", out="run", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "mobilenetv3"}, "holds weights of space 'toy', not 'mobilenetv3'"),
        ({"sigma_max": 20}, "was trained with sigma 0.1..5, but sigma 0.1..20 is asked for"),
        ({"sigma_min": 0.01}, "but sigma 0.01..5 is asked for"),
    ],
    ids=str,
)
def test_weights_of_something_else(weights, changes, message, capsys):
    settings = QUICK | {"--score": "network", "--score-weights": weights}
    assert message in refusal(capsys, settings, out="run", **changes)


def test_damaged_weights(weights, capsys):
    Path("W.json").write_bytes(weights.with_suffix(".json").read_bytes())
    Path("W.safetensors").write_bytes(weights.read_bytes()[:-1])
    settings = QUICK | {"--score": "network", "--score-weights": "W.safetensors"}
    assert "W.safetensors does not match the hash" in refusal(capsys, settings, out="run")


def test_a_directory_of_another_configuration(capsys):
    search(capsys, QUICK, out="run")
    message = refusal(capsys, QUICK, out="run", seed=1, acq="ucb")
    assert "run holds a run of another configuration (acq is 'ei' there, 'ucb' here, " in message
    assert "seed is 0 there, 1 here): choose another --out\n" in message


def test_a_directory_that_is_not_a_run(capsys):
    Path("thesis").mkdir()
    Path("thesis", "chapter.txt").write_text("years of work")
    assert "thesis holds other files: choose another --out" in refusal(capsys, QUICK, out="thesis")
    message = refusal(capsys, QUICK, out="thesis/chapter.txt")
    assert "thesis/chapter.txt is not a folder: choose another --out" in message
    message = refusal(capsys, QUICK, out="thesis/chapter.txt/run")
    assert "cannot write to thesis/chapter.txt/run: Not a directory" in message


@pytest.mark.parametrize("how", ["--address", "RAY_ADDRESS"])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: "),
        ("ray://127.0.0.1:1", "Ray address 'ray://127.0.0.1:1' must be host:port or auto"),
        ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999: "),
        ("127.0.0.1", "Ray address '127.0.0.1' must be host:port or auto"),
        (":6379", "must be host:port"),
        ("somewhere:else", "must be host:port"),
    ],
)
def test_a_cluster_that_is_not_there(how, address, message, monkeypatch, capsys):
    """Ray is not asked: it would try for minutes."""
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked"))
    settings = QUICK | {"--executor": "ray"}
    if how == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        settings |= {"--address": address}
    assert message in refusal(capsys, settings, out="run")


# Help


OPTIONS = [name for name in RunConfig.__dataclass_fields__ if name != "networks"]
WHERE = [name for name in Runtime.__dataclass_fields__ if name != "ends_at"]  # from --max-hours


def test_help_names_every_option(capsys):
    code, out, err = run_here(capsys, {}, help="")
    assert (code, err) == (0, "")
    for name in (*OPTIONS, *NetworkOptions.__dataclass_fields__, *WHERE):
        assert f"--{name.replace('_', '-')} " in out
    for name in (*STRATEGIES, *ACQUISITIONS):
        assert name in out


def test_the_version_is_that_of_the_package(capsys):
    assert version("diffusionnag-bo") in search(capsys, {}, version="")
