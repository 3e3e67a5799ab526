"""Evaluate a list of architectures: `python -m trainers.evaluate --help`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from nag.cli import (
    WholeNumber,
    check_new,
    check_output,
    check_seed,
    command_line,
    end_interrupted,
    plain_console,
    progress_bar,
    run,
)
from nag.errors import one_line
from nag.files import sha256_of
from nag.spaces import Architecture, StagedSpace, find_space
from trainers.base import EvaluationError, Evaluator
from trainers.build import EvaluatorSettings, build_evaluator, unit_of
from trainers.partial import Partial
from trainers.rows import PERCENT, Unit, read_list, write_rows
from trainers.training.loop import of_the_machine
from trainers.training.task import NetworkOptions, Place, digest_of_images

COLUMNS = ("arch", "value", "status", "error", "seconds")
_SAY_SECONDS = 60  # between progress lines if there is no terminal

Row = dict[str, object]

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
) -> int:
    """Evaluate a list of architectures: one row for each, in the order of the list.

    Columns: arch, value (accuracies in percent), status ("ok" or "failed"), error, seconds, and one
    per metric (macs, params, test in percent, ...). Duplicate architectures are evaluated once.

    Repeat an interrupted command to continue it; until then its rows are in OUT.partial. They also
    stay there if the machine failed on an architecture, e.g. ran out of memory: repeat the command
    to retry it. The exit code is 1 if all failed.

    Parameters
    ----------
    space
        Search space of the architectures: mobilenetv3, nasbench201 or toy.
    evaluator
        surrogate (embedded estimate of ImageNet-1K top-1), table, supernet (weights taken from
        one), train or toy.
    archs
        Text file with one architecture per line, in the notation of the space, or parquet file with
        a column arch, such as orchestrator.propose writes.
    out
        Parquet file to write; a finished one is not overwritten.
    table
        Parquet file for the table evaluator, with columns arch, c10_valid_200 and so on, in
        percent; see docs/experiments.md.
    dataset
        Data set of the table: cifar10 (default), cifar100 or imagenet16-120.
    objective
        Accuracy of the table to write as value: valid or test.
    seed
        Seed of every evaluation. Unfinished rows and trainings with another seed are not reused.
    networks
        Options of the evaluators supernet and train.
    place
        Where networks are trained and measured.
    """
    search_space = find_space(space)
    check_seed(seed)
    if place.checkpoints is not None:  # a resumed training keeps its original seed
        place = replace(place, checkpoints=place.checkpoints / f"seed-{seed}")
    settings = EvaluatorSettings(
        table=table, dataset=dataset, objective=objective, networks=networks, place=place
    )
    built = build_evaluator(search_space, evaluator, settings)
    architectures = read_list(archs, search_space)
    check_output(out, ".parquet", (archs, table, networks.weights, networks.data))
    unfinished = out.with_name(f"{out.name}.partial")
    if not unfinished.exists():
        check_new(out)

    start = perf_counter()
    console = plain_console()
    partial = Partial(
        unfinished,
        {"space": space, "evaluator": evaluator, "seed": seed, **conditions(settings)},
    )
    with closing(partial):
        rows, unlucky = _evaluate(
            partial, built, search_space, architectures, seed, unit_of(evaluator), console
        )
        write_rows(rows, COLUMNS, out)
        if not unlucky:
            partial.remove()
    failed, seconds = [row for row in rows if row["status"] == "failed"], perf_counter() - start
    console.print(f"{len(rows)} evaluated, {len(failed)} failed, {seconds:.2f} s: {out}")
    if failed:
        console.print(f"first failure, {failed[0]['arch']}: {failed[0]['error']}")
    if unlucky:
        console.print(
            f"repeat the command to retry the {unlucky} that failed because of the machine"
        )
    return 1 if len(failed) == len(rows) else 0


def _evaluate(
    partial: Partial,
    built: Evaluator,
    space: StagedSpace,
    architectures: Sequence[Architecture],
    seed: int,
    unit: Unit,
    console: Console,
) -> tuple[list[Row], int]:
    """A row for each architecture, and how many of these failed because of the machine."""
    texts = [space.to_str(arch) for arch in architectures]
    rows: dict[object, Row] = {row["arch"]: row for row in partial.found}
    missing = {
        text: arch for text, arch in zip(texts, architectures, strict=True) if text not in rows
    }
    if rows:
        left = f"{len(missing):,} of {len({*texts}):,}"
        console.print(f"continuing from {partial.path}: {left} left")
    unlucky = 0
    try:
        with _progress(console, len(missing)) as advance:
            for text, arch in missing.items():
                rows[text], final = evaluate_row(built, space, arch, seed, unit)
                if final:
                    partial.add(rows[text])
                unlucky += not final
                advance(1)
    except KeyboardInterrupt:
        end_interrupted()
    return [rows[text] for text in texts], unlucky


def conditions(settings: EvaluatorSettings) -> dict[str, Any]:
    """What values depend on, for JSON; files by their content. Raises UserError."""
    networks = settings.networks
    found = {"dataset": settings.dataset, "objective": settings.objective, **asdict(networks)}
    for name, path in (("table", settings.table), ("weights", networks.weights)):
        found[name] = path and sha256_of(path)
    found["data"] = networks.data and digest_of_images(networks.data)
    return found


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to report progress to: a bar on a terminal, else an occasional line."""
    if console.is_terminal:
        with progress_bar(console, "evaluating", total) as advance:
            yield advance
        return
    done, started = 0, perf_counter()
    said = started

    def count(more: int) -> None:
        nonlocal done, said
        done += more
        if (now := perf_counter()) - said >= _SAY_SECONDS:
            console.print(f"{done:,} of {total:,} evaluated, {now - started:.0f} s")
            said = now

    yield count


def evaluate_row(
    evaluator: Evaluator, space: StagedSpace, arch: Architecture, seed: int, unit: Unit = PERCENT
) -> tuple[Row, bool]:
    """One row of the output, and whether a retry would give the same row.

    If an architecture cannot be evaluated, or the machine fails, the row has an error.
    """
    row: Row = {"arch": space.to_str(arch)}
    start = perf_counter()
    try:
        found = evaluator.evaluate(arch, seed=seed)
    except EvaluationError as error:
        return row | _failure(error, start), True
    except (MemoryError, RuntimeError) as error:
        if not of_the_machine(error):
            raise
        return row | _failure(error, start), False
    row |= {"status": "ok", "seconds": found.seconds}
    if found.device:
        row["device"] = found.device
    return row | unit.written({"value": found.value, **found.metrics}), True


def _failure(error: Exception, start: float) -> Row:
    return {"status": "failed", "error": one_line(error), "seconds": perf_counter() - start}


if __name__ == "__main__":
    run(app)
