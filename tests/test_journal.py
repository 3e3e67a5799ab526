"""The store of a run wherever it is: what was saved comes back, one driver at a time writes."""

import errno
import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier, Lock
from types import SimpleNamespace

import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs
from s3 import s3_bucket

from nag.errors import UserError
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.history.earlier import read_earlier_run
from orchestrator.history.find import find_runs
from orchestrator.history.record import DamagedRunError
from orchestrator.history.run import read_run
from orchestrator.history.trials import Outcome
from orchestrator.reporting.run_report import write_report
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.record import check_same_run
from orchestrator.search.store import RunStore
from orchestrator.storage import lease as leases
from orchestrator.storage import segment_journal
from orchestrator.storage.lease import InUseError
from orchestrator.storage.location import URI, locate, without_secrets
from orchestrator.storage.segment_journal import Segment, live

CONFIG = RunConfig(space="toy", score="exact", budget=20, n_init=3, batch_size=2, seed=7)
ARCHS = TOY.sample(500, np.random.default_rng(0))
_numbers = count()


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as uri:
        yield uri


def _by_hand(monkeypatch):
    """No test waits long for a lease to settle, and none is renewed in the middle of a test."""
    monkeypatch.setattr(leases, "_SETTLING", 0.05)
    monkeypatch.setattr(leases, "_RENEWALS", leases.DURATION / 3600)


@pytest.fixture(params=["folder", "memory", "subtree", "s3"])
def out(request, tmp_path, monkeypatch):
    """Where a run can be.

    memory: fsspec's, which can create a file if there is none, as S3 through s3fs can.
    subtree: pyarrow's local one in a folder: cannot, and a file can be seen half written. A
        stand-in for HDFS.
    s3: S3 by pyarrow, a server on loopback.
    """
    _by_hand(monkeypatch)
    if request.param == "s3":
        return locate(request.getfixturevalue("bucket").format(f"{next(_numbers)}/run"))
    return _place(request.param, tmp_path)


@pytest.fixture(params=["memory", "subtree", "s3"])
def remote(request, tmp_path, monkeypatch):
    _by_hand(monkeypatch)
    if request.param == "s3":
        return locate(request.getfixturevalue("bucket").format(f"{next(_numbers)}/run"))
    return _place(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path):
    return _place("memory", tmp_path)


def _place(kind, tmp_path):
    if kind == "folder":
        return tmp_path / "run"
    if kind == "memory":
        return locate(f"memory://runs/{next(_numbers)}/run")
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return URI(filesystem, "subtree://a/run", "a/run", "subtree://a/run")


def open_(out):
    return RunStore.open(out, CONFIG)


def go_on(store, rounds, seconds=1.0):
    """Rounds of one trial whose value is its number; a write for each half of a round."""
    for _ in range(rounds):
        number = len(store.trials)
        arch = ARCHS[number % len(ARCHS)]
        store.propose(Suggestion((arch,), "random", (None,), {"propose": seconds}))
        store.record(Outcome(number, "ok", number / 1e4, {"test": 0.5}, seconds))


def state(store):
    return list(store.trials), dict(store.outcomes), list(store.rounds)


def steal(out, monkeypatch):
    """Open a run whose driver has not been heard of for long."""
    now = time.time
    monkeypatch.setattr(leases.time, "time", lambda: now() + leases.DURATION + 1)
    try:
        return open_(out)
    finally:
        monkeypatch.setattr(leases.time, "time", now)


