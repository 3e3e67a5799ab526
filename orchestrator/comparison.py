"""Runs to compare: found, read without touching them, and put into panels of methods.

A panel holds the runs whose values can be compared: the same space, evaluator, data set, objective,
constraints and, unless an experiment compares them, batch size. In it a method is what the
configurations of its runs have in common, the seed apart.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nag.cli import UserError
from orchestrator.journal import read_journal
from orchestrator.location import URI, Location, reason
from orchestrator.methods import METHODS, NONE
from orchestrator.statistics import Numbers, best_so_far
from orchestrator.trial import SCHEMA
from trainers.base import FULL_EPOCHS
from trainers.rows import ACCURACIES

_UNSAID: Mapping[str, Any] = {  # what a record need not say
    "surrogate": "gp",
    "latency_table": None,
    "prior": [],
}
_DATASETS = {"table": "cifar10", "surrogate": "imagenet"}  # of an evaluator, where none is chosen
_NETWORKS = (
    "data",
    "resolution",
    "held_out",
    "train_fraction",
    "recipe",
    "epochs",
    "precision",
    "weights",
)
_TASK = ("space", "evaluator", "dataset", "objective", "constraint", "latency_table", *_NETWORKS)
_PANEL = (*_TASK, "batch_size")
_PATHS = ("table", "data", "weights", "score_weights", "latency_table")
_NAMES = ("surrogate", "strategy", "acq")
_PRESETS: Mapping[tuple[str, ...], str] = {
    method.parts: name
    for name, method in METHODS.items()
    if name != method.parts.strategy or method.parts.surrogate == NONE
}
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError)
_NUMBERS = ("value", "seconds")
_OPTIONAL = ("test", "train_seconds", "predicted_mean", "predicted_std")


class DamagedRunError(ValueError):
    """A run that cannot be read: says why, in one line."""


@dataclass(frozen=True)
class Run:
    """A run as far as its trials are finished without a gap, in their order; n of them.

    Its length is that of its curves: the whole evaluations that it has spent, of which a trial of
    low fidelity is a part. Without such trials it is n.

    record: config.json.
    columns: (n,) of each number of a trial, NaN where there is none; accuracies are fractions.
        Those of a trial of low fidelity are not accuracies of its architecture, so there are none.
    costs: (n,) epochs of training, of which FULL_EPOCHS are an evaluation.
    iteration: (n,) the round of each.
    rounds: what was journalled of each round: its seconds and diagnostics.
    num_finished: trials with an outcome, those behind a gap included.
    num_failed: trials that failed.
    """

    path: Location
    record: Mapping[str, Any]
    columns: Mapping[str, Numbers]
    iteration: NDArray[np.int64]
    sources: tuple[str, ...]
    archs: tuple[str, ...]
    rounds: tuple[Mapping[str, Any], ...]
    num_finished: int
    num_failed: int
    costs: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.costs.sum()) // FULL_EPOCHS

    @cached_property
    def ends(self) -> Numbers:
        """(n,) evaluations that were spent when each trial had ended: 1, 2, 3, ... at full cost."""
        return np.cumsum(self.costs) / FULL_EPOCHS

    @property
    def starts(self) -> Numbers:
        """(n,) those that were spent before each."""
        return np.append(0.0, self.ends)[:-1]

    @property
    def num_low(self) -> int:
        """Trials of low fidelity."""
        return int((self.costs < FULL_EPOCHS).sum())

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return known_config(self.record)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def budget(self) -> int:
        return int(self.config["budget"])

    @property
    def complete(self) -> bool:
        return len(self) >= self.budget

    @cached_property
    def incumbent(self) -> NDArray[np.int64]:
        """(n,) the best trial so far; -1 before the first value."""
        return best_so_far(self.columns["value"])

    def of_incumbent(self, name: str) -> Numbers:
        """(n,) a number of the best trial so far."""
        return np.append(self.columns[name], np.nan)[self.incumbent]

    def curve(self, name: str) -> Numbers:
        """(len,) the same after 1, 2, 3, ... evaluations: `value` gives the best-so-far curve."""
        last = np.searchsorted(self.ends, np.arange(1, len(self) + 1), side="right") - 1
        return self.of_incumbent(name)[last]


def known_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what an older one does not say; of its files only the names."""
    config = {**_UNSAID, **record["config"]}
    names = {key: config[key] and PurePath(config[key]).name for key in _PATHS if key in config}
    dataset = config.get("dataset") or _DATASETS.get(config["evaluator"])
    return {**config, **names, "dataset": dataset}


