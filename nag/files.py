"""How files are written: aside, then renamed; and what is measured once is read afterwards."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


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


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """The same with what becomes JSON."""
    write_text(path, json.dumps(record, indent=1))


def sha256_of(path: Path) -> str:
    """That of what is in a file, in hexadecimal; raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def code_digest(*packages: str) -> str:
    """The same for the same code of packages of ours, and the same files that come with it."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(str(import_module(package).__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{package}/{path.relative_to(root)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def kept(
    folder: Path,
    name: str,
    asked: Mapping[str, Any],
    measure: Callable[[], dict[str, Any]],
    tell: Callable[[str], object],
) -> dict[str, Any]:
    """What `measure` gives, as JSON; where it was asked for the same before, what it gave then.

    So a long command that is repeated goes on where it was stopped. Raises OSError.

    asked: all that decides the result, the code by `code_digest`.
    tell: is told when nothing had to be measured.
    """
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.json"
    with suppress(FileNotFoundError, ValueError):  # what is damaged is measured again
        found: dict[str, Any] = json.loads(path.read_bytes())
        tell(f"already in {path}")
        return found
    result = measure()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result
