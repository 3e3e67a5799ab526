"""What a run says of itself, config.json, as whoever reads runs finds it."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.storage.journal import SCHEMA
from orchestrator.storage.location import Location

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError)  # of what was read

_NEEDED = {  # by those who read runs; what else there is depends on the run
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
    """A run that cannot be read: says why, in one line."""


def read_record(out: Location) -> Mapping[str, Any]:
    """What config.json says of a run; raises DamagedRunError, and OSError for no such file."""
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
