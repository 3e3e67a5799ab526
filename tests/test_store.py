"""The run store: what was journalled is there again, whatever was killed when."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nag.errors import UserError
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.history.earlier import EarlierRun
from orchestrator.history.trials import Outcome
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.record import check_same_run, provenance
from orchestrator.search.store import COLUMNS, RunStore
from orchestrator.storage.journal import SCHEMA
from trainers.training.task import NetworkOptions

CONFIG = RunConfig(space="toy", score="exact", budget=20, n_init=3, batch_size=2, seed=7)
INITIAL = ("aa/aa", "ab/c-", "c-/bb")
SECOND = ("ca/bc", "ba/bc")
FAILURE = Outcome(1, "failed", seconds=0.2, error="EvaluationError: does not fit", attempts=2)


def suggestion(*archs, strategy="initial", predicted=None):
    predictions = predicted or (None,) * len(archs)
    return Suggestion(
        tuple(map(TOY.from_str, archs)), strategy, predictions, {"fit": 0.5}, {"a": 1}
    )


def success(trial, value, **metrics):
    return Outcome(trial, "ok", value, metrics, seconds=0.25)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def store(out):
    """A run of two rounds: one trial failed, the last one is still to run."""
    store = RunStore.open(out, CONFIG)
    store.propose(suggestion(*INITIAL))
    for outcome in (success(0, 0.5), FAILURE, success(2, 0.75, test=0.7, macs=1e6)):
        store.record(outcome)
    store.propose(suggestion(*SECOND, strategy="guided", predicted=((0.8, 0.1), (0.6, 0.2))))
    store.record(success(3, 0.625))
    yield store
    store.close()


def reopen(store, config=CONFIG):
    store.close()
    return RunStore.open(store.out, config)


def state(store):
    return list(store.trials), dict(store.outcomes), list(store.rounds)


def refusal(out, config=CONFIG):
    """The message with which a run is not opened; the directory stays as it was."""
    before = contents(out)
    with pytest.raises(UserError) as error:
        RunStore.open(out, config)
    assert contents(out) == before
    message = str(error.value)
    assert "\n" not in message
    return message


def contents(folder):
    if not folder.is_dir():
        return None
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# Journal


def test_a_new_run_is_empty(out):
    store = RunStore.open(out, CONFIG)
    assert state(store) == ([], {}, [])
    assert (store.num_finished, store.next_iteration, store.best) == (0, 0, None)
    assert store.pending() == []
    assert store.seen() == frozenset()
    assert len(store.observations()) == 0
    store.close()


def test_trials_are_numbered_and_belong_to_their_round(store):
    assert [trial.trial for trial in store.trials] == [0, 1, 2, 3, 4]
    assert [trial.iteration for trial in store.trials] == [0, 0, 0, 1, 1]
    assert [TOY.to_str(trial.arch) for trial in store.trials] == [*INITIAL, *SECOND]
    assert [trial.strategy for trial in store.trials] == ["initial"] * 3 + ["guided"] * 2
    assert [trial.predicted_mean for trial in store.trials] == [None, None, None, 0.8, 0.6]
    assert [trial.predicted_std for trial in store.trials] == [None, None, None, 0.1, 0.2]
    assert store.next_iteration == 2


def test_the_seed_of_a_trial_depends_on_its_number_and_the_seed_of_the_run_alone(store, tmp_path):
    one_by_one = RunStore.open(tmp_path / "other", CONFIG)
    for arch in reversed([*INITIAL, *SECOND]):
        one_by_one.propose(suggestion(arch))
    seeds = [trial.seed for trial in store.trials]
    assert [trial.seed for trial in one_by_one.trials] == seeds
    assert len(set(seeds)) == len(seeds)
    one_by_one.close()
    other = RunStore.open(tmp_path / "seed 8", replace(CONFIG, seed=8))
    assert set(seeds).isdisjoint(trial.seed for trial in other.propose(suggestion(*INITIAL)))
    other.close()


def test_reopening_gives_the_same_state(store):
    before = state(store)
    again = reopen(store)
    assert state(again) == before
    assert [round_["seconds"] for round_ in again.rounds] == [{"fit": 0.5}] * 2
    assert [round_["diagnostics"] for round_ in again.rounds] == [{"a": 1}] * 2
    again.close()


def test_an_event_is_on_disk_before_the_call_returns(store):
    """What another process reads while this one still holds the journal open."""
    journal = store.out / "journal.jsonl"
    assert len(journal.read_bytes().splitlines()) == 6
    store.record(success(4, 0.9))
    last = json.loads(journal.read_bytes().splitlines()[-1])
    assert (last["event"], last["trial"], last["value"]) == ("finished", 4, 0.9)
    store.propose(suggestion("bb/bb"))
    last = json.loads(journal.read_bytes().splitlines()[-1])
    assert (last["event"], [t["arch"] for t in last["trials"]]) == ("proposed", ["bb/bb"])


def test_floats_survive_the_journal_bit_for_bit(out, rng):
    store = RunStore.open(out, CONFIG)
    store.propose(suggestion(*INITIAL))
    values = rng.random(3) ** 9
    for i, value in enumerate(values):
        store.record(success(i, float(value)))
    again = reopen(store)
    assert again.observations().values.tobytes() == values.tobytes()
    again.close()


def test_a_second_outcome_of_a_trial_is_ignored(store):
    before, size = state(store), (store.out / "journal.jsonl").stat().st_size
    for outcome in (success(0, 0.99), success(1, 0.99), replace(FAILURE, trial=2)):
        store.record(outcome)
    assert state(store) == before
    assert (store.out / "journal.jsonl").stat().st_size == size
    again = reopen(store)
    assert state(again) == before
    again.close()


def test_only_trials_without_an_outcome_are_pending(store):
    assert [trial.trial for trial in store.pending()] == [4]
    store.record(replace(FAILURE, trial=4))
    assert store.pending() == []


def test_everything_proposed_is_seen(store):
    """Failed and pending trials too: nothing is proposed twice."""
    assert {TOY.to_str(arch) for arch in store.seen()} == {*INITIAL, *SECOND}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_observations_are_the_successes_in_the_order_of_trials(out, order):
    store = RunStore.open(out, CONFIG)
    store.propose(suggestion(*INITIAL, SECOND[0]))
    outcomes = [success(0, 0.5), FAILURE, success(2, 0.75), success(3, 0.25)]
    for trial in order:
        store.record(outcomes[trial])
    for opened in (store, reopen(store)):
        found = opened.observations()
        assert [TOY.to_str(arch) for arch in found.archs] == [INITIAL[0], INITIAL[2], SECOND[0]]
        np.testing.assert_array_equal(found.values, [0.5, 0.75, 0.25])
    opened.close()


def test_what_was_known_before_a_round(store):
    """Without the outcomes of that round and of later ones, those that came early included."""
    store.propose(suggestion("bb/bb"))
    store.record(success(5, 0.875))
    store.record(success(4, 0.375))
    for opened in (store, reopen(store)):
        known = [opened.observations(before=before).values.tolist() for before in range(5)]
        assert known[:3] == [[], [0.5, 0.75], [0.5, 0.75, 0.625, 0.375]]
        assert known[3] == known[4] == opened.observations().values.tolist()
        assert known[3] == [0.5, 0.75, 0.625, 0.375, 0.875]
        assert len(opened.low_fidelity()) == len(opened.rung()) == 0
    opened.close()


def test_low_fidelity_after_each_round(out):
    store = RunStore.open(out, CONFIG)
    assert len(store.rung()) == 0
    low, rungs = [], []
    rounds = zip((*INITIAL, SECOND[0]), (0.5, 0.25, 0.75, 0.625), (None, 12, 12, None), strict=True)
    for trial, (arch, value, epochs) in enumerate(rounds):
        store.propose(replace(suggestion(arch), epochs=epochs))
        store.record(success(trial, value))
        low.append(store.low_fidelity().values.tolist())
        rungs.append(store.rung().values.tolist())
    assert low == [[], [0.25], [0.25, 0.75], [0.25, 0.75]]
    assert rungs == [[], [0.25], [0.75], []]
    assert store.observations().values.tolist() == [0.5, 0.625]
    assert store.spent == 2 + Fraction(2 * 12, 200)
    store.close()


def test_what_was_seen_is_a_view(store):
    """Not a copy, which would cost more with every round, and not to be changed."""
    seen = store.seen()
    before = len(seen)
    store.propose(suggestion("bb/bb"))
    assert len(seen) == before + 1
    assert TOY.from_str("bb/bb") in seen
    assert not hasattr(seen, "add")


def test_the_best_is_the_first_of_equals_and_never_a_failure(out):
    store = RunStore.open(out, CONFIG)
    store.propose(suggestion(*INITIAL))
    store.record(FAILURE)
    assert store.best is None
    for trial in (2, 0):
        store.record(success(trial, 0.5))
    trial, value = store.best
    assert (trial.trial, value) == (0, 0.5)
    store.close()


def test_the_best_of_a_search_for_a_target_is_the_nearest(out):
    """Of two as near the first; also where it is only looked at."""
    config = replace(CONFIG, guidance_form="target", target=50.0, acq="target")
    store = RunStore.open(out, config)
    store.propose(suggestion(*INITIAL))
    store.record(success(0, 0.9))
    store.record(success(2, 0.25))
    store.record(success(1, 0.75))
    assert (store.best[0].trial, store.best[1]) == (1, 0.75)
    store.close()
    assert RunStore.read(out).best == store.best


# A crash in the middle of a write


def test_a_line_torn_anywhere_costs_that_line_only(store, tmp_path, monkeypatch):
    """Every state in which a kill can leave the last two events: a proposal and an outcome."""
    slow = "orchestrator.search.record.package_version"  # and looked up 700 times
    monkeypatch.setattr(slow, str)
    store.record(success(4, 0.375))
    store.propose(suggestion("bb/bb", strategy="guided"))
    store.record(success(5, 0.125))
    store.close()
    journal = (store.out / "journal.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    states = [_state_after(lines[:n], tmp_path / f"prefix {n}") for n in range(len(lines) + 1)]
    path = tmp_path / "torn"
    for length in range(len(journal) - len(lines[-1]) - len(lines[-2]), len(journal) + 1):
        intact = journal[:length].count(b"\n")
        torn = _with_journal(path, journal[:length])
        assert state(torn) == states[intact]
        assert (path / "journal.jsonl").read_bytes() == b"".join(lines[:intact])
        _go_on(torn)
        expected = state(torn)
        again = reopen(torn)
        assert state(again) == expected
        again.close()


def _with_journal(out, journal):
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(_config_text())
    (out / "journal.jsonl").write_bytes(journal)
    return RunStore.open(out, CONFIG)


def _state_after(lines, out):
    store = _with_journal(out, b"".join(lines))
    store.close()
    return state(store)


def _go_on(store):
    before = store.num_finished
    if not store.pending():
        store.propose(suggestion("a-/a-"))
    store.record(success(store.pending()[0].trial, 0.0625))
    assert store.num_finished == before + 1


def _config_text(**changes):
    record = {
        "schema": SCHEMA,
        "config": CONFIG.identity() | {"budget": CONFIG.budget},
        "hash": CONFIG.hash(),
    }
    return json.dumps(record | changes)


def test_a_line_of_zeros_as_after_a_power_failure_is_dropped(store):
    before = state(store)
    store.close()
    with (store.out / "journal.jsonl").open("ab") as journal:
        journal.write(b"\0" * 200)
    again = RunStore.open(store.out, CONFIG)
    assert state(again) == before
    again.close()


def test_a_run_killed_before_its_configuration_was_written_can_be_repeated(out):
    """`RunStore.open` makes the journal first: an empty one may be all there is."""
    out.mkdir()
    (out / "journal.jsonl").touch()
    RunStore.open(out, CONFIG).close()


def test_a_damaged_line_in_the_middle_does_not_delete_what_follows(store):
    """Not what a crash leaves: say so, instead of throwing finished evaluations away."""
    store.close()
    journal = store.out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = b"#" + lines[2]
    journal.write_bytes(b"".join(lines))
    assert "journal.jsonl" in refusal(store.out)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "null",
        pytest.param("[" * 100_000, id="deep"),
        '{"event": "exhausted"}',
        '{"at": 1.0, "event": "patience"}',
        '{"at": 1.0, "event": "patience", "after": "long"}',
        '{"at": 1.0, "event": "paused"}',
        '{"at": 1.0, "event": "finished", "trial": 1}',
        '{"at": 1.0, "event": "finished", "trial": 77, "status": "failed"}',
        '{"at": 1.0, "event": "finished", "trial": 4, "status": "ok", "value": "much"}',
        '{"at": 1.0, "event": "proposed", "trials": [{"trial": 5, "arch": "zz/zz"}]}',
        '{"at": 1.0, "event": "proposed", "trials": [{"trial": 77, "arch": "a"}]}',
    ],
)
def test_a_line_that_is_no_event_is_named(store, line):
    before = sha256((store.out / "config.json").read_bytes()).hexdigest()
    store.close()
    with (store.out / "journal.jsonl").open("a") as journal:
        journal.write(line + "\n" + '{"event": "proposed", "trials": []}\n')
    assert "line 7 is damaged" in refusal(store.out)
    assert sha256((store.out / "config.json").read_bytes()).hexdigest() == before


# A look from outside


def test_a_run_can_be_read_while_it_goes_on(store):
    """Without its lock, and without dropping the line that is being written."""
    with (store.out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"event": "finis')
    before = contents(store.out)
    seen = RunStore.read(store.out)
    assert state(seen) == state(store)
    assert (seen.spent, seen.best) == (store.spent, store.best)
    assert seen.pending() == store.pending() != []
    assert contents(store.out) == before
    with pytest.raises(ValueError, match="read-only"):
        seen.record(success(4, 0.9))


def test_what_was_journalled_when(store, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1000.0)
    store.record(success(4, 0.9))
    store.propose(suggestion("bb/bb"))
    seen = RunStore.read(store.out)
    assert (seen.history.finished_at[4], seen.history.proposed_at[2]) == (1000.0, 1000.0)
    assert min(seen.history.finished_at[0], seen.history.proposed_at[0]) > 1000.0
    assert (seen.history.finished_at, seen.history.proposed_at) == (
        store.history.finished_at,
        store.history.proposed_at,
    )


@pytest.mark.parametrize("missing", ["config.json", "journal.jsonl"])
def test_what_is_no_run_cannot_be_read(store, missing):
    (store.out / missing).unlink()
    with pytest.raises(UserError, match=str(store.out)):
        RunStore.read(store.out)


# trials.parquet


def test_parquet_has_a_row_per_finished_trial(store):
    store.record(success(4, 0.9))
    store.propose(suggestion("bb/bb"))  # not finished: not in the table
    store.compact()
    table = pq.read_table(store.out / "trials.parquet")
    assert table.column_names == [*COLUMNS, "test", "macs"]
    rows = table.to_pylist()
    assert [row["trial"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["arch"] for row in rows] == [*INITIAL, *SECOND]
    assert [row["iteration"] for row in rows] == [0, 0, 0, 1, 1]
    assert [row["strategy"] for row in rows] == ["initial"] * 3 + ["guided"] * 2
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok", "ok"]
    assert [row["error"] for row in rows] == [None, FAILURE.error, None, None, None]
    assert [row["attempts"] for row in rows] == [1, 2, 1, 1, 1]
    assert [row["seconds"] for row in rows] == [0.25, 0.2, 0.25, 0.25, 0.25]
    assert [row["seed"] for row in rows] == [trial.seed for trial in store.trials[:5]]


def test_accuracies_in_the_parquet_are_percent_and_the_rest_is_not(store):
    store.compact()
    columns = pq.read_table(store.out / "trials.parquet").to_pydict()
    assert columns["value"] == [50.0, None, 75.0, 62.5]
    assert columns["test"] == [None, None, pytest.approx(70.0), None]
    assert columns["macs"] == [None, None, 1e6, None]
    assert columns["predicted_mean"] == [None, None, None, pytest.approx(80.0)]
    assert columns["predicted_std"] == [None, None, None, pytest.approx(10.0)]


def test_column_types_do_not_depend_on_what_was_found(store, tmp_path):
    """A column of nothing but nulls keeps its type, so that runs can be concatenated."""
    empty = RunStore.open(tmp_path / "empty", CONFIG)
    empty.compact()
    failed = RunStore.open(tmp_path / "failed", CONFIG)
    failed.propose(suggestion(*INITIAL))
    failed.record(FAILURE)
    failed.compact()
    store.compact()
    text = dict.fromkeys(("arch", "status", "error", "strategy"), pa.string())
    counts = dict.fromkeys(("trial", "iteration", "seed", "attempts"), pa.int64())
    expected = [(text | counts).get(name, pa.float64()) for name in COLUMNS]
    for opened in (store, empty, failed):
        schema = pq.read_schema(opened.out / "trials.parquet")
        assert schema.types[: len(COLUMNS)] == expected
        opened.close()


def test_compacting_leaves_nothing_else_behind(store):
    store.compact()
    store.compact()
    files = {file.name for file in store.out.iterdir()}
    assert files == {"config.json", "journal.jsonl", "trials.parquet"}


# config.json and whose directory it is


def test_config_json_tells_what_was_run(store, monkeypatch):
    command = ["/somewhere/bin/python3", "-m", "orchestrator.run_bo", "--out", "a b"]
    monkeypatch.setattr(sys, "orig_argv", command)
    reopen(store).close()
    record = json.loads((store.out / "config.json").read_text())
    assert record["schema"] == SCHEMA
    assert record["config"] == {**CONFIG.identity(), "budget": 20}
    identity = json.dumps(CONFIG.identity(), sort_keys=True).encode()
    assert record["hash"] == hashlib.sha256(identity).hexdigest()
    assert record["command"] == "python -m orchestrator.run_bo --out 'a b'"
    assert f"{os.cpu_count()} CPUs" in record["machine"]
    assert record["versions"]["torch"] == version("torch")
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


DIFFERENCES = {
    "space": "mobilenetv3",
    "evaluator": "table",
    "table": Path("table.parquet"),
    "dataset": "cifar100",
    "objective": "test",
    "surrogate": "none",
    "acq": "ucb",
    "strategy": "random",
    "score": "network",
    "score_weights": Path("w.safetensors"),
    "sigma_min": 0.2,
    "sigma_max": 10.0,
    "sampler": "ancestral",
    "steps": 7,
    "noise_schedule": "karras",
    "schedule": "async",
    "window": 2,
    "guidance": "noise-aware",
    "guidance_form": "improvement",
    "guidance_scale": "1,20",
    "target": 70.0,
    "constraint": ("macs<=300e6",),
    "pareto": "macs",
    "latency_table": "/tables/phone.json:160",
    "prior": (EarlierRun(Path("earlier"), "toy", "toy", ("a", "b"), (0.5, 0.6)),),
    "early_stopping": "asha",
    "grace_epochs": 2,
    "n_init": 4,
    "pool_size": 50,
    "batch_size": 1,
    "seed": 8,
    "threads": 2,
}
NEEDED = {  # else it is not allowed
    "target": {"guidance_form": "target", "acq": "target"},
    "surrogate": {"strategy": "random"},
    "schedule": {"batch_size": 1},
}


SETTINGS = [name for name in RunConfig.__dataclass_fields__ if name not in ("method", "networks")]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_but_the_budget_makes_another_run(store, name):
    """A new setting must be added here, and so to the identity of a run."""
    before = state(store)
    store.close()
    if name == "budget":
        again = RunStore.open(store.out, replace(CONFIG, budget=1000))
        assert state(again) == before
        again.close()
        assert json.loads((store.out / "config.json").read_text())["config"]["budget"] == 1000
    else:
        needed = NEEDED.get(name, {})
        message = refusal(store.out, replace(CONFIG, **needed, **{name: DIFFERENCES[name]}))
        assert f"{name} is {CONFIG.identity().get(name)!r} there, " in message
        assert message.endswith("choose another --out")


NETWORKS = {
    "resolution": 64,
    "held_out": 9,
    "train_fraction": 0.5,
    "weights": Path("w.pt"),
    "recipe": "small",
    "epochs": 3,
    "calibration": 100,
    "latency_batch": 1,
    "precision": "bfloat16",
    "width": 0.5,
}


@pytest.mark.parametrize(
    "name", [f for f in NetworkOptions.__dataclass_fields__ if f not in ("data", "fidelity")]
)
def test_every_setting_of_networks_makes_another_run(store, name):
    store.close()
    networks = NetworkOptions(**{name: NETWORKS[name]})
    assert f"{name} is " in refusal(store.out, replace(CONFIG, networks=networks))


def test_what_brief_training_has_less_of_makes_another_run(out):
    config = RunConfig(space="nasbench201", evaluator="train", method="bohb")
    RunStore.open(out, config).close()
    networks = NetworkOptions(fidelity="images")
    assert "fidelity is " in refusal(out, replace(config, networks=networks))


def test_other_images_make_another_run_wherever_they_are(out, tmp_path):
    def config(name, classes):
        data = pictures.folder(tmp_path / name / "pictures", classes=classes)
        return replace(CONFIG, networks=NetworkOptions(data=data))

    RunStore.open(out, config("here", ("cat", "dog"))).close()
    RunStore.open(out, config("elsewhere", ("cat", "dog"))).close()
    assert "(data has different content)" in refusal(out, config("new", ("cat", "owl")))


def test_several_differences_are_all_named(store):
    message = refusal(store.out, replace(CONFIG, seed=8, acq="pi"))
    assert "(acq is 'ei' there, 'pi' here, seed is 7 there, 8 here)" in message


def test_the_way_a_table_is_spelled_does_not_matter(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunStore.open(out, replace(CONFIG, table=Path("t.parquet"))).close()
    for spelling in (tmp_path / "t.parquet", Path("run/../t.parquet")):
        RunStore.open(out, replace(CONFIG, table=spelling)).close()


@pytest.mark.parametrize("setting", ["table", "score_weights", "latency_table"])
def test_a_run_moves_with_its_files_and_notices_another_content(out, tmp_path, setting):
    def config(folder, content):
        file = tmp_path / folder / "t.json"
        file.parent.mkdir()
        file.write_text(content)
        return replace(CONFIG, **{setting: str(file) if "latency" in setting else file})

    RunStore.open(out, config("here", "1")).close()
    RunStore.open(out, config("elsewhere", "1")).close()
    assert f"({setting} has different content)" in refusal(out, config("new", "2"))


def test_other_files_are_named_in_the_order_of_their_settings(out, tmp_path):
    files = [tmp_path / name for name in ("t.parquet", "W.safetensors", "latency.json")]
    settings = {"table": files[0], "score_weights": files[1], "latency_table": str(files[2])}
    for file in files:
        file.write_text("1")
    RunStore.open(out, replace(CONFIG, **settings)).close()
    for file in files:
        file.write_text("of another size")
    changes = ", ".join(f"{setting} has different content" for setting in settings)
    assert f"({changes})" in refusal(out, replace(CONFIG, **settings))


def test_a_file_is_read_again_only_where_it_has_changed(tmp_path, monkeypatch):
    """A table may be large, and whoever shows many runs asks for the hash of each all the time."""
    read, table = Path.read_bytes, tmp_path / "t.parquet"
    table.write_text("1")
    config, files = replace(CONFIG, table=table), []
    first = config.hash()
    monkeypatch.setattr(Path, "read_bytes", lambda path: files.append(path) or read(path))
    assert (config.hash(), files) == (first, [])
    table.write_text("2")
    os.utime(table, ns=(1, 1))  # as large as before
    assert (config.hash() == first, files) == (False, [table])


def test_the_way_a_latency_table_is_spelled_does_not_matter(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunStore.open(out, replace(CONFIG, latency_table="t.json:160")).close()
    for spelling in (f"{tmp_path / 't.json'}:160", "run/../t.json:160"):
        RunStore.open(out, replace(CONFIG, latency_table=spelling)).close()
    assert "latency_table is " in refusal(out, replace(CONFIG, latency_table="t.json:224"))


def test_constraints_are_kept_as_they_were_typed(out):
    config = replace(CONFIG, constraint=("macs<=300e6", "params >= 5e6"))
    RunStore.open(out, config).close()
    record = json.loads((out / "config.json").read_text())
    assert record["config"]["constraint"] == ["macs<=300e6", "params >= 5e6"]
    RunStore.open(out, config).close()


def test_asking_whether_it_is_the_same_run_makes_nothing(out):
    check_same_run(out, CONFIG)
    assert not out.exists()


def test_an_empty_directory_is_free(out):
    out.mkdir()
    RunStore.open(out, CONFIG).close()
    assert (out / "config.json").exists()


def test_a_directory_with_something_else_in_it_is_left_alone(out):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert refusal(out) == f"{out} holds other files: choose another --out"
    assert (out / "thesis.txt").read_text() == "years of work"


def test_the_folder_that_one_is_in_is_not_to_be_removed(out, monkeypatch):
    out.mkdir()
    (out / "config.json").write_text('{"model": "of another program"}')
    monkeypatch.chdir(out)
    assert refusal(Path()) == ".: config.json is damaged: restore it, or choose another --out"
    (out / "config.json").rename(out / "thesis.txt")
    assert refusal(Path()) == ". holds other files: choose another --out"


def test_a_file_is_not_a_directory(out):
    out.write_text("years of work")
    assert refusal(out) == f"{out} is not a folder: choose another --out"
    assert out.read_text() == "years of work"


@pytest.mark.parametrize("target", ["nowhere", "run"])
def test_a_link_that_leads_nowhere_or_to_itself(tmp_path, target):
    out = tmp_path / "run"
    out.symlink_to(target)
    assert refusal(out) == f"{out} is a link to nothing: choose another --out"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not JSON",
        '{"schema": 1, "conf',
        "[]",
        "null",
        "{}",
        '{"schema": 1}',
        '{"schema": 1, "config": 3, "hash": "a"}',
        pytest.param("[" * 100_000, id="deep"),
        "caf\udce9",
    ],
)
def test_a_damaged_configuration_is_named(out, text):
    out.mkdir()
    (out / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(out)
    assert message == f"{out}: config.json is damaged: restore it, or choose another --out"


def test_a_configuration_that_only_the_hash_tells_apart(out):
    out.mkdir()
    (out / "config.json").write_text(_config_text(hash="0" * 64))
    assert "its hash differs" in refusal(out)


def test_a_table_is_not_overwritten_from_less_of_its_journal(store):
    store.compact()
    store.close()
    before = contents(store.out)
    journal = store.out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for broken, left in (
        (lambda: journal.write_bytes(b"".join(lines[:-1])), 3),
        (lambda: journal.write_bytes(b""), 0),
        (journal.unlink, 0),
    ):
        broken()
        with pytest.raises(UserError) as error:
            RunStore.open(store.out, CONFIG)
        assert str(error.value) == (
            f"the journal of {store.out} is incomplete, with {left} of the 4 trials in "
            f"trials.parquet: restore it, remove {store.out}, or choose another --out"
        )
        assert (
            contents(store.out).items()
            >= {
                name: content for name, content in before.items() if name != "journal.jsonl"
            }.items()
        )


def test_a_table_that_cannot_be_read_is_made_again(store):
    store.compact()
    store.close()
    before = contents(store.out)
    (store.out / "trials.parquet").write_bytes(b"PAR1")
    with closing(RunStore.open(store.out, CONFIG)) as again:
        again.compact()
    assert contents(store.out)["trials.parquet"] == before["trials.parquet"]


def test_a_budget_that_has_been_spent_does_not_shrink(store):
    """The report would say 4 of 3; without more trials than that it may."""
    store = reopen(store, replace(CONFIG, budget=4))
    with pytest.raises(UserError, match="has 4 evaluations, more than --budget 3"):
        reopen(store, replace(CONFIG, budget=3))
    assert json.loads((store.out / "config.json").read_text())["config"]["budget"] == 4


def test_a_setting_that_this_version_does_not_know_makes_another_run(store):
    store.close()
    path = store.out / "config.json"
    record = json.loads(path.read_text())
    record["config"]["colour"] = "red"
    path.write_text(json.dumps(record))
    assert "colour is 'red' there, None here" in refusal(store.out)


def test_a_run_of_another_format_is_refused(out):
    out.mkdir()
    (out / "config.json").write_text(_config_text(schema=SCHEMA + 1))
    assert f"has schema {SCHEMA + 1}, this version reads {SCHEMA}" in refusal(out)


def test_a_configuration_to_look_at_says_what_every_run_says(out):
    out.mkdir()
    (out / "config.json").write_text(_config_text(config={"space": "toy", "budget": 3}))
    with pytest.raises(UserError, match=r"config\.json lacks acq, batch_size, "):
        RunStore.read(out)


# Two at once


def test_a_run_in_use_is_refused_and_free_again_afterwards(store):
    """A lock belongs to an open file: a second one in this process is like another process."""
    before = state(store)
    assert refusal(store.out) == f"{store.out} is in use by another process"
    again = reopen(store)
    assert state(again) == before
    again.close()


def test_a_process_that_was_killed_holds_no_lock(store):
    store.close()
    code = (
        "import fcntl, sys\n"
        f"journal = open({str(store.out / 'journal.jsonl')!r}, 'a')\n"
        "fcntl.flock(journal, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == b"locked\n"
        assert "is in use by another process" in refusal(store.out)
        holder.kill()
    RunStore.open(store.out, CONFIG).close()


def test_reading_does_not_need_the_lock(store):
    """Only writers exclude each other."""
    with (store.out / "journal.jsonl").open() as journal:
        with pytest.raises(BlockingIOError):
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(journal.readlines()) == 6


# Where nothing can be written


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file" / "run")
    assert message == f"cannot write to {tmp_path / 'file' / 'run'}: Not a directory"


@pytest.fixture
def unprivileged():
    """Root may write everywhere: be somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def folder():
    """A folder that everybody can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def test_a_read_only_directory_cannot_be_written(folder, request):
    folder.chmod(0o555)
    request.getfixturevalue("unprivileged")
    assert refusal(folder / "run") == f"cannot write to {folder / 'run'}: Permission denied"


def test_a_directory_that_may_no_longer_be_written(folder, request):
    store = RunStore.open(folder / "run", CONFIG)
    store.propose(suggestion(*INITIAL))
    store.record(success(0, 0.5))
    (folder / "run").chmod(0o555)
    request.getfixturevalue("unprivileged")
    with pytest.raises(UserError) as error:
        store.compact()
    assert str(error.value) == (
        f"cannot write to {folder / 'run'}: Permission denied; 1 trial is saved; "
        "fix this and repeat the command"
    )
    store.close()


def test_a_closed_directory_cannot_be_written(folder, request):
    folder.chmod(0)
    request.getfixturevalue("unprivileged")
    with pytest.raises(UserError, match="Permission denied"):
        RunStore.open(folder / "run", CONFIG)


def test_a_name_that_is_too_long_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        RunStore.open(tmp_path / ("x" * 300), CONFIG)


def test_a_configuration_that_cannot_be_read(out):
    (out / "config.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json"):
        RunStore.open(out, CONFIG)


def test_a_driver_too_old_for_pytorch_is_no_obstacle(monkeypatch):
    """NVIDIA's library counts the GPU, but PyTorch cannot use it."""

    def refuse(device):
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_name", refuse)
    assert provenance(["python"])["machine"].endswith(("CPU", "CPUs"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100")
    assert provenance(["python"])["machine"].endswith(", NVIDIA H100")
