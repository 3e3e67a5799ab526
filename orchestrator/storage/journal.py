"""The journal of a run: its events in order. Only the process that has it open writes to it.

A folder has a file that is appended to, an object store has segments; other modules need not know.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from orchestrator.storage.events import Event, Events, parse
from orchestrator.storage.lease import InUseError, refuse_if_held
from orchestrator.storage.local_journal import FILE, LocalJournal
from orchestrator.storage.location import URI, Location
from orchestrator.storage.segment_journal import LEASES, SegmentJournal, read_segments

SCHEMA = 1  # of the files that a run writes


class Journal(Protocol):
    """Open and locked from construction to `close`; all writes may raise OSError or UserError.

    An `append` that raises leaves no trace for the next one.
    """

    @property
    def saved(self) -> bool:
        """Whether everything appended so far survives the end of this process."""
        ...

    def replay(self) -> Iterator[tuple[str, Events]]:
        """Each file's name and events, None for a damaged line. To be called once.

        An incomplete event, being appended when its process ended, is removed.
        """
        ...

    def append(self, event: Event, worth: float) -> None:
        """Add an event that took `worth` seconds to find."""
        ...

    def sync(self) -> None:
        """Save everything that was appended."""
        ...

    def close(self) -> None:
        """Save it, and release the journal."""
        ...


def open_journal(out: Location) -> Journal:
    """The journal of the run in `out`, created if missing; InUseError if another has it open."""
    return LocalJournal(out) if isinstance(out, Path) else SegmentJournal(out)


def read_journal(out: Location) -> Iterator[tuple[str, Events]]:
    """What `replay` yields, even while another process has the journal; nothing is written."""
    if isinstance(out, URI):
        return read_segments(out)
    data = (out / FILE).read_bytes()
    events, intact = parse(data)
    if intact < len(data) and data.endswith(b"\n"):
        events.append(None)  # not a line that is still being written
    return iter([(FILE, events)])


@contextmanager
def unused(out: Location) -> Iterator[None]:
    """Raise InUseError if another process has the journal open; in a folder, lock it meanwhile."""
    if isinstance(out, Path):
        with (out / FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUseError(f"{out} is in use by another process") from None
            yield
    else:
        refuse_if_held(out / LEASES, out)
        yield


def in_use(out: Location) -> bool:
    """Whether a process has the journal open, or may have: not every file system can tell."""
    try:
        with unused(out):
            return False
    except (InUseError, OSError):
        return True
