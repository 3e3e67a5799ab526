"""The best architectures of a search, read from its folder: config.json and trials.parquet.

The journal is only used to check that the table is up to date.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nag.errors import UserError, counted
from nag.spaces import Architecture, InvalidArchitectureError, StagedSpace, find_space
from trainers.build import USUAL_DATASETS
from trainers.rows import PARTIAL


@dataclass(frozen=True)
class Finalist:
    """An architecture to be finished, and its result in the search.

    trial, value: its trial and objective (a fraction) there; None if it does not come from a run.
    """

    arch: Architecture
    trial: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Search:
    """A run.

    config: its settings, by the names of RunConfig.
    sha256: digests of the files and images it read, by the settings that name them.
    command, versions: how it was run.
    trials: number of its trials that have a value at full fidelity.
    finalists: the best of them, best first; ties go to the earlier trial.
    """

    path: Path
    space: StagedSpace
    config: Mapping[str, Any]
    sha256: Mapping[str, str]
    command: str
    versions: Mapping[str, str]
    trials: int
    finalists: tuple[Finalist, ...]

    @property
    def evaluator(self) -> str:
        return str(self.config["evaluator"])

    @property
    def searched_on(self) -> str:
        """Name of its data."""
        default = USUAL_DATASETS.get(self.evaluator, "synthetic data")
        return str(self.config.get("data") or self.config.get("dataset") or default)


def read_search(path: Path, top: int) -> Search:
    """A run and its best `top` architectures; raises UserError in one line."""
    record = _record(path)
    config = record["config"]
    space = find_space(config["space"])
    trials = _trials(path / "trials.parquet", _outcomes(path / "journal.jsonl"))
    if not trials:
        raise UserError(f"{path} has no successful trial: nothing can be chosen")
    best: dict[Architecture, Finalist] = {}
    target = config.get("target")  # percent; if given, the nearest value is the best

    def rank(row: tuple[int, str | None, float]) -> tuple[float, int]:
        return (-row[2] if target is None else abs(row[2] - target)), row[0]

    for trial, text, value in sorted(trials, key=rank):
        try:
            arch = space.from_str(text or "")
        except InvalidArchitectureError as error:
            raise UserError(f"{path}, trial {trial}: {error}") from None
        best.setdefault(arch, Finalist(arch, trial, value / 100))
    return Search(
        path=path,
        space=space,
        config=config,
        sha256=config.get("sha256", {}),
        command=record.get("command", ""),
        versions=record.get("versions", {}),
        trials=len(trials),
        finalists=tuple(best.values())[:top],
    )


def _record(path: Path) -> Mapping[str, Any]:
    file = path / "config.json"
    try:
        record: Mapping[str, Any] = json.loads(file.read_bytes())
        if {"space", "evaluator"} <= record["config"].keys():
            return record
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no run in {path}: give the folder that was --out of a run") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{file} is damaged")


def _outcomes(journal: Path) -> int:
    """How many trials have ended; 0 if the run has no journal."""
    ended = set()
    with suppress(FileNotFoundError):
        for line in journal.read_bytes().splitlines():
            with suppress(ValueError, TypeError, KeyError):  # skip incomplete lines
                event = json.loads(line)
                if event["event"] == "finished":
                    ended.add(event["trial"])
    return len(ended)


def _trials(file: Path, outcomes: int) -> list[tuple[int, str | None, float]]:
    """Number, architecture and value (percent) of the successful trials at full fidelity.

    outcomes: number of rows in an up-to-date table.
    """
    if not file.exists():
        raise UserError(f"no {file}: repeat the command of the run to write it")
    try:
        table = pq.read_table(file)
        if len(table) < outcomes:
            raise UserError(
                f"{file} has {len(table)} of {counted(outcomes, 'trial')}: the run is not over or "
                "was killed; wait, or repeat its command to update the table"
            )
        good = pc.is_valid(table["value"])
        for name in set(PARTIAL) & set(table.column_names):
            good = pc.and_(good, pc.is_null(table[name]))
        found = table.filter(good)
        types = {"trial": pa.int64(), "arch": pa.string(), "value": pa.float64()}
        columns = (found[name].cast(type_).to_pylist() for name, type_ in types.items())
        return list(zip(*columns, strict=True))
    except (pa.ArrowException, KeyError):
        raise UserError(f"{file} is damaged: delete it and repeat the command of the run") from None
