"""Files: written under a temporary name, then renamed; and a cache for measurements."""

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
    """Yield a unique name in the folder of `path`, to write a file to in this block.

    At the end the file is flushed to disk and replaces `path`, so at any time `path` is either the
    old file or the complete new one. If the block raises, even on Ctrl-C, nothing is left behind.
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
    """Write a file atomically; raises OSError, naming `path`, e.g. if the disk is full."""
    try:
        with aside(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """The same for a text, in UTF-8; adds a final newline if it is missing."""
    write_bytes(path, utf8(text if text.endswith("\n") or not text else f"{text}\n"))


def utf8(text: str) -> bytes:
    """A text in UTF-8, in which the bytes of a file name that is not UTF-8 are escaped."""
    return text.encode(errors="backslashreplace")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """The same for a JSON object."""
    write_text(path, json.dumps(record, indent=1))


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal; raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def code_digest(*packages: str) -> str:
    """Digest of all files of these packages of ours: code, and the data shipped with it."""
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
    """The result of `measure`, cached as JSON in `folder` under `asked`.

    So a long command that was stopped continues when it is repeated. Raises OSError.

    asked: all that determines the result; for the code, its `code_digest`.
    tell: called when nothing had to be measured.
    """
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.json"
    with suppress(FileNotFoundError, ValueError):  # a damaged file is measured again
        found: dict[str, Any] = json.loads(path.read_bytes())
        tell(f"already in {path}")
        return found
    result = measure()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result
