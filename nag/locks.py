"""Locks: one process at a time uses a file or folder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from nag.errors import UserError

_PATIENCE = 10.0  # seconds; image-loading processes outlive a killed parent


def lock(file: int | IO[Any], mode: int, path: Path, patience: float = 30.0) -> None:
    """Lock an open file with `flock` until it is closed; it is `path` or stands for it.

    Waits `patience` seconds, e.g. for a process whose driver was killed; then raises UserError.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"{path} is in use by another process") from None
            time.sleep(0.2)


@contextmanager
def claim(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Yield a descriptor of a file or folder that no other process can claim in this block.

    flags: for os.open. Raises UserError. Has no effect on a filesystem without locks.
    """
    with ExitStack() as opened:
        while True:
            descriptor = os.open(path, flags, 0o666)
            opened.callback(os.close, descriptor)
            try:
                lock(descriptor, fcntl.LOCK_EX, path, _PATIENCE)
            except OSError:
                break
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break  # else a process that has just ended removed it: open it again
        yield descriptor
