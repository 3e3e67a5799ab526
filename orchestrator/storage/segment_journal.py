"""The journal of a run on a store that cannot append: segments, written whole and never changed.

    journal/FIRST-LAST.TOKEN.jsonl    the lines of the writes FIRST to LAST, under the lease TOKEN

A write is one segment. Once there are `_FAN_OUT` of one size they are merged into one of the next
size, so n writes leave a few dozen segments, and each line is rewritten once per size. A merged
segment is written before its pieces are deleted; segments contained in another one are ignored.

A process that has lost its lease, but does not know it yet, may still write a segment. That segment
is recognised by its token, which is less than that of an earlier segment or of one with the same
number, and ignored. Only segments confirmed by a renewal of the lease are merged.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeVar

from nag.errors import UserError
from orchestrator.storage.events import Event, Events, parse, to_line
from orchestrator.storage.lease import Lease
from orchestrator.storage.location import URI

FOLDER, LEASES = "journal", "lock"
_FAN_OUT = 32
_WORTH_A_WRITE = 0.1  # seconds
_IN_PARALLEL = 16
_ATTEMPTS = 5  # to read while another process merges
_NAME = re.compile(r"(\d+)-(\d+)\.(\d+-[0-9a-f]+)\.jsonl")

T = TypeVar("T")


class Segment(NamedTuple):
    first: int
    last: int
    token: str

    @property
    def name(self) -> str:
        return f"{self.first:08d}-{self.last:08d}.{self.token}.jsonl"

    @property
    def writes(self) -> int:
        return self.last - self.first + 1

    @property
    def lease(self) -> int:
        return int(self.token.partition("-")[0])


class SegmentJournal:
    """Implements `Journal` with a lease as its lock.

    Events are saved together, once they took `_WORTH_A_WRITE` seconds to produce: at most that
    much work, in addition to running evaluations, is lost if the process is killed.
    """

    def __init__(self, out: URI) -> None:
        self._folder = out / FOLDER
        self._segments: list[Segment] = []
        self._lines: list[bytes] = []  # not saved yet
        self._worth = 0.0
        self._failed = False
        for folder in (self._folder, out / LEASES):
            folder.mkdir()
        used = max((segment.lease for segment in _listed(self._folder)), default=0)
        self._lease = Lease(out / LEASES, out, used)

    @property
    def saved(self) -> bool:
        return not self._lines

    def replay(self) -> Iterator[tuple[str, Events]]:
        self._segments, contents = _read(self._folder)
        intact = 0
        for segment, data in zip(self._segments, contents, strict=True):
            events, intact = _parse(data, segment is self._segments[-1])
            yield str(self._folder / segment.name), events
        if self._segments and intact < len(contents[-1]):
            whole = self._segments[-1]._replace(token=self._lease.token)
            (self._folder / whole.name).write(contents[-1][:intact])
            self._segments[-1] = whole

    def append(self, event: Event, worth: float) -> None:
        self._lines.append(to_line(event))
        self._worth += worth
        if self._worth > _WORTH_A_WRITE:
            try:
                self._save()
            except BaseException:
                self._lines.pop()
                raise
            self._merge()

    def sync(self) -> None:
        self._save()
        self._merge()

    def close(self) -> None:
        try:
            if not self._failed:
                self._save()
        finally:
            self._lease.release()

    def _save(self) -> None:
        """Write what was appended as the next segment."""
        if self.saved:
            return
        self._failed = True
        self._lease.ensure()
        number = self._segments[-1].last + 1 if self._segments else 0
        segment = Segment(number, number, self._lease.token)
        (self._folder / segment.name).write(b"".join(self._lines))
        self._failed = False
        self._segments.append(segment)
        self._lines.clear()
        self._worth = 0.0

    def _merge(self) -> None:
        """Merge the last segments, as long as there are enough of one size."""
        pieces = self._segments[-_FAN_OUT:]
        if len(pieces) < _FAN_OUT or len({piece.writes for piece in pieces}) > 1:
            return
        files = [self._folder / piece.name for piece in pieces]
        merged = Segment(pieces[0].first, pieces[-1].last, pieces[-1].token)
        with suppress(OSError):  # nothing is lost, and the next write tries again
            self._lease.renew()
            (self._folder / merged.name).write(b"".join(_in_parallel(URI.read_bytes, files)))
            self._segments[-_FAN_OUT:] = [merged]
            _in_parallel(URI.unlink, files)
            self._merge()


def read_segments(out: URI) -> Iterator[tuple[str, Events]]:
    """What `replay` of a journal yields, without taking its lease; raises OSError, UserError."""
    folder = out / FOLDER
    segments, contents = _read(folder)
    for segment, data in zip(segments, contents, strict=True):
        yield str(folder / segment.name), _parse(data, segment is segments[-1])[0]


def _parse(data: bytes, may_be_torn: bool) -> tuple[Events, int]:
    events, intact = parse(data)
    if intact < len(data) and not may_be_torn:
        events.append(None)
    return events, intact


def _read(folder: URI) -> tuple[list[Segment], list[bytes]]:
    for attempt in range(_ATTEMPTS):
        segments = live(_listed(folder))
        gaps = [
            after
            for before, after in zip([None, *segments], segments, strict=False)
            if after.first != (before.last + 1 if before else 0)
        ]
        try:
            if not gaps:
                files = [folder / segment.name for segment in segments]
                return segments, _in_parallel(URI.read_bytes, files)
        except FileNotFoundError:
            pass
        time.sleep(0.1 * attempt)
    missing = (
        f"the segment before {gaps[0].name} is missing" if gaps else "its segments keep changing"
    )
    raise UserError(f"{folder} is damaged: {missing}")


def _listed(folder: URI) -> list[Segment]:
    matches = (_NAME.fullmatch(file.name) for file in folder.iterdir())
    return [Segment(int(match[1]), int(match[2]), match[3]) for match in matches if match]


def live(found: Iterable[Segment]) -> list[Segment]:
    """The valid segments, in order: not those already merged, or written without the lease."""
    found = sorted(found, key=lambda segment: (segment.token, segment.last), reverse=True)
    found.sort(key=lambda segment: segment.first)  # stable: of equals, the latest lease first
    segments: list[Segment] = []
    for segment in found:
        if segments and (segment.last <= segments[-1].last or segment.token < segments[-1].token):
            continue
        segments.append(segment)
    return segments


def _in_parallel(function: Callable[[URI], T], files: Sequence[URI]) -> list[T]:
    with ThreadPoolExecutor(_IN_PARALLEL) as pool:
        return list(pool.map(function, files))
