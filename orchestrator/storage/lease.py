"""Who writes a run on an object store: a lease, which its holder renews and others respect.

Leases of a run are numbered; number n is the file n.json, and the last one counts. To take over is
to make the next file, which one process alone can do where the filesystem creates a file only if
there is none. Elsewhere (S3 through pyarrow) the file is written and, `_SETTLING` later, read
again: of two that were as quick, the last one has it. No renewal can undo a takeover, since it
writes another file.

Clocks decide no more than when a lease may be taken over. A holder that was asleep for so long
learns it from the next file, and what it wrote in the meantime is known by its number.
"""

import json
import os
import platform
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

from nag.errors import UserError
from orchestrator.storage.location import URI

DURATION = 60.0  # seconds since the last renewal
_RENEWALS = 4  # in that time
_SETTLING = 1.0  # seconds


class InUseError(UserError):
    """Another process has the run."""


class Lease:
    """The lease of a folder, held from construction to `release`; raises UserError and OSError.

    token: of this lease; those of later leases are greater.
    """

    def __init__(self, folder: URI, run: object, after: int = 0) -> None:
        """after: a number that was used, should its file be gone."""
        self._folder, self._run = folder, run
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._lost: str | None = None
        last = _last(folder)
        refuse_if_held(folder, run)
        self._number = max(last, after) + 1
        self.token = f"{self._number:06d}-{secrets.token_hex(2)}"
        self._renewed = time.time()
        if not self._acquire():
            refuse_if_held(folder, run)
            raise InUseError(f"{run} is in use by another process")
        for file in folder.iterdir():
            if file.name < self._file(self._number).name:
                with suppress(OSError):
                    file.unlink()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _acquire(self) -> bool:
        """Make the file of this lease; False where somebody else was quicker."""
        file, record = self._file(self._number), self._record(self._renewed)
        created = file.create(record)
        if created is not None:
            return created
        if file.exists():
            return False
        file.write(record)
        time.sleep(_SETTLING)
        return _read(file).get("token") == self.token

    def ensure(self) -> None:
        """Raise UserError if the lease is lost: cheap, asks the store only after a long silence."""
        if self._lost:
            raise UserError(self._lost)
        if time.time() - self._renewed > DURATION / 2:
            self.renew()

    def renew(self) -> None:
        """Raise UserError if the lease is lost; else all written so far was written by right."""
        with self._mutex:
            if not self._lost:
                started = time.time()
                self._lost = self._successor()
                if not self._lost:
                    self._file(self._number).write(self._record(started))
                    self._renewed = started
            if self._lost:
                raise UserError(self._lost)

    def release(self) -> None:
        """Let others have it at once; does nothing with a lease that is lost."""
        self._stop.set()
        self._thread.join()
        with self._mutex, suppress(OSError):  # else it ends by itself
            if not self._lost and not self._successor():
                self._file(self._number).write(self._record(-DURATION))

    def _file(self, number: int) -> URI:
        return self._folder / f"{number:06d}.json"

    def _record(self, renewed: float) -> bytes:
        record = {
            "token": self.token,
            "host": platform.node(),
            "pid": os.getpid(),
            "expires": renewed + DURATION,
        }
        return json.dumps(record).encode() + b"\n"

    def _successor(self) -> str | None:
        """Who has it now, in words, if that is somebody else."""
        own = _read(self._file(self._number)).get("token") == self.token
        if own and not self._file(self._number + 1).exists():
            return None
        by = _who(_read(self._folder / f"{_last(self._folder):06d}.json"))
        return (
            f"{self._run} was taken over by {by}, because nothing was heard of this process for "
            f"{DURATION:.0f} s: what the other has not saved it will do again"
        )

    def _keep(self) -> None:
        while not self._stop.wait(DURATION / _RENEWALS):
            try:
                self.renew()
            except OSError:
                continue  # tried again, and said by whoever writes next
            except UserError:
                return


def refuse_if_held(folder: URI, run: object) -> None:
    """Raise InUseError while a lease of the folder is held."""
    record = _read(folder / f"{_last(folder):06d}.json")
    left = float(record.get("expires", 0)) - time.time()
    if left > 0:
        ends = time.strftime("%H:%M:%S UTC", time.gmtime(record["expires"]))
        raise InUseError(
            f"{run} is in use by {_who(record)}: unless that renews its lease, it ends in "
            f"{left:.0f} s, at {ends}"
        )


def _last(folder: URI) -> int:
    numbers = [file.name.removesuffix(".json") for file in folder.iterdir()]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _read(file: URI) -> dict[str, Any]:
    """What a lease says; nothing where there is none."""
    try:
        return dict(json.loads(file.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _who(record: dict[str, Any]) -> str:
    return f"process {record.get('pid', '?')} on {record.get('host', 'an unknown host')}"
