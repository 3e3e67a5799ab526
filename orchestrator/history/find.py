"""Finds runs and commands: in and below folders, or listed by experiments."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nag.errors import UserError, counted
from orchestrator.history.record import DAMAGE, DamagedRunError
from orchestrator.history.run import Run, not_begun, read_run
from orchestrator.storage.location import URI, Location, reason


class Source(NamedTuple):
    """Where a run is, or will be.

    group: the panel that an experiment puts it in.
    record: what an experiment records about it, as in config.json.
    """

    path: Location
    group: str = ""
    record: Mapping[str, Any] | None = None


class CommandSource(NamedTuple):
    """The directory in which a command of an experiment leaves its files, begun or not."""

    path: Path
    group: str = ""

    @property
    def finished(self) -> bool:
        return (self.path / "command.json").exists()


def find_runs(paths: Sequence[Location]) -> list[Source]:
    """Every run in folders and experiments."""
    found: dict[tuple[Location, str], Source] = {}
    for path in paths:
        below = _runs_below if path.is_dir() else _runs_of_experiment
        for source in below(path):
            found.setdefault((source.path.resolve(), source.group), source)
    return list(found.values())


def find_commands(paths: Sequence[Location]) -> list[CommandSource]:
    """Every finished command in local folders, and every one of experiments."""
    found: dict[str, CommandSource] = {}
    for path in paths:
        if isinstance(path, URI):
            continue
        if path.is_dir():
            below = sorted(file.parent for file in path.rglob("command.json"))
            sources = [CommandSource(folder) for folder in below]
        else:
            sources = [
                CommandSource(path.parent / part["label"], str(part["panel"] or ""))
                for part in _parts(path)
                if part["kind"] == "command"
            ]
        for source in sources:
            known = found.setdefault(source.path.name, source)  # equal names mean equal content
            if (source.finished, bool(source.group)) > (known.finished, bool(known.group)):
                found[source.path.name] = source
    return list(found.values())


def _runs_below(path: Location) -> Iterator[Source]:
    if isinstance(path, URI):
        records = (file for file in path.walk() if PurePosixPath(file).name == "config.json")
        for folder in (file.removesuffix("config.json").rstrip("/") for file in records):
            yield Source(path / folder if folder else path)
        return
    for folder, below, files in os.walk(path):
        below.sort()
        if {"config.json", "journal.jsonl"} <= set(files):
            below.clear()
            yield Source(Path(folder))


def _runs_of_experiment(path: Location) -> Iterator[Source]:
    """The searches that an experiment consists of, whether they have begun or not."""
    for run in _parts(path):
        if run["kind"] == "search":
            yield Source(path.parent / run["label"], str(run["panel"] or ""), run)


def _parts(path: Location) -> list[Mapping[str, Any]]:
    """What an experiment consists of: kind, label and panel of each part, and more."""
    try:
        parts: list[Mapping[str, Any]] = json.loads(path.read_bytes())["runs"]
        for part in parts:
            part["kind"], path.parent / part["label"], part["panel"]
            if part["kind"] == "search":
                part["config"]["budget"]
        return parts
    except FileNotFoundError:
        raise UserError(f"no such folder: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    except DAMAGE:
        raise UserError(
            f"{path} is not an experiment: give runs, folders of runs, or the experiment-NAME.json "
            "that orchestrator.experiment writes beside its runs"
        ) from None


class Skipped(NamedTuple):
    """A run that is left out of the report, and why."""

    path: Location
    reason: str


def read_runs(sources: Sequence[Source]) -> tuple[list[tuple[str, Run]], list[Skipped]]:
    """The runs that can be compared, with groups, and those that cannot; UserError if none can.

    A search for a target value cannot: the others search for the largest value or a Pareto front.
    A run gets the budget that the experiment gives it, because another experiment may have extended
    the run.
    """
    runs, skipped = [], []
    known: dict[Location, Run] = {}
    for source in sources:
        try:
            if source.path not in known:
                known[source.path] = _read(source)
            run = known[source.path]
            if run.config.get("target") is not None:
                why = "it searches for a --target value, and runs are compared by the largest found"
                skipped.append(Skipped(source.path, why))
            else:
                runs.append((source.group, _as_asked(run, source.record)))
        except DamagedRunError as error:
            skipped.append(Skipped(source.path, str(error)))
    if not runs:
        first = skipped[0]
        raise UserError(
            f"of {counted(len(skipped), 'run')}, none can be compared: {first.path}: {first.reason}"
        )
    if not any(len(run) for _, run in runs):
        raise UserError("none of the runs has a finished trial yet")
    return runs, skipped


def _read(source: Source) -> Run:
    if source.record is None or (source.path / "config.json").exists():
        return read_run(source.path)
    return not_begun(source.path, source.record)


def _as_asked(run: Run, record: Mapping[str, Any] | None) -> Run:
    """The run with the budget in the experiment's record."""
    if record is None:
        return run
    config = {**run.record["config"], "budget": record["config"]["budget"]}
    return replace(run, record={**run.record, "config": config})
