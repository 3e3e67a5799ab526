"""`python -m orchestrator.run_bo --out s3://...`, on the toy space and a server on loopback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from report_page import undrawn
from s3 import s3_bucket

from nag.cli import run
from orchestrator import report
from orchestrator.history.run import read_run
from orchestrator.run_bo import app
from orchestrator.storage import lease
from orchestrator.storage.location import locate

ROOT = Path(__file__).parent.parent
COMMAND = ("--space=toy", "--score=exact", "--executor=local", "--n-init=4", "--pool-size=10")


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as uri:
        yield uri


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lease, "_SETTLING", 0.05)


def arguments(uri, *more, budget=8):
    return [*COMMAND, "--steps=5", "--budget", str(budget), "--out", uri, *more]


def outcome(capsys, command, argv):
    """Exit code, stdout and stderr of a command run in this process; reports are not looked at."""
    with undrawn(), pytest.raises(SystemExit) as exit_:
        run(command, argv)
    return exit_.value.code, *capsys.readouterr()


def found(uri):
    run = read_run(locate(uri))
    return list(zip(run.archs, run.columns["value"], strict=True))


def test_a_run_on_s3_finds_what_one_in_a_folder_finds(bucket, tmp_path, capsys):
    uri = bucket.format("one")
    code, said, err = outcome(capsys, app, arguments(uri))
    assert (code, err) == (0, "")
    assert "trials: s3://runs/one/trials.parquet\nreport: s3://runs/one/report.html\n" in said
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []
    assert outcome(capsys, app, arguments(str(tmp_path / "run")))[0] == 0
    assert found(uri) == found(str(tmp_path / "run"))
    assert len(found(uri)) == 8


def test_it_goes_on_is_an_earlier_run_and_is_compared(bucket, tmp_path, capsys):
    uri = bucket.format("two")
    assert outcome(capsys, app, arguments(uri, budget=5))[0] == 0
    code, said, _ = outcome(capsys, app, arguments(uri))
    assert (code, "continuing s3://runs/two: 5 trials are finished" in said) == (0, True)
    whole = bucket.format("whole")
    assert outcome(capsys, app, arguments(whole))[0] == 0
    assert found(uri) == found(whole)
    code, said, _ = outcome(capsys, app, arguments("other", "--prior", uri))
    assert (code, "prior toy (8 trials" in said) == (0, True)
    code, _, err = outcome(capsys, app, arguments(uri, "--prior", uri))
    assert (code, err) == (2, "error: --prior s3://runs/two is the run itself\n")
    argv = [uri, "other", "--out", "report"]
    code, said, err = outcome(capsys, report.app, argv)
    assert (code, err) == (0, "")
    assert said.startswith("2 runs, 2 finished")
    assert "s3://runs/two" in Path("report/manifest.json").read_text()
    assert "secret" not in Path("report/manifest.json").read_text()


KILLED_AT_ITS_THIRD_SAVE = """
import os, signal, sys
from nag.cli import run
from orchestrator.run_bo import app
from orchestrator.storage.segment_journal import SegmentJournal

save, saves = SegmentJournal._save, []

def save_or_die(journal):
    saves.extend(() if journal.saved else (1,))
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(journal)

SegmentJournal._save = save_or_die
run(app, sys.argv[1:])
"""


def test_a_driver_that_was_killed_blocks_until_its_lease_ends(bucket, capsys):
    uri = bucket.format("killed")
    driver = subprocess.Popen(
        [sys.executable, "-c", KILLED_AT_ITS_THIRD_SAVE, *arguments(uri, budget=14)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    assert driver.wait() == -signal.SIGKILL
    code, _, err = outcome(capsys, app, arguments(uri, budget=14))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: s3://runs/killed is in use by process {driver.pid} on ")
    (file,) = (locate(uri) / "lock").iterdir()
    record = json.loads(file.read_bytes())
    file.write(json.dumps(record | {"expires": 0}).encode())  # a minute later
    assert outcome(capsys, app, arguments(uri, budget=14))[0] == 0
    whole = bucket.format("undisturbed")
    assert outcome(capsys, app, arguments(whole, budget=14))[0] == 0
    assert found(uri) == found(whole)


def test_a_store_that_goes_away_ends_the_run_with_one_line(capsys):
    """The next command, with the server back, would continue: see test_journal."""
    with s3_bucket() as bucket:
        uri = bucket.format("gone")
        assert outcome(capsys, app, arguments(uri, budget=5))[0] == 0
    code, _, err = outcome(capsys, app, arguments(uri))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: cannot read s3://runs/gone/config.json: ")


def test_a_place_that_is_none(capsys):
    code, out, err = outcome(capsys, app, arguments("nowhere://a/b"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "nowhere://a/b" in err
