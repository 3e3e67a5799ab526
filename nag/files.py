"""How files are written: aside, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name beside `path`, and nobody else's, to write a file to in this block.

    At the end the file goes to the disk and replaces `path`, which is the old file or the whole new
    one at any time. Whatever the block raises, also Ctrl-C, leaves nothing behind.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole; raises OSError, which names `path`, e.g. where the disk is full."""
    try:
        with aside(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """The same with a text, in UTF-8; a last line without an end gets one."""
    write_bytes(path, (text if text.endswith("\n") or not text else f"{text}\n").encode())
