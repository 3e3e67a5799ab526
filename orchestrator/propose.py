"""`python -m orchestrator.propose`: what to evaluate next, from values you already have."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
import torch
from cyclopts import Parameter

from nag.cli import WholeNumber, check_new, check_output, command_line, plain_console, run, section
from nag.errors import UserError
from nag.generator import DiffusionGenerator
from nag.predictors.base import Observations
from nag.spaces import Architecture, InvalidArchitectureError, StagedSpace, find_space
from orchestrator.build import Quantities, build_single_fidelity
from orchestrator.config import RunConfig
from orchestrator.history.trials import LARGEST
from orchestrator.methods import NONE
from trainers.build import unit_of
from trainers.rows import (
    PARTIAL,
    PERCENT,
    Unit,
    column_names,
    numbers,
    read_columns,
    read_texts,
    write_rows,
)

COLUMNS = ("arch", "predicted_mean", "predicted_std")

app = command_line(
    "python -m orchestrator.propose",
    "python -m orchestrator.propose --values trials.parquet --out next.parquet --batch-size 8",
    "python -m orchestrator.propose --values trials.parquet --out next.parquet --pool-size "
    "256 --batch-size 256 --constraint 'macs<=250e6'",
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Files:
    """The files to read and write.

    Parameters
    ----------
    values
        Parquet file with columns arch (published strings) and value (percent): the trials.parquet
        of a run, or the output of trainers.evaluate; may be repeated.
    out
        Parquet file to write: arch, predicted_mean and predicted_std (percent) and the quantities
        of --constraint and --pareto; most promising first, or, with --pareto, in random order of
        their limits. Must not exist yet.
    device
        Device of the generator: cpu, cuda, or auto (the GPU if there is one).
    """

    values: Annotated[tuple[Path, ...], Parameter(negative=())]
    out: Path
    device: str = "auto"


_NO_EFFECT = Parameter(show=False)


@Parameter(name="*", group=section("Search"))
@dataclass(frozen=True, kw_only=True)
class OneRound(RunConfig):
    """The settings of a run; those named here concern several rounds and have no effect."""

    budget: Annotated[WholeNumber, _NO_EFFECT] = RunConfig.budget
    n_init: Annotated[WholeNumber, _NO_EFFECT] = RunConfig.n_init
    schedule: Annotated[Literal["rounds", "async"], _NO_EFFECT] = RunConfig.schedule
    window: Annotated[WholeNumber, _NO_EFFECT] = RunConfig.window
    early_stopping: Annotated[Literal["none", "asha"], _NO_EFFECT] = RunConfig.early_stopping
    grace_epochs: Annotated[WholeNumber, _NO_EFFECT] = RunConfig.grace_epochs

    def without_effect(self) -> list[str]:
        """Those of the options named here that are given."""
        return [
            f"--{name.replace('_', '-')}"
            for name in OneRound.__annotations__
            if getattr(self, name) != getattr(RunConfig, name)
        ]


@app.default
def main(files: Files, config: OneRound = OneRound()) -> None:
    """Fit a surrogate predictor to your values and generate candidates with it, once.

    One round of run_bo without the evaluation: of --pool-size candidates, the best --batch-size by
    the acquisition function are written. None of them is in --values already, with or without a
    value. Statistics go to stdout as JSON. A fit needs two values; with fewer, the candidates are
    random feasible ones without predictions, as at the start of a run. Options of run_bo that
    concern several rounds, such as --budget, have no effect, which a warning says. The rows of
    --values have no order, so none is the latest evaluation: guided acts like guided-gen here.
    """
    check_output(files.out, ".parquet", (*files.values, *config.paths.values()))
    check_new(files.out)
    if config.surrogate == NONE:
        raise UserError(
            "ranking candidates needs a surrogate, not --surrogate none or a method without one"
        )
    if config.strategy == "guided":
        config = replace(config, strategy="guided-gen")
    space, unit = find_space(config.space), unit_of(config.evaluator_name)
    torch.set_num_threads(config.threads)
    observations, seen = read_observations(space, files.values, unit)
    generator = DiffusionGenerator(config.generator(files.device))
    optimizer = build_single_fidelity(config, generator)
    if unused := config.without_effect():
        plain_console().print(f"warning: no effect here: {', '.join(unused)}")
    started = perf_counter()
    suggestion = optimizer.suggest(
        observations,
        seen,
        config.batch_size,
        np.random.default_rng([config.seed, 0]),
    )
    quantities = Quantities(optimizer.constraints, optimizer.pareto).properties
    rows = [
        {
            "arch": space.to_str(arch),
            "predicted_mean": None if predicted is None else unit.times * predicted[0],
            "predicted_std": None if predicted is None else unit.times * predicted[1],
            **{quantity.name: float(quantity([arch])[0]) for quantity in quantities},
        }
        for arch, predicted in zip(suggestion.archs, suggestion.predicted, strict=True)
    ]
    write_rows(rows, COLUMNS, files.out)
    seconds = {**suggestion.seconds, "all": perf_counter() - started}
    statistics = {
        "observations": len(observations),
        "proposed": len(rows),
        **suggestion.diagnostics,
        "seconds": {phase: round(s, 3) for phase, s in seconds.items()},
    }
    sys.stdout.write(json.dumps(statistics, indent=1) + "\n")


def read_observations(
    space: StagedSpace, paths: Sequence[Path], unit: Unit = PERCENT
) -> tuple[Observations, frozenset[Architecture]]:
    """Architectures with values, in a unit, from parquet files, and all architectures in them.

    Failed evaluations have no value, or an infinite or too large one; values of low fidelity or of
    stopped trainings are ignored.
    """
    archs, values, seen = [], [], set()
    for path in paths:
        for number, (text, value) in enumerate(_read(path)):
            known = abs(value) <= LARGEST  # not if it is NaN
            try:
                seen.add(arch := space.from_str(text or ""))
            except InvalidArchitectureError as error:
                if known:
                    raise UserError(f"{path}, row {number}: {error}") from error
                continue  # which may be why it has no value
            if known:
                archs.append(arch)
                values.append(value / unit.times)
    return Observations(tuple(archs), np.array(values)), frozenset(seen)


def _read(path: Path) -> list[tuple[str | None, float]]:
    """Rows: the architecture, and its value, NaN unless the evaluation was complete."""
    partial = sorted(set(PARTIAL) & set(column_names(path)))
    columns = read_columns(path, ["arch", "value", *partial])
    texts, values = read_texts(path), numbers(path, "value", columns["value"]).tolist()
    return [
        (text, value if all(epoch is None for epoch in epochs) else math.nan)
        for text, value, *epochs in zip(texts, values, *(columns[n] for n in partial), strict=True)
    ]


if __name__ == "__main__":
    run(app)