def task_of_prior(content: str) -> str:
    """The task of an earlier run, from the line that stands for it: see `EarlierRun.content`."""
    return content.rpartition(" (")[0]


class Source(NamedTuple):
    """Where a run is, or will be.

    group: the panel that an experiment has it in.
    record: what an experiment says of it, as in config.json.
    """

    path: Location
    group: str = ""
    record: Mapping[str, Any] | None = None


def find_runs(paths: Sequence[Location]) -> list[Source]:
    """Every run in folders and experiments; raises UserError where there is none."""
    found: dict[tuple[Location, str], Source] = {}
    for path in paths:
        below = _runs_below if path.is_dir() else _runs_of_experiment
        for source in below(path):
            found.setdefault((source.path.resolve(), source.group), source)
    if not found:
        shown = ", ".join(map(str, paths))
        raise UserError(f"no runs in {shown}: a run is a folder with config.json and journal.jsonl")
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
    """The searches that an experiment consists of, whether they have been begun or not."""
    try:
        runs = json.loads(path.read_bytes())["runs"]
        searches = [run for run in runs if run["kind"] == "search"]
        for run in searches:
            yield Source(path.parent / run["label"], str(run["panel"] or ""), run)
    except FileNotFoundError:
        raise UserError(f"no such folder: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    except _DAMAGE:
        raise UserError(
            f"{path} is not an experiment: give runs, folders of runs, or the experiment-NAME.json "
            "that orchestrator.experiment writes beside its runs"
        ) from None


def read_run(path: Location) -> Run:
    """The run in a folder, also while it goes on; raises DamagedRunError. Nothing is written."""
    try:
        record = json.loads((path / "config.json").read_bytes())
        files = list(read_journal(path))
    except OSError as error:
        raise DamagedRunError(f"{error.filename or path}: {reason(error)}") from None
    except UserError as error:
        raise DamagedRunError(str(error)) from None
    except ValueError:
        raise DamagedRunError("config.json is damaged") from None
    try:
        schema, known = record["schema"], record["config"].keys()
    except _DAMAGE:
        raise DamagedRunError("config.json is damaged") from None
    if schema != SCHEMA:
        raise DamagedRunError(f"schema {schema}, this version reads {SCHEMA}")
    if missing := {"space", "evaluator", "strategy", "acq", "seed", "budget", "hash"} - (
        known | record.keys()
    ):
        raise DamagedRunError(f"config.json lacks {', '.join(sorted(missing))}")
    trials: list[dict[str, Any]] = []
    outcomes: dict[int, dict[str, Any]] = {}
    rounds: list[dict[str, Any]] = []
    for file, events in files:
        for number, event in enumerate(events, start=1):
            try:
                if event["event"] == "proposed":
                    trials += event.pop("trials")
                    rounds.append({key: event[key] for key in ("seconds", "diagnostics")})
                else:
                    trial = trials[event["trial"]]
                    outcomes.setdefault(trial["trial"], event.pop("metrics") | event)
            except _DAMAGE:
                raise DamagedRunError(f"{file}, line {number} is damaged") from None
    count = next((i for i in range(len(trials)) if i not in outcomes), len(trials))
    try:
        rows = [{**trials[i], **outcomes[i]} for i in range(count)]
        columns = {n: np.array([row[n] for row in rows], dtype=float) for n in _NUMBERS}
        columns |= {n: np.array([row.get(n) for row in rows], dtype=float) for n in _OPTIONAL}
        epochs = [row.get("epochs") for row in rows]
        low = np.array(
            [
                one is not None or row.get("stopped") is not None
                for one, row in zip(epochs, rows, strict=True)
            ],
            dtype=bool,
        )
        failed = np.isnan(columns["value"])
        for name in columns.keys() & set(ACCURACIES):
            columns[name][low] = np.nan
        return Run(
            path,
            record,
            columns,
            np.array([row["iteration"] for row in rows], dtype=np.int64),
            tuple(str(row["strategy"]) for row in rows),
            tuple(str(row["arch"]) for row in rows),
            tuple(rounds),
            len(outcomes),
            int(failed.sum()),
            np.array([FULL_EPOCHS if one is None else one for one in epochs], dtype=np.int64),
        )
    except _DAMAGE:
        raise DamagedRunError("journal.jsonl does not hold trials of this version") from None


class Skipped(NamedTuple):
    """A run that is not in the report, and why."""

    path: Location
    reason: str


def read_runs(sources: Sequence[Source]) -> tuple[list[tuple[str, Run]], list[Skipped]]:
    """What can be read, with its group, and what cannot; raises UserError where nothing can."""
    runs, skipped = [], []
    known: dict[Location, Run] = {}
    for source in sources:
        try:
            if source.path not in known:
                begun = source.record is None or (source.path / "config.json").exists()
                known[source.path] = read_run(source.path) if begun else _not_begun(source)
            runs.append((source.group, known[source.path]))
        except DamagedRunError as error:
            skipped.append(Skipped(source.path, str(error)))
    if not runs:
        first = skipped[0]
        raise UserError(f"none of {len(skipped)} runs can be read: {first.path}: {first.reason}")
    if not any(len(run) for _, run in runs):
        raise UserError("none of the runs has a finished trial yet")
    return runs, skipped


def _not_begun(source: Source) -> Run:
    nothing = {name: np.empty(0) for name in (*_NUMBERS, *_OPTIONAL)}
    record = source.record or {}
    return Run(
        source.path, record, nothing, np.empty(0, np.int64), (), (), (), 0, 0, np.empty(0, np.int64)
    )


@dataclass(frozen=True)
class Method:
    """The runs of one way to search, by seed.

    family: what its colour stands for: the same method with other settings.
    facet: its acquisition function, where the panel has several; methods by name have none.
    """

    label: str
    family: str
    facet: str
    runs: Mapping[int, Run]

    @property
    def guided(self) -> bool:
        return self.family == "guided"


@dataclass(frozen=True)
class Panel:
    """Runs that can be compared.

    facts: the settings that they share because they are of this panel.
    """

    name: str
    facts: Mapping[str, Any]
    methods: tuple[Method, ...]

    @property
    def task(self) -> str:
        """What has one optimum, whatever the panel."""
        return repr([self.facts.get(key) for key in _TASK])

    @property
    def slug(self) -> str:
        """Its name as that of a file."""
        text = self.name.replace("<=", "-max").replace(">=", "-min")
        return re.sub(r"[^\w.+-]+", "-", text).strip("-")

    @property
    def runs(self) -> list[Run]:
        return [run for method in self.methods for run in method.runs.values()]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for method in self.methods for seed in method.runs})

    @property
    def synthetic(self) -> bool:
        return self.facts["evaluator"] == "toy"

    @property
    def usual_budget(self) -> int:
        """That of most of its runs; the larger of equals."""
        counts = Counter(run.budget for run in self.runs)
        return max(counts, key=lambda budget: (counts[budget], budget))


