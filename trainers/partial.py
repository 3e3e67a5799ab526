"""Partial results of a long command, kept in a file; the command continues from it if repeated."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nag.cli import difference
from nag.errors import UserError
from nag.locks import claim


class Partial:
    """A file of findings: a first line with their conditions, then one JSON object per line.

    conditions: for JSON; raises UserError if the file has others or another process uses it. An
        incomplete last line is dropped, and has to be found again.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self.path = path
        with ExitStack() as opened:
            descriptor = opened.enter_context(claim(path, os.O_RDWR | os.O_CREAT))
            self._file = os.fdopen(descriptor, "r+b", buffering=0, closefd=False)
            whole, _, torn = self._file.read().rpartition(b"\n")
            begun, *self.found = list(_read(path, whole.splitlines())) or [dict(conditions)]
            if others := difference({name: begun.get(name) for name in conditions}, conditions):
                raise UserError(
                    f"{path} was started with other settings ({others}): delete it to start again"
                )
            if torn:
                self._file.truncate(self._file.seek(-len(torn), os.SEEK_END))
            if not whole:
                self._write(begun)
            self._opened = opened.pop_all()

    def add(self, finding: Mapping[str, Any]) -> None:
        """Append a finding; raises OSError, naming the file."""
        self._write(finding)
        self.found.append(dict(finding))

    def remove(self) -> None:
        """Delete the file: everything has been found."""
        self.path.unlink()

    def close(self) -> None:
        """Release the file to other processes."""
        self._opened.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            left = f"{json.dumps(line)}\n".encode()
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None


def _read(path: Path, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """Raises UserError."""
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path}, line {number} is damaged: delete or repair it")
        yield found