def refusal(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


# Everywhere


def test_what_was_saved_comes_back(out):
    store = open_(out)
    assert state(store) == ([], {}, [])
    go_on(store, 5)
    store.propose(Suggestion(tuple(ARCHS[5:7]), "guided", ((0.5, 0.25), None), {"fit": 1.0}))
    before = state(store)
    store.close()
    again = open_(out)
    assert state(again) == before
    assert [trial.trial for trial in again.pending()] == [5, 6]
    go_on(again, 2)
    before = state(again)
    again.close()
    last = open_(out)
    assert state(last) == before
    last.close()


def test_a_long_run_comes_back(out):
    """Segments are merged, also those that an earlier process has left."""
    store = open_(out)
    go_on(store, 20)
    before = state(store)
    store.close()
    again = open_(out)
    assert state(again) == before
    go_on(again, 20)
    before = state(again)
    again.close()
    last = open_(out)
    assert state(last) == before
    last.close()


def test_another_configuration_is_refused(out):
    open_(out).close()
    assert "holds a run of another configuration" in refusal(
        check_same_run, out, RunConfig(space="toy", score="exact", seed=8)
    )


def test_a_place_with_something_else_is_left_alone(out):
    if isinstance(out, URI):
        out.mkdir()
        (out / "thesis.txt").write(b"years of work")
    else:
        out.mkdir()
        (out / "thesis.txt").write_bytes(b"years of work")
    assert refusal(open_, out) == f"{out} holds other files: choose another --out"


def test_two_drivers_are_refused_with_one_line(out):
    store = open_(out)
    with pytest.raises(InUseError, match="is in use by") as error:
        open_(out)
    if isinstance(out, URI):
        assert f"by process {os.getpid()} on {os.uname().nodename}: unless " in str(error.value)
        (seconds,) = re.findall(r"its lease ends in (\d+) s, at ", str(error.value))
        assert 0 < int(seconds) <= 60
    assert "--prior needs a run that no longer changes" in refusal(read_earlier_run, out)
    go_on(store, 2)
    store.close()
    assert len(read_earlier_run(out).values) == 2
    open_(out).close()


def test_of_many_that_start_together_one_has_the_run(remote, monkeypatch):
    mutex, together, asked = Lock(), Barrier(6), count()
    pipe, exists = MemoryFileSystem.pipe_file, URI.exists

    def pipe_one_by_one(*args, **options):
        """A server creates a file for one of two; fsspec's memory is none, and needs help."""
        together.wait(300)
        with mutex:
            pipe(*args, **options)

    def exists_yet(uri):
        """All six learn that there is no lease before one makes it."""
        found = exists(uri)
        if uri.parent.name == "lock" and next(asked) < 6 and "memory" not in str(uri):
            together.wait(300)
        return found

    def settle(seconds):
        """Long enough for all six to have written."""
        together.wait(300)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_one_by_one)
    monkeypatch.setattr(URI, "exists", exists_yet)
    monkeypatch.setattr(leases, "time", SimpleNamespace(**vars(time) | {"sleep": settle}))

    def attempt(_):
        try:
            return open_(remote)
        except InUseError:
            return None

    with ThreadPoolExecutor(6) as pool:
        stores = [store for store in pool.map(attempt, range(6)) if store]
    assert len(stores) == 1
    go_on(stores[0], 1)
    stores[0].close()


def test_readers_read_it_anywhere_and_while_it_goes_on(out):
    store = open_(out)
    go_on(store, 20)
    run = read_run(out)
    assert run.columns["value"].tolist() == [i / 1e4 for i in range(20)]
    assert [source.path for source in find_runs([out.parent])] == [out]
    store.close()


def test_a_run_in_its_first_evaluation_can_be_read(out):
    store = open_(out)
    store.propose(Suggestion(tuple(ARCHS[:2]), "initial", (None,) * 2))
    assert RunStore.read(out).num_finished == 0
    store.close()
    assert len(RunStore.read(out).pending()) == 2


def test_the_table_and_the_report_are_whole(out):
    store = open_(out)
    go_on(store, 3)
    store.compact()
    page = write_report(store)
    store.close()
    assert page.read_bytes().rstrip().endswith(b"</html>")
    assert (out / "trials.parquet").read_bytes().startswith(b"PAR1")
    names = {file.name for file in out.iterdir()}
    journal = {"journal", "lock"} if isinstance(out, URI) else {"journal.jsonl"}
    assert names == {"config.json", "trials.parquet", "report.html"} | journal