def make_panels(
    runs: Sequence[tuple[str, Run]], split: Sequence[str] = ()
) -> tuple[list[Panel], list[Skipped]]:
    """Panels by name, and the runs that are there twice: the longer of two is kept.

    runs: with the group that an experiment has them in.
    split: further settings of which each value gets panels of its own.

    Runs of different batch sizes are in panels of their own, unless an experiment groups them.
    """
    settings = {key for _, run in runs for key in run.config} - {"seed", "budget"}
    if unknown := set(split) - settings:
        raise UserError(
            f"unknown setting {min(unknown)!r} to split by: choose from "
            f"{', '.join(sorted(settings - set(_PANEL)))}"
        )
    by_key: dict[tuple[str, str], list[Run]] = {}
    for group, run in runs:
        keys = (*(_TASK if group else _PANEL), *split)
        by_key.setdefault((group, _panel_name(run.config, keys, split)), []).append(run)
    alone = Counter(group for group, _ in by_key)
    panels, twice = [], []
    for (group, name), members in sorted(by_key.items()):
        varied = {run.config.get("batch_size") for run in members}
        facts = {key: members[0].config.get(key) for key in (*_PANEL, *split)}
        facts["batch_size"] = varied.pop() if len(varied) == 1 else "several"
        methods, doubles = _methods(members, {*_TASK, *split})
        title = (group if alone[group] == 1 else f"{group}: {name}") if group else name
        panels.append(Panel(title, facts, methods))
        twice += doubles
    return panels, twice


