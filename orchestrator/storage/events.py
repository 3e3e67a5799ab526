"""The lines of a journal: one JSON object each, an event."""

import json
from typing import Any, TypeAlias

import orjson

Event: TypeAlias = dict[str, Any]
Events: TypeAlias = list[Any]  # each an Event; for a damaged line None, or whatever was read


def to_line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"


def parse(data: bytes) -> tuple[Events, int]:
    """The events in some lines, and how many bytes they take.

    An incomplete last line, left by a crash during an append, is not an event.
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
            return json.loads(line)  # which accepts NaN
        except (ValueError, RecursionError):
            return None