def test_only_what_is_worth_it_is_written_at_once(remote):
    """Ten outcomes of 5 ms are not ten writes; what is not written yet is not counted as saved."""
    store = open_(remote)
    store.propose(Suggestion(tuple(ARCHS[:10]), "random", (None,) * 10, {"propose": 1.0}))
    assert len(list((remote / "journal").iterdir())) == 1
    for i in range(10):
        store.record(Outcome(i, "ok", 0.5, {}, 0.005))
    assert len(list((remote / "journal").iterdir())) == 1
    before = state(store)
    store.close()
    again = open_(remote)
    assert state(again) == before
    again.close()


def test_a_torn_last_line_is_dropped_and_damage_before_it_is_not(remote):
    """No object store tears a write; HDFS may."""
    store = open_(remote)
    go_on(store, 2)
    store.close()
    *_, before_last, last = (remote / "journal").iterdir()
    whole = last.read_bytes()
    last.write(whole[:-5])
    assert read_run(remote).num_finished == 1
    again = open_(remote)
    assert again.num_finished == 1
    again.record(Outcome(1, "ok", 0.25, {}, 1.0))
    before = state(again)
    again.close()
    last_time = open_(remote)
    assert state(last_time) == before
    last_time.close()
    before_last.write(before_last.read_bytes()[:-5])
    assert f"{before_last}, line 1 is damaged" in refusal(open_, remote)


def test_a_segment_that_is_missing_is_named(remote, monkeypatch):
    monkeypatch.setattr(segment_journal, "_ATTEMPTS", 2)
    store = open_(remote)
    go_on(store, 3)
    store.close()
    first, second, third, *_ = (remote / "journal").iterdir()
    second.unlink()
    assert refusal(open_, remote).endswith(
        f"is damaged: the segment before {third.name} is missing"
    )
    with pytest.raises(DamagedRunError, match=f"the segment before {third.name} is missing"):
        read_run(remote)
    first.unlink()
    assert f"the segment before {third.name}" in refusal(open_, remote)


def test_killed_between_a_merge_and_the_end_of_its_pieces(remote, monkeypatch):
    store = open_(remote)
    go_on(store, 15)
    kept = {file.name: file.read_bytes() for file in (remote / "journal").iterdir()}
    go_on(store, 1)  # merges
    assert len(list((remote / "journal").iterdir())) == 1
    for name, data in kept.items():
        ((remote / "journal") / name).write(data)
    before = state(store)
    store.close()
    again = open_(remote)
    assert state(again) == before
    go_on(again, 20)
    before = state(again)
    again.close()
    last = open_(remote)
    assert state(last) == before
    last.close()


def test_many_writes_leave_few_segments(memory):
    store = open_(memory)
    go_on(store, 1200)
    store.close()
    sizes = [segment.writes for segment in live(segment_journal._listed(memory / "journal"))]
    assert sum(sizes) == 2400
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes.count(size) for size in sizes) < 32
    assert set(sizes) <= {1, 32, 1024}


def test_a_merge_while_somebody_reads(memory, monkeypatch):
    """The list of segments is out of date before they are read: it is asked for again."""
    store = open_(memory)
    go_on(store, 15)
    read = segment_journal._in_parallel

    def late(function, files):
        monkeypatch.setattr(segment_journal, "_in_parallel", read)
        go_on(store, 1)  # merges
        return read(function, files)

    monkeypatch.setattr(segment_journal, "_in_parallel", late)
    run = read_run(memory)
    assert run.num_finished == 16
    store.close()


