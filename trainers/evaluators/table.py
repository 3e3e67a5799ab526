"""NAS-Bench-201 accuracies looked up in a parquet table supplied by the user."""

import math
import time
from pathlib import Path

from nag.errors import UserError
from nag.spaces import Architecture
from nag.spaces.nasbench201 import NASBENCH201
from trainers.base import FULL_EPOCHS, EvaluationError, Measurement
from trainers.cost import cost
from trainers.rows import column_names, numbers, read_columns, read_texts

COLUMN_PREFIXES = {"cifar10": "c10", "cifar100": "c100", "imagenet16-120": "in16"}
OBJECTIVES = ("valid", "test")


class TableEvaluator:
    """Accuracy after E epochs, usually 200, of every cell in a table.

    The table has a column `arch` with published strings, and `<p>_valid_<E>` and `<p>_test_<E>` in
    percent, where <p> is c10, c100 or in16. A column `<p>_train_time_200_s` becomes the metric
    `train_seconds`, scaled by the epochs. The value and the metric `test` are fractions.
    """

    def __init__(
        self,
        path: Path,
        dataset: str = "cifar10",
        objective: str = "valid",
        epochs: int = FULL_EPOCHS,
    ) -> None:
        for kind, name, allowed in (
            ("data set", dataset, COLUMN_PREFIXES),
            ("objective", objective, OBJECTIVES),
        ):
            if name not in allowed:
                raise UserError(
                    f"the table evaluator has no {kind} {name!r}: choose from {', '.join(allowed)}"
                )
        self.path, self.dataset, self.objective = path, dataset, objective
        self._shorter: dict[int, TableEvaluator] = {}
        prefix = COLUMN_PREFIXES[dataset]
        value, test = f"{prefix}_{objective}_{epochs}", f"{prefix}_test_{epochs}"
        seconds = f"{prefix}_train_time_{FULL_EPOCHS}_s"
        available = column_names(path)
        missing = [name for name in ("arch", value) if name not in available]
        if missing:
            usable = [
                column
                for p in COLUMN_PREFIXES.values()
                for o in OBJECTIVES
                if (column := f"{p}_{o}_{epochs}") in available
            ]
            raise UserError(
                f"{path} has no column {', '.join(missing)}; "
                f"accuracies it has: {', '.join(usable) or 'none'}"
            )
        optional = [name for name in (test, seconds) if name in available and name != value]
        read = read_columns(path, [value, *optional])
        columns = {name: numbers(path, name, read[name]) for name in (value, *optional)}
        self._rows = {arch: row for row, arch in enumerate(read_texts(path))}
        self._values = columns[value].tolist()
        if not any(map(math.isfinite, self._values)):
            raise UserError(f"{path}: column {value} has no number")
        self._metrics = {
            metric: (scale * columns[name]).tolist()
            for metric, name, scale in (
                ("test", test, 0.01),
                ("train_seconds", seconds, epochs / FULL_EPOCHS),
            )
            if name in columns
        }

    def at(self, epochs: int) -> "TableEvaluator":
        """The accuracies after `epochs` epochs; read on first use."""
        if epochs not in self._shorter:
            shorter = TableEvaluator(self.path, self.dataset, self.objective, epochs)
            self._shorter[epochs] = shorter
        return self._shorter[epochs]

    @property
    def optimum(self) -> float:
        """The largest value in the table."""
        return max(filter(math.isfinite, self._values)) / 100

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """Look up `arch`; `seed` is ignored, because the table holds means over seeds."""
        start = time.perf_counter()
        if arch.space != NASBENCH201.name:
            raise UserError(
                f"the table evaluator supports the space {NASBENCH201.name}, not {arch.space}"
            )
        text = NASBENCH201.to_str(arch)
        row = self._rows.get(text)
        if row is None:
            raise EvaluationError(f"{text} is not in {self.path}")
        value = self._values[row] / 100
        if not math.isfinite(value):
            raise EvaluationError(f"{text} has no accuracy in {self.path}")
        found = {name: column[row] for name, column in self._metrics.items()}
        metrics = {name: x for name, x in found.items() if math.isfinite(x)}
        metrics |= cost(arch, self.dataset)
        return Measurement(value, metrics, seconds=time.perf_counter() - start)
