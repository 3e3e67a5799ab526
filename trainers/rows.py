"""Reads and writes rows of parquet files: here fractions become percent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nag.cli import parse_architectures, read_architectures
from nag.errors import UserError
from nag.files import write_bytes
from nag.spaces import Architecture, StagedSpace

ACCURACIES = ("value", "test", "test_top5")  # fractions inside the program, percent in files
PARTIAL = ("epochs", "stopped")  # columns that mark values of partial evaluations

_TEXT = ("arch", "status", "error", "strategy", "device")
_COUNTS = ("trial", "iteration", "seed", "attempts", *PARTIAL)


@dataclass(frozen=True)
class Unit:
    """The unit in which values are written and shown.

    sign: symbol of the unit, if it has one.
    times: factor from a value to this unit.
    """

    sign: str
    times: float

    def written(self, numbers: Mapping[str, float | None]) -> dict[str, float | None]:
        """Measurements as written to files: those in ACCURACIES in this unit."""
        return {
            name: self.times * x if name in ACCURACIES and x is not None else x
            for name, x in numbers.items()
        }

    def form(self, decimals: int) -> str:
        """Format specification of a number in this unit."""
        return f".{decimals}f" if self.sign else ".6g"

    def number(self, value: float | None) -> str:
        """'77.123', with significant digits only; a dash for None."""
        return "–" if value is None else f"{self.times * value:{self.form(3)}}"

    def text(self, value: float) -> str:
        """'77.123 %'."""
        return f"{self.number(value)} {self.sign}".rstrip()

    def label(self, name: str) -> str:
        """'value, %'."""
        return f"{name}, {self.sign}" if self.sign else name

    def of_differences(self, name: str) -> str:
        """'simple regret, points'."""
        return f"{name}, points" if self.sign else name


PERCENT, PLAIN = Unit("%", 100), Unit("", 1)


def write_rows(rows: Sequence[Mapping[str, object]], columns: Iterable[str], path: Path) -> None:
    """Write rows to a parquet file atomically; raises OSError."""
    write_bytes(path, to_parquet(rows, columns))


def to_parquet(rows: Sequence[Mapping[str, object]], columns: Iterable[str]) -> bytes:
    """A parquet file of rows: `columns` first, then whatever else the rows hold."""
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    table = pa.table(
        {name: pa.array([row.get(name) for row in rows], _type(name)) for name in names}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _unreadable(path: Path) -> UserError:
    remedy = ": convert it, e.g. with pandas.read_csv and to_parquet" * (path.suffix == ".csv")
    return UserError(f"{path} is not a readable parquet file{remedy}")


def column_names(path: Path) -> list[str]:
    """Columns of a parquet file; raises UserError if it is not readable as one."""
    try:
        return list(pq.read_schema(path).names)
    except FileNotFoundError:
        raise UserError(f"no such table: {path}") from None
    except (pa.ArrowInvalid, OSError):
        raise _unreadable(path) from None


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list]:
    """The named columns of a parquet file as Python lists, nulls as None.

    Raises UserError when the file or a column is missing.
    """
    available = column_names(path)
    missing = [name for name in columns if name not in available]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(available) or 'none'}"
        )
    try:
        return pq.ParquetFile(path).read(columns=list(columns)).to_pydict()
    except (pa.ArrowInvalid, OSError):
        raise _unreadable(path) from None


def numbers(path: Path, column: str, values: Sequence[object]) -> NDArray[np.float64]:
    """(n,) numbers of a column, nan for null; raises UserError for anything else."""
    if not all(x is None or isinstance(x, int | float) for x in values):
        raise UserError(f"{path}: column {column} does not hold numbers")
    return np.array(values, np.float64)


def read_texts(path: Path) -> list[str | None]:
    """The column arch of a parquet file; raises UserError."""
    texts = read_columns(path, ["arch"])["arch"]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise UserError(f"{path}: column arch does not hold text")
    return texts


def read_list(path: Path, space: StagedSpace) -> list[Architecture]:
    """Architectures of a text file, or of the column arch of a parquet file; raises UserError."""
    if path.suffix != ".parquet":
        return read_architectures(path, space)
    return parse_architectures(path, "row", 0, read_texts(path), space)


def _type(name: str) -> pa.DataType:
    if name in _TEXT:
        return pa.string()
    if name == "curve":
        return pa.list_(pa.float64())
    return pa.int64() if name in _COUNTS else pa.float64()