# Leases


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_stops(remote, monkeypatch):
    lost = open_(remote)
    go_on(lost, 2)
    store = steal(remote, monkeypatch)
    assert store.num_finished == 2
    go_on(store, 1)
    with pytest.raises(UserError, match="was taken over by process"):
        lost._journal._lease.renew()  # what the thread does every 15 s
    before = sorted(file.name for file in (remote / "journal").iterdir())
    assert "was taken over by process" in refusal(go_on, lost, 1)
    lost.close()
    assert sorted(file.name for file in (remote / "journal").iterdir()) == before
    go_on(store, 1)  # closing the other has not released this one
    with pytest.raises(InUseError):
        open_(remote)
    store.close()


def test_what_is_written_without_the_lease_is_ignored(remote, monkeypatch):
    """A holder that was asleep, and has not yet learnt that its lease is lost, may write."""
    asleep = open_(remote)
    go_on(asleep, 2)
    store = steal(remote, monkeypatch)
    go_on(asleep, 3)
    go_on(store, 1)
    before = state(store)
    store.close()
    assert read_run(remote).num_finished == 3
    again = open_(remote)
    assert state(again) == before
    again.close()


def test_after_a_silence_the_lease_is_asked_for_before_a_write(remote, monkeypatch):
    asleep = open_(remote)
    go_on(asleep, 1)
    steal(remote, monkeypatch).close()
    asleep._journal._lease._renewed -= leases.DURATION / 2 + 1
    before = sorted(file.name for file in (remote / "journal").iterdir())
    assert "was taken over" in refusal(go_on, asleep, 1)
    assert sorted(file.name for file in (remote / "journal").iterdir()) == before
    asleep.close()


def test_a_lease_is_renewed_in_the_background(remote, monkeypatch):
    monkeypatch.setattr(leases, "_RENEWALS", leases.DURATION / 0.02)
    store, file = open_(remote), remote / "lock" / "000001.json"
    first = json.loads(file.read_bytes() or b"{}").get("expires", 0)  # memory: half written
    deadline = time.monotonic() + 60
    while json.loads(file.read_bytes() or b"{}").get("expires", first) <= first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    store.close()
    assert json.loads(file.read_bytes())["expires"] == 0


@pytest.mark.parametrize("remote", ["subtree", "s3"], indirect=True)
def test_who_reads_a_lease_while_it_is_renewed_reads_all_of_it(remote):
    """pyarrow asks S3 for the size when a file is opened, and for the content later."""
    store, file = open_(remote), remote / "lock" / "000001.json"
    lease = store._journal._lease
    for change in (lease.renew, lease.renew, store.close):
        with file.filesystem.open_input_stream(file.path) as stream:
            change()
            assert json.loads(stream.read())["token"] == lease.token


def test_a_run_whose_leases_were_deleted_goes_on(remote):
    """A copy of a run without them, say: what is written next must not look outdated."""
    for _ in range(3):
        store = open_(remote)
        go_on(store, 1)
        store.close()
    for file in (remote / "lock").iterdir():
        file.unlink()
    store = open_(remote)
    go_on(store, 1)
    before = state(store)
    assert store.num_finished == 4
    store.close()
    again = open_(remote)
    assert state(again) == before
    again.close()


def test_nothing_is_merged_without_the_lease(remote, monkeypatch):
    asleep = open_(remote)
    go_on(asleep, 15)
    store = steal(remote, monkeypatch)
    assert "was taken over" in refusal(go_on, asleep, 1)  # the 32nd write
    asleep.close()
    before = state(store)
    store.close()
    again = open_(remote)
    assert state(again)[0][:15] == before[0]
    again.close()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0-0.1", "1-1.1", "2-2.1"], ["0-0.1", "1-1.1", "2-2.1"]),
        (["0-0.1", "1-1.1", "0-1.1"], ["0-1.1"]),  # merged
        (["0-1.1", "2-3.1", "0-3.1", "4-4.2"], ["0-3.1", "4-4.2"]),
        (["0-0.1", "1-1.1", "1-1.2"], ["0-0.1", "1-1.2"]),  # the same number, without right
        (["0-0.1", "1-1.2", "2-2.1"], ["0-0.1", "1-1.2"]),  # a later number
        (["0-0.1", "1-1.2", "2-2.1", "2-2.2"], ["0-0.1", "1-1.2", "2-2.2"]),
        (["0-0.1", "1-1.1", "0-1.1", "2-2.2"], ["0-1.1", "2-2.2"]),
    ],
)
def test_segments_that_count(names, expected):
    def full(text):
        numbers, _, lease = text.partition(".")
        first, last = map(int, numbers.split("-"))
        return Segment(first, last, f"{int(lease):06d}-00ff")

    for order in (names, names[::-1]):
        assert live(map(full, order)) == list(map(full, expected))