def _panel_name(config: Mapping[str, Any], keys: Sequence[str], split: Sequence[str]) -> str:
    parts = [config["space"], config["dataset"], config.get("objective", "valid")]
    if config["evaluator"] == "toy":
        parts = [config["space"]]
    parts += config.get("constraint") or []
    if config.get("latency_table"):
        parts.append(config["latency_table"])
    if "batch_size" in keys and config.get("batch_size", 1) != 1:
        parts.append(f"batch{config['batch_size']}")
    parts += [_shown(key, config.get(key)) for key in split]
    return "-".join(part.replace(" ", "") for part in parts if part)


def _shown(key: str, value: Any) -> str:
    """A setting in a label: names speak for themselves."""
    if key == "acq":
        return str(value).upper()
    if key in _NAMES:
        return str(value)
    if key == "prior":
        return _shown_prior(value)
    shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{key.replace('_', '-')} {shown}"


def _shown_prior(contents: Sequence[str]) -> str:
    """The tasks of the earlier runs; without any, nothing."""
    return f"prior {', '.join(map(task_of_prior, contents))}" if contents else ""


def _share_seeds(runs: Sequence[Run]) -> bool:
    """Whether runs of one seed differ in nothing but the content of their earlier runs."""
    contents: dict[str, set[str]] = {}
    for run in runs:
        others = {**run.config, "prior": _shown_prior(run.config["prior"]), "budget": None}
        contents.setdefault(repr(sorted(others.items())), set()).add(repr(run.config["prior"]))
    return any(len(found) > 1 for found in contents.values())


def _methods(runs: Sequence[Run], panel: set[str]) -> tuple[tuple[Method, ...], list[Skipped]]:
    """The methods of a panel: guided first, then by label.

    Earlier runs are named by their tasks, so that every seed may have its own; in full where that
    would make one method of several.
    """
    keys = {key for run in runs for key in run.config} - panel
    keys -= {"seed", "budget", "prior", *_NAMES}
    in_full = _share_seeds(runs)
    others = sorted(key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1)
    unnamed = [run.config for run in runs if preset(run.config) is None]
    varied = [
        key for key in ("surrogate", "acq") if len({str(config[key]) for config in unnamed}) > 1
    ]
    found: dict[str, tuple[str, str, dict[int, Run]]] = {}
    twice = []
    for run in sorted(runs, key=len, reverse=True):
        config = run.config
        name = preset(config)
        family = name or str(config["strategy"])
        extra = [_shown(key, config[key]) for key in varied if name is None and key not in panel]
        extra += [_shown(key, config.get(key)) for key in others]
        if config["prior"] and "prior" not in panel:
            prior = config["prior"]
            extra.append(f"prior {', '.join(prior)}" if in_full else _shown_prior(prior))
        label = " · ".join([family, *extra])
        facet = _shown("acq", config["acq"]) if "acq" in varied and name is None else ""
        _, _, by_seed = found.setdefault(label, (family, facet, {}))
        if run.seed in by_seed:
            twice.append(Skipped(run.path, f"the same run as {by_seed[run.seed].path}"))
        else:
            by_seed[run.seed] = run
    methods = [
        Method(label, family, facet, dict(sorted(by_seed.items())))
        for label, (family, facet, by_seed) in found.items()
    ]
    methods.sort(key=lambda method: (not method.guided, method.label))
    return tuple(methods), twice


def preset(config: Mapping[str, Any]) -> str | None:
    """The method by name that a run is, unless its strategy says as much already."""
    return _PRESETS.get((config["surrogate"], config["strategy"], config["acq"]))
