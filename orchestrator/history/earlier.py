"""Earlier runs that a search learns from: `--prior RUN`."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from cyclopts import Token

from nag.errors import UserError, counted
from nag.predictors.base import Observations
from nag.spaces import InvalidArchitectureError, SearchSpace
from orchestrator.history.record import DamagedRunError
from orchestrator.history.run import read_run
from orchestrator.storage.journal import unused
from orchestrator.storage.lease import InUseError
from orchestrator.storage.location import Location, locate, reason

_MIN_TRIALS = 2  # below this there is nothing to fit


@dataclass(frozen=True)
class EarlierRun:
    """The data of an earlier run, read once: later changes to its folder do not matter.

    task: its data set, or its space if there is none.
    archs, values: its n successful trials in order, as published strings and fractions.
    """

    path: Location = field(compare=False)
    space: str
    task: str
    archs: tuple[str, ...]
    values: tuple[float, ...]

    @cached_property
    def content(self) -> str:
        """A line that identifies its trials. `task_of_prior` extracts the task from it."""
        pairs = list(zip(self.archs, self.values, strict=True))
        digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
        return f"{self.task} ({len(pairs)} trials, {digest[:16]})"

    def observations(self, space: SearchSpace) -> Observations:
        """Raises UserError for architectures that are not in the space."""
        try:
            archs = tuple(space.from_str(text) for text in self.archs)
        except InvalidArchitectureError as error:
            raise UserError(f"--prior {self.path}: {error}") from None
        return Observations(archs, np.array(self.values))


def task_of_prior(content: str) -> str:
    """The task of an earlier run, from the line that identifies it: see `EarlierRun.content`."""
    return content.rpartition(" (")[0]


def read_earlier_run(path: Location) -> EarlierRun:
    """The run in a folder, which is not changed; raises UserError if it is unusable."""
    try:
        with unused(path):
            run = read_run(path)
    except InUseError as error:
        raise InUseError(f"{error}: --prior needs a run that no longer changes") from None
    except (DamagedRunError, OSError) as error:
        raise UserError(
            f"{path} is not a run ({reason(error)}): give the --out of an earlier run "
            "that has begun"
        ) from None
    values = run.columns["value"]
    known = np.isfinite(values)
    if known.sum() < _MIN_TRIALS:
        raise UserError(
            f"{path} has {counted(known.sum(), 'successful trial')}: at least {_MIN_TRIALS} are "
            "needed"
        )
    space = str(run.config["space"])
    archs = tuple(arch for arch, keep in zip(run.archs, known, strict=True) if keep)
    task = str(run.config["dataset"] or space)
    return EarlierRun(path, space, task, archs, tuple(values[known].tolist()))


def earlier_runs(
    given: EarlierRun | Location | str | Iterable[EarlierRun | Location | str],
) -> tuple[EarlierRun, ...]:
    """One or several runs; folders and URIs are read. Raises UserError."""
    several = [given] if isinstance(given, EarlierRun | Location | str) else given
    return tuple(run if isinstance(run, EarlierRun) else _read(run) for run in several)


def _read(place: Location | str) -> EarlierRun:
    return read_earlier_run(locate(place) if isinstance(place, str) else place)


def from_command_line(type_: Any, tokens: Sequence[Token]) -> tuple[EarlierRun, ...]:
    """Converter for cyclopts: one run each time the option is given."""
    del type_
    return earlier_runs(token.value for token in tokens)