# When nothing can be written any more


class FullFileSystem(MemoryFileSystem):
    """Synthetic: a memory filesystem that is full after some writes."""

    protocol = "full"
    store, pseudo_dirs = {}, [""]
    left, error = 10**9, errno.ENOSPC

    def open(self, path, mode="rb", **options):
        if mode[0] in "wx" and "/lock/" not in path:
            if type(self).left == 0:
                raise OSError(self.error, os.strerror(self.error), path)
            type(self).left -= 1
        return super().open(path, mode, **options)


@pytest.fixture
def full():
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    yield FullFileSystem
    FullFileSystem.left, FullFileSystem.error = 10**9, errno.ENOSPC
    FullFileSystem.store.clear()


@pytest.mark.parametrize(
    ("error", "mend"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "fix this")],
)
def test_a_store_that_fails_says_what_is_saved_and_the_next_run_continues(full, error, mend):
    out = locate("full://run")
    store = open_(out)
    go_on(store, 3)
    saved = state(store)
    full.left, full.error = 1, error
    message = refusal(go_on, store, 1)
    assert message == (
        f"cannot write to full://run: {os.strerror(error)}; 3 trials are saved; "
        f"{mend} and repeat the command"
    )
    store.close()
    full.left = 10**9
    again = open_(out)
    assert again.num_finished == 3
    assert [trial.trial for trial in again.pending()] == [3]
    assert state(again)[0][:3] == saved[0]
    again.record(Outcome(3, "ok", 0.5))
    again.close()
    last = open_(out)
    assert last.num_finished == 4
    last.close()


class RudeFileSystem(FullFileSystem):
    """Synthetic: what goes wrong is no OSError, as with paramiko's SSHException."""

    protocol = "rude"
    store, pseudo_dirs = {}, [""]
    rude = False

    def open(self, path, mode="rb", **options):
        if self.rude:
            raise EOFError("the session was closed")
        return super().open(path, mode, **options)


def test_whatever_a_package_raises_is_one_line(monkeypatch):
    fsspec.register_implementation("rude", RudeFileSystem, clobber=True)
    out = locate("rude://run")
    store = open_(out)
    go_on(store, 3)
    names = {file.name for file in (out / "journal").iterdir()}
    assert not [name for name in names if name.endswith(".tmp")], "moved to where it belongs"
    monkeypatch.setattr(RudeFileSystem, "rude", True)
    assert refusal(go_on, store, 1) == (
        "cannot write to rude://run: EOFError: the session was closed; 3 trials are saved; "
        "fix this and repeat the command"
    )
    monkeypatch.undo()
    store.close()


@pytest.mark.parametrize("left", [0, 1])
def test_what_could_not_be_written_has_not_happened(full, left):
    out = locate("full://run")
    store = open_(out)
    go_on(store, 3)
    full.left = left
    refusal(go_on, store, 1)
    full.left = 10**9
    go_on(store, 20)
    before = state(store)
    store.close()
    again = open_(out)
    assert state(again) == before
    again.close()


