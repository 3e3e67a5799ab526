"""The lines of a journal: one JSON object each, an event."""

import json
from typing import Any, TypeAlias

import orjson

Event: TypeAlias = dict[str, Any]
Events: TypeAlias = list[Any]  # each an Event; None, or what else was read, for a damaged line


def to_line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"


def parse(data: bytes) -> tuple[Events, int]:
    """The events of lines, and of how many bytes.

    A last line that is not whole is no event: what a crash leaves of an append.
    """
    *lines, torn = data.split(b"\n")
    events = [_parse(line) for line in lines]
    intact = len(data) - len(torn)
    if events and events[-1] is None and not torn:
        events.pop()
        intact -= len(lines[-1]) + 1
    return events, intact


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        try:
            return json.loads(line)  # which knows NaN
        except ValueError:
            return None
