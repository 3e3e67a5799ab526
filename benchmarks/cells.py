"""Do our trainings of NAS-Bench-201 cells reach the accuracies of its table?

    python benchmarks/cells.py --data cifar10.parquet --table nb201.parquet

Cells spread over the range of the table's accuracies after 12 epochs are trained with the recipe of
the benchmark and compared to the table. CIFAR-10 as lossy JPEGs is a little harder than the
original.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from jobs import run_all
from publish import machine, publish

from nag.cli import command_line, run
from nag.errors import UserError
from nag.spaces.nasbench201 import NASBENCH201
from trainers.base import Measurement
from trainers.build import EvaluatorSettings, build_evaluator
from trainers.training.recipe import Precision
from trainers.training.task import NetworkOptions, Place

QUANTILES = (0.1, 0.3, 0.5, 0.8, 0.99)

app = command_line("python benchmarks/cells.py")


def train(text: str, settings: EvaluatorSettings) -> Measurement:
    torch.set_num_threads(1)
    evaluator = build_evaluator(NASBENCH201, "train", settings)
    return evaluator.evaluate(NASBENCH201.from_str(text), seed=0)


@app.default
def main(
    *,
    data: Path,
    table: Path,
    epochs: int = 12,
    precision: Precision = "float32",
    cheapest: int = 40,
    jobs: int | None = None,
    keep: Path = Path("cells-runs"),
) -> None:
    """Run the comparison and write benchmarks/results/cells.md.

    Parameters
    ----------
    data
        CIFAR-10 as images.
    table
        NAS-Bench-201 as a parquet file with c10_valid_12.
    epochs
        Training epochs, which the schedule is made for, as in the benchmark.
    precision
        Of the convolutions: float32 in the benchmark; bfloat16 is faster on CPUs that support it.
    cheapest
        Neighbours in accuracy among which the cell with the fewest parameters is chosen.
    jobs
        Cells at a time; by default one per CPU.
    keep
        Folder for checkpoints and decoded images; repeating the command with it continues.
    """
    if epochs < 1 or cheapest < 1:
        raise UserError("--epochs and --cheapest must be at least 1")
    columns = pq.read_table(table, columns=["arch", "c10_valid_12", "c10_test_12", "c10_params"])
    frame = columns.to_pandas().dropna().sort_values("c10_valid_12", ignore_index=True)
    chosen = []
    for quantile in QUANTILES:
        middle = int(quantile * len(frame))
        near = frame.iloc[max(0, middle - cheapest // 2) : middle + cheapest // 2 + 1]
        chosen.append(near.loc[near["c10_params"].idxmin()])
    settings = EvaluatorSettings(
        networks=NetworkOptions(
            data=data.resolve(), held_out=25_000, epochs=epochs, precision=precision
        ),
        place=Place(
            workers=0, cache=(keep / "cache").resolve(), checkpoints=(keep / "nets").resolve()
        ),
    )
    build_evaluator(NASBENCH201, "train", settings)
    found = run_all([partial(train, row["arch"], settings) for row in chosen], jobs, "cells")
    about = (
        f"{epochs} epochs on 25,000 training images (lossy JPEGs), {precision}, one seed; the "
        f"table: 12 epochs; {machine()}."
    )
    publish("cells", about, _comparison(chosen, found))


def _comparison(chosen: Sequence[pd.Series], found: Sequence[Measurement]) -> Iterator[str]:
    """Rows of the table with our trainings of the same cells."""
    yield (
        "| cell | parameters | table: validation, test, % | ours: held out, val, % | difference "
        "| hours |"
    )
    yield "|---|---|---|---|---|---|"
    for row, one in zip(chosen, found, strict=True):
        yield (
            f"| `{row['arch'].replace('|', chr(92) + '|')}` | {row['c10_params']:,.0f} "
            f"| {row['c10_valid_12']:.2f}, {row['c10_test_12']:.2f} "
            f"| {100 * one.value:.2f}, {100 * one.metrics['test']:.2f} "
            f"| {100 * one.value - row['c10_valid_12']:+.2f} | {one.seconds / 3600:.2f} |"
        )
    ours = np.argsort([one.value for one in found])
    theirs = np.argsort([row["c10_valid_12"] for row in chosen])
    same = np.array_equal(ours, theirs)
    yield ""
    yield f"The table and our trainings rank the cells {'equally' if same else 'differently'}."


if __name__ == "__main__":
    run(app)
