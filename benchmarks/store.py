"""Seconds to open a run and milliseconds to add a trial, by kind of store and number of trials.

    python benchmarks/store.py

Rounds of eight MobileNetV3 networks. Timed are the calls that a search makes to its store between
evaluations: `pending`, `observations`, `seen`, `propose`, `record`, `best`. In a folder either
nothing is fsynced, as if evaluations cost nothing, or everything, as if each took long; on S3
everything is written at once. S3 is a server from the Python package moto on loopback: a request
takes as long as the last column says, longer on a real network. Opening is the best of three; on S3
it includes the second for taking the lease, and its CPU seconds include the server. Adding is the
median round, with its ratio to the first row of the same kind.
"""

import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
from publish import publish

from nag.cli import command_line, run
from nag.spaces import Architecture, find_space
from orchestrator.config import RunConfig
from orchestrator.history.trials import Outcome
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore
from orchestrator.storage.local_journal import FILE
from orchestrator.storage.location import URI, Location, locate
from orchestrator.storage.segment_journal import FOLDER, Segment

CONFIG = RunConfig(space="mobilenetv3")
SPACE = find_space("mobilenetv3")
ROUND = 8
SIZES = (1024, 32, 1)  # of segments, in writes

app = command_line("python benchmarks/store.py")


@app.default
def main(*, trials: tuple[int, ...] = (1_000, 10_000, 100_000), rounds: int = 40) -> None:
    """Fill runs, open them, and add rounds of trials to them."""
    about = (
        f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}; "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}."
    )
    publish("store", about, _table(trials, rounds))


def _table(trials: tuple[int, ...], rounds: int) -> Iterator[str]:
    archs = SPACE.sample(max(trials) + 3 * ROUND * rounds, np.random.default_rng(0))
    yield "| store | trials | open, s | CPU, s | a trial, ms | ratio | files | a write, ms |"
    yield "|---|---|---|---|---|---|---|---|"
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, _bucket() as bucket:
        for number in trials:
            full = Path(folder, "full", str(number))
            _fill(full, archs[:number])
            for kind, worth in (("folder", 0.0), ("folder, fsync", 1.0), ("S3", 1.0)):
                out: Location = Path(folder, kind, str(number))
                if kind == "S3":
                    out = locate(bucket.format(number))
                _copy(full, out)
                opened, used = min(_open(out) for _ in range(3))
                adding = _add(out, archs[number:], rounds, worth)
                first.setdefault(kind, adding)
                files = sum(1 for _ in (out / FOLDER).iterdir()) if kind == "S3" else 1
                yield (
                    f"| {kind} | {number:,} | {opened:.2f} | {used:.2f} | {1e3 * adding:.3f} | "
                    f"{adding / first[kind]:.1f} | {files} | {1e3 * _write(out):.2f} |"
                )


def _open(out: Location) -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process."""
    started, used = perf_counter(), process_time()
    store = RunStore.open(out, CONFIG)
    seconds = perf_counter() - started, process_time() - used
    store.close()
    return seconds


def _fill(out: Path, archs: Sequence[Architecture]) -> None:
    with closing(RunStore.open(out, CONFIG)) as store:
        for i in range(0, len(archs), ROUND):
            _round(store, archs[i : i + ROUND], 0.0)


def _add(out: Location, archs: Sequence[Architecture], rounds: int, worth: float) -> float:
    """Seconds per trial in the median round."""
    seconds = []
    with closing(RunStore.open(out, CONFIG)) as store:
        for i in range(rounds):
            started = perf_counter()
            _round(store, archs[ROUND * i : ROUND * (i + 1)], worth)
            seconds.append((perf_counter() - started) / ROUND)
    return median(seconds)


def _round(store: RunStore, archs: Sequence[Architecture], worth: float) -> None:
    assert not store.pending()
    if worth:
        assert len(store.observations()) == len(store.trials)
        assert not any(arch in store.seen() for arch in archs)
    predicted = ((0.75, 0.01),) * len(archs)
    suggestion = Suggestion(tuple(archs), "guided", predicted, {"propose": worth}, {"validity": 1})
    for trial in store.propose(suggestion):
        metrics = {"macs": 2.5e8, "params": 4.5e6}
        value = 0.75 + 1e-9 * trial.trial
        store.record(Outcome(trial.trial, "ok", value, metrics, worth))
        assert store.best == (trial, value)


def _copy(run_: Path, out: Location) -> None:
    """Copy a run from a folder; to a store, with the segments that one write per round leaves."""
    if isinstance(out, Path):
        shutil.copytree(run_, out)
        return
    lines = (run_ / FILE).read_bytes().splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.startswith(b'{"event": "proposed"')]
    done = 0
    for size in SIZES:
        while len(starts) - done >= size:
            after = done + size
            end = starts[after] if after < len(starts) else len(lines)
            segment = Segment(done, after - 1, "000001-0000")
            (out / FOLDER / segment.name).write(b"".join(lines[starts[done] : end]))
            done = after
    (out / "config.json").write((run_ / "config.json").read_bytes())


def _write(out: Location) -> float:
    """Seconds to write a line to the store, without an fsync."""
    seconds = []
    for _ in range(20):
        started = perf_counter()
        if isinstance(out, URI):
            (out / "line").write(b"x" * 200)
        else:
            with (out / "line").open("ab") as file:
                file.write(b"x" * 200)
                file.flush()
        seconds.append(perf_counter() - started)
    return median(seconds)


@contextmanager
def _bucket() -> Iterator[str]:
    """URI of a bucket on loopback, as a format string for a key."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from s3 import s3_bucket

    logging.disable(logging.CRITICAL)
    with s3_bucket() as uri:
        yield uri


if __name__ == "__main__":
    run(app)
