"""Evaluate a list of architectures: `python -m trainers.evaluate --help`."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from nag.cli import (
    UserError,
    WholeNumber,
    command_line,
    find_space,
    read_architectures,
    run,
    user_errors,
)
from nag.spaces import Architecture, StagedSpace
from trainers.base import EvaluationError, Evaluator
from trainers.build import Settings, build_evaluator
from trainers.rows import percent, write_rows
from trainers.training.task import NetworkOptions, Place

COLUMNS = ("arch", "value", "status", "error", "seconds")

app = command_line(
    "python -m trainers.evaluate",
    "python -m trainers.evaluate --space mobilenetv3 --evaluator surrogate --archs "
    "samples.txt --out values.parquet",
    "python -m trainers.evaluate --space mobilenetv3 --evaluator supernet --weights W.pt "
    "--data DIR --archs samples.txt --out values.parquet",
)


@app.default
def main(
    *,
    space: str,
    evaluator: str,
    archs: Path,
    out: Path,
    table: Path | None = None,
    dataset: str | None = None,
    objective: str = "valid",
    seed: WholeNumber = 0,
    networks: NetworkOptions = NetworkOptions(),
    place: Place = Place(),
) -> None:
    """Write one row per architecture, in the order of the list.

    Columns: arch, value (percent), status ("ok" or "failed"), error, seconds, and one per metric
    (macs, params, test in percent, ...).

    Parameters
    ----------
    space
        Search space of the architectures.
    evaluator
        surrogate, table, supernet, train or toy.
    archs
        Text file with one architecture per line, in the notation of the space.
    out
        Parquet file to write.
    table
        Parquet file of accuracies, for the table evaluator.
    dataset
        Data set; the evaluator's own default when not given.
    objective
        valid or test.
    seed
        Seed passed to every evaluation.
    networks
        Of the evaluators supernet and train.
    place
        Where networks are trained and measured.
    """
    search_space = find_space(space)
    built: Evaluator = user_errors(
        build_evaluator,
        search_space,
        evaluator,
        Settings(table=table, dataset=dataset, objective=objective, networks=networks, place=place),
    )
    architectures = read_architectures(archs, search_space)
    if not out.parent.is_dir():
        raise UserError(f"no such folder: {out.parent}")

    start = time.perf_counter()
    console = Console(stderr=True)
    rows = [
        evaluate_row(built, search_space, arch, seed)
        for arch in track(
            architectures,
            "evaluating",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    ]
    write_rows(rows, COLUMNS, out)
    failed = sum(row["status"] == "failed" for row in rows)
    console.print(
        f"{len(rows)} evaluated, {failed} failed, {time.perf_counter() - start:.2f} s: {out}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def evaluate_row(
    evaluator: Evaluator, space: StagedSpace, arch: Architecture, seed: int
) -> dict[str, object]:
    """One row of the output; an architecture that cannot be evaluated is a row with an error."""
    row: dict[str, object] = {"arch": space.to_str(arch)}
    start = time.perf_counter()
    try:
        found = evaluator.evaluate(arch, seed=seed)
    except EvaluationError as error:
        seconds = time.perf_counter() - start
        return row | {"status": "failed", "error": str(error), "seconds": seconds}
    row |= {"status": "ok", "seconds": found.seconds}
    if found.device:
        row["device"] = found.device
    return row | percent({"value": found.value, **found.metrics})


if __name__ == "__main__":
    run(app)
