"""A run as read back, while it is in progress or afterwards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nag.errors import UserError
from nag.spaces import find_space
from orchestrator.history.record import DAMAGE, DamagedRunError, read_record
from orchestrator.history.trials import History
from orchestrator.storage.journal import read_journal
from orchestrator.storage.location import Location, reason
from trainers.base import FULL_EPOCHS
from trainers.build import USUAL_DATASETS
from trainers.rows import ACCURACIES

Numbers = NDArray[np.float64]

_PATHS = ("table", "data", "weights", "score_weights", "latency_table")
_OF_OUTCOMES = ("value", "seconds")
_METRICS = ("test", "train_seconds")
_OF_TRIALS = ("predicted_mean", "predicted_std")


@dataclass(frozen=True)
class Run:
    """The first n trials of a run, in order, up to the first without an outcome.

    Its length is that of its curves: the number of whole evaluations spent, where a low-fidelity
    trial counts as a fraction. Without such trials it is n.

    record: config.json.
    columns: (n,) for each number of a trial, NaN if missing; accuracies are fractions. For a
        low-fidelity trial they are NaN, because it does not measure its architecture's accuracy.
    metrics: (n,) for each further measurement of any trial, such as macs, NaN if missing.
    costs: (n,) epochs of training; FULL_EPOCHS make one evaluation.
    iteration: (n,) the round of each trial.
    rounds: the diagnostics of each round.
    seconds: (R,) that each phase took in each of R rounds.
    num_finished: trials with an outcome, including any after these n.
    num_failed: trials that failed.
    exhausted: whether it has ended because its space holds no more architectures to propose.
    patience: if it has ended because of it, after how many evaluations without a better one.
    """

    path: Location
    record: Mapping[str, Any]
    columns: Mapping[str, Numbers]
    metrics: Mapping[str, Numbers]
    iteration: NDArray[np.int64]
    sources: tuple[str, ...]
    archs: tuple[str, ...]
    rounds: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, Numbers]
    num_finished: int
    num_failed: int
    costs: NDArray[np.int64]
    exhausted: bool = False
    patience: int | None = None

    def __len__(self) -> int:
        return int(self.costs.sum()) // FULL_EPOCHS

    @cached_property
    def ends(self) -> Numbers:
        """(n,) evaluations spent by the end of each trial: 1, 2, 3, ... at full fidelity."""
        return np.cumsum(self.costs) / FULL_EPOCHS

    @property
    def starts(self) -> Numbers:
        """(n,) evaluations spent before each trial."""
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
        return len(self) >= self.budget or self.exhausted or self.patience is not None

    @cached_property
    def incumbent(self) -> NDArray[np.int64]:
        """(n,) index of the best trial so far; -1 before the first value."""
        return best_so_far(self.columns["value"])

    def of_incumbent(self, name: str) -> Numbers:
        """(n,) a column's value for the best trial so far."""
        return np.append(self.columns[name], np.nan)[self.incumbent]

    def amounts(self, quantity: str) -> Numbers:
        """(n,) amount of a quantity of each trial, NaN if it was not measured."""
        return self.metrics.get(quantity, np.full(len(self.iteration), np.nan))

    def after_evaluations(self, after_trials: Numbers) -> Numbers:
        """(n,) numbers, each after a trial -> (len,) after 1, 2, 3, ... evaluations."""
        last = np.searchsorted(self.ends, np.arange(1, len(self) + 1), side="right") - 1
        return after_trials[last]


def known_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its data set and any earlier runs filled in, and files by name only."""
    config = {"prior": [], **record["config"]}
    names = {key: config[key] and PurePath(config[key]).name for key in _PATHS if key in config}
    dataset = config["dataset"] or USUAL_DATASETS.get(config["evaluator"])
    return {**config, **names, "dataset": dataset}


def read_run(path: Location) -> Run:
    """The run in a folder, even while in progress; raises DamagedRunError. Nothing is written."""
    try:
        record = read_record(path)
        history = History(find_space(record["config"]["space"]))
        history.replay(read_journal(path))
    except OSError as error:
        raise DamagedRunError(f"{error.filename or path}: {reason(error)}") from None
    except UserError as error:
        raise DamagedRunError(str(error)) from None
    try:
        return _run(path, record, history)
    except DAMAGE:
        raise DamagedRunError("journal.jsonl holds trials that this version cannot read") from None


def _run(path: Location, record: Mapping[str, Any], history: History) -> Run:
    gap = next((i for i in range(len(history.trials)) if i not in history.outcomes), None)
    trials = history.trials[:gap]
    outcomes = [history.outcomes[trial.trial] for trial in trials]
    columns = {
        **{name: _numbers(getattr(one, name) for one in outcomes) for name in _OF_OUTCOMES},
        **{name: _numbers(one.metrics.get(name) for one in outcomes) for name in _METRICS},
        **{name: _numbers(getattr(one, name) for one in trials) for name in _OF_TRIALS},
    }
    names = dict.fromkeys(name for one in outcomes for name in one.metrics)
    failed = np.isnan(columns["value"])
    low = [
        trial.epochs is not None or outcome.stopped is not None
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]
    for name in columns.keys() & set(ACCURACIES):
        columns[name][np.array(low, dtype=bool)] = np.nan
    return Run(
        path,
        record,
        columns,
        {name: _numbers(one.metrics.get(name) for one in outcomes) for name in names},
        np.array([trial.iteration for trial in trials], dtype=np.int64),
        tuple(trial.strategy for trial in trials),
        tuple(history.space.to_str(trial.arch) for trial in trials),
        tuple(found["diagnostics"] for found in history.rounds),
        history.seconds(),
        len(history.outcomes),
        int(failed.sum()),
        np.array([trial.work for trial in trials], dtype=np.int64),
        history.exhausted and len(history.outcomes) == len(history.trials),
        history.patience,
    )


def _numbers(found: Iterable[float | None]) -> Numbers:
    """NaN for missing numbers."""
    return np.array(list(found), dtype=float)


def not_begun(path: Location, record: Mapping[str, Any]) -> Run:
    """A run of which only the record exists."""
    return _run(path, record, History(find_space(record["config"]["space"])))


def best_so_far(values: Numbers) -> NDArray[np.int64]:
    """Index of the best of (n,) values up to each; -1 before the first value, NaN is no value.

    The first of equals is the best, as in the store.
    """
    filled = np.where(np.isnan(values), -np.inf, values)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(filled)[:-1]])[: len(filled)]
    return np.maximum.accumulate(np.where(filled > before, np.arange(len(filled)), -1))
