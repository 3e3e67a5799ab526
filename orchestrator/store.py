"""The store of a run: an append-only journal, from which everything else is derived.

    OUT/config.json     configuration, versions, command, machine
    OUT/journal.jsonl   one line per event: a batch proposed, a trial finished
    OUT/trials.parquet  one row per finished trial, rewritten now and then, and at the end

A batch is journalled before it runs and an outcome as soon as it is known, each with the time of
day, so whatever is killed when, the next process finds the trials still to run. A line torn by a
crash is dropped. A line is fsynced when what it tells took longer to find than an fsync: should the
machine itself go down, the last few trials that cost next to nothing may have to be run again.
"""

import fcntl
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from nag.cli import UserError, find_space, package_version
from nag.predictors.base import Observations
from nag.spaces import Architecture, SearchSpace
from orchestrator.bayesopt import Suggestion
from orchestrator.config import RunConfig, difference
from orchestrator.trial import SCHEMA, Outcome, Trial
from trainers.rows import percent, write_rows

_WORTH_AN_FSYNC = 0.02  # seconds
COLUMNS = (
    "trial",
    "arch",
    "value",
    "status",
    "error",
    "iteration",
    "strategy",
    "seed",
    "seconds",
    "attempts",
    "predicted_mean",
    "predicted_std",
)


