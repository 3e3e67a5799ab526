"""One process at a time: files and folders that others keep off."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from nag.errors import UserError

_PATIENCE = 10.0  # seconds; processes that load images outlive one that was killed


def lock(file: int | IO[Any], mode: int, path: Path, patience: float = 30.0) -> None:
    """Lock an open file, which is `path` or stands for it, as `flock` does; until it is closed.

    A process whose driver was killed is given `patience` seconds to end. Raises UserError.
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
    """A descriptor of a file or folder that no other process claims in this block.

    flags: of os.open. Raises UserError. Without effect on a filesystem that has no locks.
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
                break  # it has not been removed by another process that has just ended
        yield descriptor
