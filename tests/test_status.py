"""How a run is going, as seen by a process that does not drive it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from nag.cli import run
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.history.trials import Outcome
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore
from orchestrator.status import app, display, duration, finished

CONFIG = RunConfig(space="toy", score="exact", budget=12, n_init=3, batch_size=2, seed=7)
ERROR = "EvaluationError: does not fit"


@pytest.fixture
def clock(monkeypatch):
    """The time of day that is journalled; set by hand."""
    at = [10_000.0]
    monkeypatch.setattr("time.time", lambda: at[0])
    return at


def batch(*archs, strategy="guided"):
    predicted = ((0.5, 0.1),) * len(archs)
    return Suggestion(tuple(map(TOY.from_str, archs)), strategy, predicted, {"fit": 1.5})


@pytest.fixture
def store(tmp_path, clock):
    """A run that goes on: one of five trials failed, the last is running. 30 s between outcomes."""
    store = RunStore.open(tmp_path / "run", CONFIG)
    store.propose(batch("aa/aa", "ab/c-", "c-/bb", strategy="initial"))
    clock[0] += 30
    store.record(Outcome(0, "ok", 0.5, seconds=2.0))
    clock[0] += 30
    store.record(Outcome(1, "failed", error=ERROR, seconds=1.0))
    clock[0] += 30
    store.record(Outcome(2, "ok", 0.25, seconds=2.0))
    store.propose(batch("ca/bc", "ba/bc"))
    clock[0] += 30
    store.record(Outcome(3, "ok", 0.875, seconds=2.0))
    yield store
    store.close()


def shown(out, now, width=160):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(display(RunStore.read(out), now))
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_what_is_shown(store, clock):
    lines = shown(store.out, clock[0])
    assert lines[0] == f"run {store.out}"
    assert "search toy, toy, gp, guided, ei, seed 7" in lines
    assert "progress 4 of 12 evaluations, 1 failed" in lines
    assert "best 87.500 %, trial 3 (guided), 0 s ago" in lines
    assert "ca/bc" in lines
    assert "rate 2 evaluations a minute, 4 min left at this rate" in lines
    assert "pending 1, proposed: trial 4, 30 s ago" in lines
    assert "seconds fit 3.0, propose 0.0, select 0.0, evaluate 7.0" in lines
    assert "last event 0 s ago" in lines
    rows = [line for line in lines if line.startswith("│")]
    assert rows == [
        "│ 0 │ initial │ 50.000 │ 50.000 │ 2.0 │ 1 min ago │ │",
        f"│ 1 │ initial │ – │ 50.000 │ 1.0 │ 1 min ago │ {ERROR} │",
        "│ 2 │ initial │ 25.000 │ 50.000 │ 2.0 │ 30 s ago │ │",
        "│ 3 │ guided │ 87.500 │ 50.000 │ 2.0 │ 0 s ago │ │",
    ]


def test_a_target_is_shown(tmp_path, clock):
    config = replace(CONFIG, guidance_form="target", target=70.0, acq="target")
    RunStore.open(tmp_path / "aimed", config).close()
    lines = shown(tmp_path / "aimed", clock[0])
    assert "search toy, toy, gp, guided, target 70 %, seed 7" in lines


def test_values_of_less_than_a_whole_training_say_so(store, clock):
    brief = replace(batch("cb/bc", strategy="bohb"), epochs=12)
    store.propose(brief)
    store.record(Outcome(4, "ok", 0.75, stopped=3))
    store.record(Outcome(5, "ok", 0.75))
    rows = [line for line in shown(store.out, clock[0]) if line.startswith("│")]
    assert rows[-2].startswith("│ 4 │ guided │ 75.000 after epoch 3 │")
    assert rows[-1].startswith("│ 5 │ bohb │ 75.000 after 12/200 of a training │")


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.24e-05, "0.0"), (0.26, "0.3"), (43_210.98, "43211.0")]
)
def test_seconds_are_shown_without_exponents(store, clock, seconds, text):
    store.record(Outcome(4, "ok", 0.75, seconds=seconds))
    last = [line for line in shown(store.out, clock[0]) if line.startswith("│")][-1]
    assert last == f"│ 4 │ guided │ 75.000 │ 50.000 │ {text} │ 0 s ago │ │"


def test_a_run_that_stands_still(store, clock):
    """Its rate falls, and the time since its last event grows."""
    lines = shown(store.out, clock[0] + 3600)
    assert "last event 1 h 0 min ago" in lines
    assert "rate 0.0488 evaluations a minute, 2 h 44 min left at this rate" in lines


def test_a_run_that_nobody_drives(store, clock):
    store.close()
    assert "rate 0, as no process drives the run: repeat its command to continue" in shown(
        store.out, clock[0]
    )


def test_a_run_that_has_ended(store, clock):
    """It has neither a rate nor anything pending."""
    store.record(Outcome(4, "ok", 0.5))
    archs = ("ab/bc", "bb/bc", "cb/bc", "a-/bc", "b-/bc", "c-/bc", "a-/a-")
    for i, arch in enumerate(archs):
        store.propose(batch(arch))
        store.record(Outcome(5 + i, "ok", 0.5))
    assert finished(RunStore.read(store.out))
    names = {line.split(" ")[0] for line in shown(store.out, clock[0])}
    assert "best" in names
    assert not names & {"rate", "pending"}


def test_a_run_whose_space_is_exhausted_has_ended(store, clock):
    store.exhaust()
    assert not finished(RunStore.read(store.out)), "trial 4 is pending"
    store.record(Outcome(4, "ok", 0.5))
    assert finished(RunStore.read(store.out))
    lines = shown(store.out, clock[0])
    assert "the space is exhausted" in lines
    assert not [line for line in lines if line.startswith("rate")]


def test_a_run_whose_patience_is_exhausted_has_ended(store, clock):
    store.record(Outcome(4, "ok", 0.5))
    store.lose_patience(2)
    assert finished(RunStore.read(store.out))
    lines = shown(store.out, clock[0])
    assert "ended after 2 evaluations without a better one" in lines
    assert not [line for line in lines if line.startswith("rate")]
    store.propose(batch("ab/bc"))  # the command was repeated with more patience
    assert not finished(RunStore.read(store.out))
    assert "ended after" not in "".join(shown(store.out, clock[0]))


def test_a_run_that_has_only_begun(tmp_path, clock):
    store = RunStore.open(tmp_path / "run", CONFIG)
    assert "progress 0 of 12 evaluations, 0 failed" in shown(store.out, clock[0])
    store.propose(batch("aa/aa"))
    assert "pending 1, proposed: trial 0, 0 s ago" in shown(store.out, clock[0])
    store.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        run(app, [str(argument) for argument in arguments])
    return exit_.value.code, *capsys.readouterr()


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    code, out, err = command(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: no run in {tmp_path}: give the --out of a run\n"


def test_in_a_pipe_no_line_is_broken(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    _, out, _ = command(capsys, store.out)
    assert "best        87.500 %, trial 3 (guided), 0 s ago" in out
    assert ERROR in out


def test_a_damaged_run_is_one_line(store, capsys):
    with (store.out / "journal.jsonl").open("a") as journal:
        journal.write("garbage\n{}\n")
    code, out, err = command(capsys, store.out, "--watch")
    assert (code, out) == (2, "")
    where = f"{store.out / 'journal.jsonl'}, line 7"
    assert (
        err
        == f"error: {where} is damaged: restore it, remove {store.out}, or choose another --out\n"
    )


def test_watching_a_run_that_is_being_written(store, tmp_path, monkeypatch, capsys):
    """Every 100 bytes of its journal, lines torn anywhere; the watcher ends when the run does."""
    for i, arch in enumerate(("ab/bc", "bb/bc", "cb/bc", "a-/bc", "b-/bc", "c-/bc", "a-/a-")):
        store.propose(batch(arch))
        store.record(Outcome(4 + i, "ok", 0.625))
    store.record(Outcome(11, "ok", 0.9375))
    whole = (store.out / "journal.jsonl").read_bytes()
    out = tmp_path / "watched"
    out.mkdir()
    (out / "config.json").write_bytes((store.out / "config.json").read_bytes())
    (out / "journal.jsonl").touch()
    chunks = [whole[i : i + 100] for i in range(0, len(whole), 100)]

    def driver(seconds):
        assert seconds >= 1
        with (out / "journal.jsonl").open("ab") as journal:
            journal.write(chunks.pop(0))

    monkeypatch.setattr("orchestrator.status.time.sleep", driver)
    code, stdout, stderr = command(capsys, out, "--watch")
    assert (code, stderr, chunks) == (0, "", [])
    assert "12 of 12 evaluations, 1 failed" in stdout
    assert "93.750 %" in stdout
    assert (out / "journal.jsonl").read_bytes() == whole
    assert {path.name for path in out.iterdir()} == {"config.json", "journal.jsonl"}
