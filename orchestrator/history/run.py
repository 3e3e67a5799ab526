"""A run as it is read, while it goes on or afterwards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nag.cli import find_space
from nag.errors import UserError
from orchestrator.history.record import DAMAGE, DamagedRunError, read_record
from orchestrator.history.trials import History
from orchestrator.storage.journal import read_journal
from orchestrator.storage.location import Location, reason
from trainers.base import FULL_EPOCHS
from trainers.rows import ACCURACIES

Numbers = NDArray[np.float64]

_DATASETS = {"table": "cifar10", "surrogate": "imagenet"}  # of an evaluator, where none is chosen
_PATHS = ("table", "data", "weights", "score_weights", "latency_table")
_OF_OUTCOMES = ("value", "seconds")
_METRICS = ("test", "train_seconds")
_OF_TRIALS = ("predicted_mean", "predicted_std")


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
    rounds: the diagnostics of each round.
    seconds: (R,) that each phase took in each of R rounds.
    num_finished: trials with an outcome, those behind a gap included.
    num_failed: trials that failed.
    exhausted: whether it has ended because its space holds no more architectures to propose.
    """

    path: Location
    record: Mapping[str, Any]
    columns: Mapping[str, Numbers]
    iteration: NDArray[np.int64]
    sources: tuple[str, ...]
    archs: tuple[str, ...]
    rounds: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, Numbers]
    num_finished: int
    num_failed: int
    costs: NDArray[np.int64]
    exhausted: bool = False

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
        return len(self) >= self.budget or self.exhausted

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
    """A configuration with its data set and earlier runs, none or some; of files only the names."""
    config = {"prior": [], **record["config"]}
    names = {key: config[key] and PurePath(config[key]).name for key in _PATHS if key in config}
    dataset = config["dataset"] or _DATASETS.get(config["evaluator"])
    return {**config, **names, "dataset": dataset}


def read_run(path: Location) -> Run:
    """The run in a folder, also while it goes on; raises DamagedRunError. Nothing is written."""
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
        raise DamagedRunError("journal.jsonl does not hold trials of this version") from None


def _run(path: Location, record: Mapping[str, Any], history: History) -> Run:
    gap = next((i for i in range(len(history.trials)) if i not in history.outcomes), None)
    trials = history.trials[:gap]
    outcomes = [history.outcomes[trial.trial] for trial in trials]
    columns = {
        **{name: _numbers(getattr(one, name) for one in outcomes) for name in _OF_OUTCOMES},
        **{name: _numbers(one.metrics.get(name) for one in outcomes) for name in _METRICS},
        **{name: _numbers(getattr(one, name) for one in trials) for name in _OF_TRIALS},
    }
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
        np.array([trial.iteration for trial in trials], dtype=np.int64),
        tuple(trial.strategy for trial in trials),
        tuple(history.space.to_str(trial.arch) for trial in trials),
        tuple(found["diagnostics"] for found in history.rounds),
        history.seconds(),
        len(history.outcomes),
        int(failed.sum()),
        np.array([trial.work for trial in trials], dtype=np.int64),
        history.exhausted and len(history.outcomes) == len(history.trials),
    )


def _numbers(found: Iterable[float | None]) -> Numbers:
    """NaN where there is none."""
    return np.array(list(found), dtype=float)


def not_begun(path: Location, record: Mapping[str, Any]) -> Run:
    """A run of which there is no more than its record."""
    return _run(path, record, History(find_space(record["config"]["space"])))


def best_so_far(values: Numbers) -> NDArray[np.int64]:
    """Which trial of (n,) is the best up to each; -1 before the first value, NaN is none.

    The first of equals is the best, as in the store.
    """
    filled = np.where(np.isnan(values), -np.inf, values)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(filled)[:-1]])[: len(filled)]
    return np.maximum.accumulate(np.where(filled > before, np.arange(len(filled)), -1))