class RunStore:
    """State of one run. Open it with `RunStore.open`, which also locks the directory.

    proposed_at, finished_at: when each round and each outcome was journalled, in seconds since the
    epoch; None for what an older version journalled.
    """

    def __init__(self, out: Path, space: SearchSpace, seed: int, journal: IO[bytes]) -> None:
        self.out, self.space, self.seed = out, space, seed
        self.trials: list[Trial] = []
        self.outcomes: dict[int, Outcome] = {}
        self.rounds: list[dict[str, Any]] = []  # diagnostics of each iteration
        self.spent = Fraction(0)  # evaluations of full fidelity that the outcomes have cost
        self.proposed_at: list[float | None] = []
        self.finished_at: dict[int, float | None] = {}
        self._journal = journal

    @classmethod
    def open(
        cls, out: Path, config: RunConfig, space: SearchSpace, command: Sequence[str] | None = None
    ) -> "RunStore":
        """Create the run or continue it; raises UserError when `out` holds another run.

        command: to be recorded; by default that of this process.
        """
        try:
            check_same_run(out, config)
            out.mkdir(parents=True, exist_ok=True)
            store = cls(out, space, config.seed, (out / "journal.jsonl").open("a+b"))
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}") from error
        try:
            fcntl.flock(store._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            store._journal.truncate(store._replay())
            write_json(out / "config.json", _record(config, command or sys.orig_argv))
        except BlockingIOError:
            store.close()
            raise UserError(f"{out} is in use by another process") from None
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, out: Path) -> "RunStore":
        """A run as it is now, also while another process goes on with it; raises UserError.

        Nothing is locked or written.
        """
        config = read_record(out)["config"]
        space = find_space(config["space"])
        try:
            journal = (out / "journal.jsonl").open("rb")
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        with closing(cls(out, space, config["seed"], journal)) as store:
            store._replay()
        return store

    @property
    def num_finished(self) -> int:
        return len(self.outcomes)

    @property
    def next_iteration(self) -> int:
        return len(self.rounds)

    def pending(self) -> list[Trial]:
        """Trials proposed but without an outcome, in order."""
        return [trial for trial in self.trials if trial.trial not in self.outcomes]

    def seen(self) -> frozenset[Architecture]:
        """Everything ever proposed, failed trials included."""
        return frozenset(trial.arch for trial in self.trials)

    @property
    def first_open_round(self) -> int:
        """The first round with a trial that has no outcome; the next round where all have one."""
        return min((trial.iteration for trial in self.pending()), default=self.next_iteration)

    def observations(self, before: int | None = None) -> Observations:
        """The successful trials of full fidelity, of the rounds before `before` or of all.

        Ordered by trial number, whatever order they finished in.
        """
        return self._observed(
            trial
            for trial in self.trials
            if trial.epochs is None and (before is None or trial.iteration < before)
        )

    def unknown(self, before: int | None = None) -> tuple[Architecture, ...]:
        """What was proposed besides: without an outcome, or of round `before` or later."""
        return tuple(
            trial.arch
            for trial in self.trials
            if trial.trial not in self.outcomes
            or (before is not None and trial.iteration >= before)
        )

    def low_fidelity(self) -> Observations:
        """The other successful trials, in the same order."""
        return self._observed(trial for trial in self.trials if trial.epochs is not None)

    def rung(self) -> Observations:
        """Those of the last round, where that was one of low fidelity."""
        last = len(self.rounds) - 1
        return self._observed(
            trial for trial in self.trials if trial.epochs is not None and trial.iteration == last
        )

    def _observed(self, trials: Iterable[Trial]) -> Observations:
        pairs = [
            (trial.arch, outcome.value)
            for trial in trials
            if (outcome := self.outcomes.get(trial.trial)) and outcome.value is not None
        ]
        return Observations(
            tuple(arch for arch, _ in pairs), np.array([value for _, value in pairs], dtype=float)
        )

    @property
    def best(self) -> tuple[Trial, float] | None:
        """The best successful trial of full fidelity so far and its value; the first of equals."""
        found = [
            (trial, outcome.value)
            for trial in self.trials
            if trial.epochs is None
            and (outcome := self.outcomes.get(trial.trial))
            and outcome.value is not None
        ]
        return max(found, key=lambda pair: pair[1], default=None)

    def propose(self, suggestion: Suggestion) -> list[Trial]:
        """Turn a suggestion into trials, in the journal before this returns."""
        first, iteration = len(self.trials), self.next_iteration
        fidelity = {} if suggestion.epochs is None else {"epochs": suggestion.epochs}
        trials = [
            {
                "trial": first + i,
                "iteration": iteration,
                "arch": self.space.to_str(arch),
                "strategy": suggestion.strategy,
                "seed": int(np.random.SeedSequence([self.seed, first + i]).generate_state(1)[0]),
                "predicted_mean": predicted[0] if predicted else None,
                "predicted_std": predicted[1] if predicted else None,
                **fidelity,
            }
            for i, (arch, predicted) in enumerate(
                zip(suggestion.archs, suggestion.predicted, strict=True)
            )
        ]
        self._append(
            {
                "event": "proposed",
                "trials": trials,
                "seconds": dict(suggestion.seconds),
                "diagnostics": dict(suggestion.diagnostics),
            },
            worth=sum(suggestion.seconds.values()),
        )
        return self.trials[first:]

    def record(self, outcome: Outcome) -> None:
        """Keep an outcome, in the journal before this returns; a second one is ignored."""
        if outcome.trial not in self.outcomes:
            self._append({"event": "finished", **asdict(outcome)}, worth=outcome.seconds)

    def compact(self) -> None:
        """Rewrite trials.parquet from the journal, which is fsynced first."""
        os.fsync(self._journal.fileno())
        write_rows(self.rows(), COLUMNS, self.out / "trials.parquet")

    def rows(self) -> list[dict[str, Any]]:
        """One row per finished trial, in order, accuracies in percent.

        With their `epochs` where not all are of full fidelity, which has none.
        """
        rows = []
        one_fidelity = all(trial.epochs is None for trial in self.trials)
        for trial in self.trials:
            outcome = self.outcomes.get(trial.trial)
            if outcome is None:
                continue
            row = {**vars_of(trial), **vars_of(outcome), "arch": self.space.to_str(trial.arch)}
            metrics = row.pop("metrics")
            if one_fidelity:
                del row["epochs"]
            for name in ("predicted_mean", "predicted_std"):
                row[name] = None if row[name] is None else 100 * row[name]
            row |= percent({"value": row["value"]})
            rows.append(row | {name: x for name, x in percent(metrics).items() if name not in row})
        return rows

    def close(self) -> None:
        self._journal.close()

    def _append(self, event: dict[str, Any], worth: float) -> None:
        event["at"] = round(time.time(), 3)
        self._journal.write(json.dumps(event).encode() + b"\n")
        self._journal.flush()
        if worth > _WORTH_AN_FSYNC:
            os.fsync(self._journal.fileno())
        self._apply(event)

    def _replay(self) -> int:
        """Rebuild the state; returns how many bytes are intact.

        A torn last line is not, damage elsewhere is a UserError.
        """
        self._journal.seek(0)
        lines = self._journal.readlines()
        intact = 0
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if number == len(lines) and (event is None or not line.endswith(b"\n")):
                break
            try:
                self._apply(event)
            except (ValueError, KeyError, TypeError, AttributeError):
                journal = self.out / "journal.jsonl"
                raise UserError(f"{journal}, line {number} is damaged") from None
            intact += len(line)
        return intact

    def _apply(self, event: dict[str, Any]) -> None:
        at = event.pop("at", None)
        match event.pop("event"):
            case "proposed":
                trials = event.pop("trials")
                self.trials += [
                    Trial(**{**trial, "arch": self.space.from_str(trial["arch"])})
                    for trial in trials
                ]
                self.rounds.append(event)
                self.proposed_at.append(at)
            case "finished":
                outcome = Outcome(**event)
                if not 0 <= outcome.trial < len(self.trials):
                    raise ValueError(f"trial {outcome.trial} was never proposed")
                if outcome.trial not in self.outcomes:
                    self.spent += self.trials[outcome.trial].cost
                    self.finished_at[outcome.trial] = at
                self.outcomes[outcome.trial] = outcome
            case other:
                raise ValueError(f"unknown event {other!r}")


