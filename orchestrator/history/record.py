"""The record of a run, config.json, as read back."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.storage.journal import SCHEMA
from orchestrator.storage.location import Location

# Raised by damaged data; RecursionError by JSON of thousands of brackets.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)

_NEEDED = {  # to read a run; other keys depend on the run
    "space",
    "evaluator",
    "table",
    "dataset",
    "objective",
    "surrogate",
    "strategy",
    "acq",
    "score_weights",
    "target",
    "constraint",
    "latency_table",
    "budget",
    "n_init",
    "batch_size",
    "schedule",
    "window",
    "seed",
    "hash",
}


class DamagedRunError(ValueError):
    """A run cannot be read; the message says why, in one line."""


def read_record(out: Location) -> Mapping[str, Any]:
    """The content of a run's config.json; raises DamagedRunError, or OSError if there is none."""
    data = (out / "config.json").read_bytes()
    try:
        record: Mapping[str, Any] = json.loads(data)
        schema, known = record["schema"], record.keys() | record["config"].keys()
    except DAMAGE:
        raise DamagedRunError("config.json is damaged") from None
    if schema != SCHEMA:
        raise DamagedRunError(f"config.json has schema {schema}, this version reads {SCHEMA}")
    if lacking := _NEEDED - known:
        raise DamagedRunError(f"config.json lacks {', '.join(sorted(lacking))}")
    return record
