"""The journal of a run in a folder: one file that is appended to, and locked."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.storage.events import Event, Events, parse, to_line
from orchestrator.storage.lease import InUseError

FILE = "journal.jsonl"
_WORTH_AN_FSYNC = 0.02  # seconds


class LocalJournal:
    """Implements `Journal`, locked by `flock`, which ends with its process, however that ends.

    A line is in the file before `append` returns, and fsynced if its event took longer to produce
    than an fsync takes: if the machine itself goes down, only the last few trials, which cost next
    to nothing, may have to be run again.
    """

    saved = True

    def __init__(self, out: Path) -> None:
        self._path = out / FILE
        self._size = 0  # of the intact part
        out.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise InUseError(f"{out} is in use by another process") from None
            raise

    def replay(self) -> Iterator[tuple[str, Events]]:
        events, self._size = parse(self._path.read_bytes())
        yield str(self._path), events
        self._file.truncate(self._size)  # not reached if the caller found damage and stopped

    def append(self, event: Event, worth: float) -> None:
        line = to_line(event)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            if worth > _WORTH_AN_FSYNC:
                self.sync()
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(line)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