def vars_of(record: Trial | Outcome) -> dict[str, Any]:
    """The fields of a record, without copying what they hold."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _record(config: RunConfig, command: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "config": {**config.identity(), "budget": config.budget},
        "hash": config.hash(),
        **provenance(command),
    }


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What made a result: the command (its first word is some Python), versions, the machine."""
    packages = ("diffusionnag-bo", "torch", "ray", "numpy", "scipy", "pandas", "pyarrow")
    versions = {package: package_version(package) for package in packages}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return {
        "command": shlex.join(["python", *command[1:]]),
        "versions": {"python": platform.python_version(), **versions},
        "machine": ", ".join([machine, *gpus]),
    }


def check_same_run(out: Path, config: RunConfig) -> None:
    """Raise UserError unless `out` is free or holds a run of this configuration."""
    record_file = out / "config.json"
    if not record_file.exists():
        if out.exists() and not (out.is_dir() and _is_empty(out)):
            raise UserError(f"{out} exists and is not a run: choose another --out")
        return
    record = read_record(out)
    stored, digest = dict(record["config"]), record["hash"]
    if digest != config.hash():
        stored.pop("budget", None)
        changes = difference(stored, config.identity()) or "its hash differs"
        raise UserError(
            f"{record_file.parent} holds a run of another configuration ({changes}): "
            "choose another --out"
        )


def read_record(out: Path) -> Mapping[str, Any]:
    """What config.json says of a run; raises UserError."""
    path = out / "config.json"
    try:
        record: Mapping[str, Any] = json.loads(path.read_bytes())
        schema = record["schema"]
        if not (isinstance(record["config"], dict) and record["hash"]):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"no run in {out}: give the --out of a run") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: choose another folder") from None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this version writes {SCHEMA}")
    return record


def _is_empty(out: Path) -> bool:
    """Nothing but what a run leaves that is killed while it starts."""
    return all(
        fnmatch(path.name, "config.json.*.tmp")
        or (path.name == "journal.jsonl" and not path.stat().st_size)
        for path in out.iterdir()
    )


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Written aside and renamed, so that `path` is never half a file."""
    aside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    with aside.open("w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
