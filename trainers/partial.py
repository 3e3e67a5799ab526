"""What a long command has found so far, in a file: repeated, the command goes on from there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nag.cli import UserError, difference
from nag.files import write_text


class Partial:
    """Findings, JSON objects, in a file with a line for each after one of their conditions.

    conditions: for JSON; UserError where the file is of other ones. A line that was not written to
        its end is dropped, and found anew.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        begun, *self.found = list(_whole(path, lines)) or [dict(conditions)]
        if others := difference({name: begun.get(name) for name in conditions}, conditions):
            raise UserError(f"{path} was begun otherwise ({others}): delete it to start again")
        write_text(path, "\n".join(map(json.dumps, [begun, *self.found])))

    def add(self, finding: Mapping[str, Any]) -> None:
        """Keep a finding; raises OSError, which names the file."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(finding)}\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.found.append(dict(finding))

    def remove(self) -> None:
        """Of no more use: all is found."""
        self.path.unlink()


def _whole(path: Path, lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Without the last one where it was not written to its end; raises UserError for others."""
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is damaged: delete or repair it") from None