def test_a_merge_that_fails_costs_nothing(full):
    out = locate("full://run")
    store = open_(out)
    go_on(store, 15)
    full.left = 2  # the proposal and the outcome, but not what they are merged into
    go_on(store, 1)
    full.left = 10**9
    go_on(store, 20)
    before = state(store)
    assert len(list((out / "journal").iterdir())) < 32
    store.close()
    again = open_(out)
    assert state(again) == before
    again.close()


def test_trials_that_wait_to_be_written_are_not_called_saved(full):
    store = open_(locate("full://run"))
    go_on(store, 2)
    full.left = 0
    go_on(store, 3, seconds=0.001)
    assert "; 2 trials are saved; " in refusal(store.compact)
    store.close()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a filesystem of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small filesystem needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_nothing_that_was_recorded(small_disk):
    """Whatever the line was that did not fit: a proposal or an outcome."""
    out = small_disk / "run"
    for more in (0, 1, 1):
        store = open_(out)
        fill = small_disk / "fill"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        fill.write_bytes(b"x" * (free - 4096))
        before = store.num_finished
        message = refusal(go_on, store, 1000)
        assert store.num_finished > before
        assert message == (
            f"cannot write to {out}: No space left on device; {store.num_finished} trials are "
            "saved; free some space and repeat the command"
        )
        assert "No space left on device" in refusal(store.compact)
        assert {file.name for file in out.iterdir()} == {"config.json", "journal.jsonl"}
        fill.unlink()
        go_on(store, more)  # what did not fit is not half there
        expected = state(store)
        store.close()
        again = open_(out)
        assert state(again) == expected
        for trial in again.pending():
            again.record(Outcome(trial.trial, "ok", 0.5))
        assert not again.pending()
        again.close()


def test_a_server_that_cannot_be_reached():
    uri = "s3://key:secret@b/run?scheme=http&endpoint_override=127.0.0.1%3A1&region=us-east-1"
    message = refusal(open_, locate(uri))
    assert message.startswith("cannot read s3://b/run/config.json: ")
    assert "secret" not in message


def test_a_bucket_that_does_not_exist(bucket):
    message = refusal(open_, locate(bucket.replace("@runs/", "@nowhere/").format("run")))
    assert message.startswith("cannot write to s3://nowhere/run: ")


# Names of places


def test_pandas_reads_the_trials_by_their_uri(bucket):
    uri = bucket.format(f"{next(_numbers)}/run")
    store = open_(locate(uri))
    go_on(store, 3)
    store.compact()
    store.close()
    path, _, options = uri.partition("?")
    table = pd.read_parquet(f"{path}/trials.parquet?{options}")
    assert table.trial.tolist() == [0, 1, 2]


def test_a_path_is_a_path_and_so_is_a_file_uri(tmp_path):
    assert locate("runs/one") == locate("runs") / "one"
    assert locate(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    out = locate("memory://a/b/")
    assert (str(out), str(out.parent), out.name) == ("memory://a/b", "memory://a", "b")


@pytest.mark.parametrize("uri", ["nowhere://a/b", "s3://", "s3://a/b?colour=red"])
def test_a_uri_that_names_nothing(uri):
    message = refusal(locate, uri)
    assert message.startswith(f"{uri.partition('?')[0]}: ")
    assert message.endswith("or the scheme of an installed fsspec package")


def test_keys_are_neither_shown_nor_recorded(bucket):
    uri = bucket.format(f"{next(_numbers)}/run")
    out = locate(uri)
    assert "secret" not in f"{out} {out!r} {(out / 'x')!r}"
    store = RunStore.open(out, CONFIG, ["python", "-m", "orchestrator.run_bo", "--out", uri])
    store.close()
    record = (out / "config.json").read_bytes().decode()
    assert "secret" not in record
    assert json.loads(record)["command"].endswith(f"--out {out}")
    assert without_secrets("--out=s3://a:b@c/d?e=f g") == "--out=s3://c/d g"
    assert without_secrets("a b@c /tmp/x?y") == "a b@c /tmp/x?y"
