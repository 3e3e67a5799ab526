"""The report of a run that goes on reloads itself, and no other."""

import errno

import pytest

from nag.cli import run
from nag.errors import UserError
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.history.trials import Outcome
from orchestrator.reporting import live_report as module
from orchestrator.reporting.live_report import live_report
from orchestrator.reporting.run_report import write_report
from orchestrator.run_bo import app
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore

REFRESH = '<meta http-equiv="refresh"'
OUTCOMES = (Outcome(0, "ok", 0.5, seconds=1.0), Outcome(1, "failed", error="Error: no"))


@pytest.fixture
def store(tmp_path):
    """A run in which one of three initial trials has succeeded and one has failed."""
    store = RunStore.open(tmp_path / "run", RunConfig(space="toy", score="exact"))
    archs = tuple(TOY.from_str(text) for text in ("aa/aa", "ab/c-", "c-/bb"))
    store.propose(Suggestion(archs, "initial", (None,) * 3))
    for outcome in OUTCOMES:
        store.record(outcome)
    yield store
    store.close()


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(module, "_AFTER", 0.0)
    monkeypatch.setattr(module, "_SHARE", 1e9)


def page(store):
    path = store.out / "report.html"
    return path.read_text(encoding="utf-8") if path.exists() else None


def test_only_a_live_page_reloads_itself(store):
    write_report(store, live=True)
    live = page(store)
    assert live.count(REFRESH) == 1
    assert live.index(REFRESH) < live.index("</head>")
    assert "The run is in progress" in live
    write_report(store)
    assert REFRESH not in page(store)
    assert "The run is in progress" not in page(store)


def test_the_page_follows_the_run(store, at_once):
    with live_report(store) as report:
        report.finished(store, OUTCOMES[1])
        before = page(store)
        store.record(Outcome(2, "ok", 0.8125))
        report.finished(store, OUTCOMES[1])
    assert REFRESH in before
    assert "81.250" not in before
    assert "81.250" in page(store)


def test_a_short_run_is_not_held_up(store):
    with live_report(store) as report:
        report.finished(store, OUTCOMES[1])
    assert page(store) is None


def test_a_page_whose_run_was_broken_off_is_at_rest(store, at_once):
    def broken_off():
        with live_report(store) as report:
            report.finished(store, OUTCOMES[1])
            assert REFRESH in page(store)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert REFRESH not in page(store)


def test_what_ends_a_run_is_said_where_the_page_cannot_be_written_either(
    store, at_once, monkeypatch
):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken_off():
        with live_report(store) as report:
            report.finished(store, OUTCOMES[1])
            monkeypatch.setattr("orchestrator.reporting.run_report.write_whole", no_space)
            raise UserError("2 trials are saved; free some space and repeat the command")

    with pytest.raises(UserError, match="2 trials are saved"):
        broken_off()
    assert "50.000" in page(store)


def test_the_command_leaves_a_page_at_rest(tmp_path, at_once, monkeypatch):
    written = []

    def spy(store, live=False):
        written.append(live)
        return write_report(store, live)

    monkeypatch.setattr("orchestrator.reporting.run_report.write_report", spy)
    settings = "--space toy --score exact --strategy random --budget 6 --n-init 4 --executor local"
    with pytest.raises(SystemExit) as exit_:
        run(app, [*settings.split(), "--out", str(tmp_path / "run")])
    assert exit_.value.code == 0
    assert written == [True] * 6 + [False]
    assert REFRESH not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
