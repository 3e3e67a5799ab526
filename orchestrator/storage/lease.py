"""Who may write a run on an object store: the holder of a lease, who keeps renewing it.

The leases of a run are numbered; lease n is the file n.json, and the last one counts. To take over
is to create the next file, which only one process can do if the filesystem supports exclusive
creation. If not (S3 through pyarrow), the file is written and read again `_SETTLING` seconds later:
of two simultaneous writers, the last one wins. No renewal can undo a takeover, since it writes a
different file.

Clocks only decide when a lease may be taken over. A holder that was suspended for that long finds
the next file, and what it wrote in the meantime is recognised by its number.
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
_RENEWALS = 4  # in that period
_SETTLING = 1.0  # seconds
_LENGTH = 255  # of a file, at least: see `Lease._record`


class InUseError(UserError):
    """Another process is using the run."""


class Lease:
    """The lease of a folder, held from construction to `release`; raises UserError and OSError.

    token: of this lease; tokens of later leases are greater.
    """

    def __init__(self, folder: URI, run: object, after: int = 0) -> None:
        """after: a number known to have been used, in case its file is gone."""
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
        """Create the file of this lease; False if another process was quicker."""
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
        """Raise UserError if the lease is lost; asks the store only if a renewal is overdue."""
        if self._lost:
            raise UserError(self._lost)
        if time.time() - self._renewed > DURATION / 2:
            self.renew()

    def renew(self) -> None:
        """Raise UserError if the lease is lost; otherwise everything written so far is valid."""
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
        """Let others have the lease at once; does nothing if it is already lost."""
        self._stop.set()
        self._thread.join()
        with self._mutex, suppress(OSError):  # if this fails, it expires
            if not self._lost and not self._successor():
                self._file(self._number).write(self._record(-DURATION))

    def _file(self, number: int) -> URI:
        return self._folder / f"{number:06d}.json"

    def _record(self, renewed: float) -> bytes:
        """The content of the file, of equal length for each renewal.

        pyarrow asks S3 for the size of a file, then for that many bytes, with one request or more:
        of a file that changes its length in between, it reads a mixture.
        """
        record = {
            "token": self.token,
            "host": platform.node(),
            "pid": os.getpid(),
            "expires": renewed + DURATION,
        }
        return json.dumps(record).ljust(_LENGTH).encode() + b"\n"

    def _successor(self) -> str | None:
        """A message that says who has the lease now, if that is another process."""
        own = _read(self._file(self._number)).get("token") == self.token
        if own and not self._file(self._number + 1).exists():
            return None
        by = _who(_read(self._folder / f"{_last(self._folder):06d}.json"))
        return (
            f"{self._run} was taken over by {by}, because this process did not renew its lease for "
            f"{DURATION:.0f} s: the other process repeats what was not saved"
        )

    def _keep(self) -> None:
        while not self._stop.wait(DURATION / _RENEWALS):
            try:
                self.renew()
            except OSError:
                continue  # tried again; the next write reports it
            except UserError:
                return


def refuse_if_held(folder: URI, run: object) -> None:
    """Raise InUseError while a lease of the folder is held."""
    record = _read(folder / f"{_last(folder):06d}.json")
    left = float(record.get("expires", 0)) - time.time()
    if left > 0:
        ends = time.strftime("%H:%M:%S UTC", time.gmtime(record["expires"]))
        raise InUseError(
            f"{run} is in use by {_who(record)}: unless renewed, its lease ends in {left:.0f} s, "
            f"at {ends}"
        )


def _last(folder: URI) -> int:
    numbers = [file.name.removesuffix(".json") for file in folder.iterdir()]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _read(file: URI) -> dict[str, Any]:
    """The content of a lease; empty if there is none."""
    try:
        return dict(json.loads(file.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _who(record: dict[str, Any]) -> str:
    return f"process {record.get('pid', '?')} on {record.get('host', 'an unknown host')}"
