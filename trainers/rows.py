"""Rows in parquet files, read and written: the border at which fractions become percent."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nag.files import write_bytes
from trainers.base import EvaluatorConfigError

ACCURACIES = ("value", "test", "test_top5")  # fractions inside the program, percent in files
PARTIAL = ("epochs", "stopped")  # columns: of values that are not those of a whole evaluation

_TEXT = ("arch", "status", "error", "strategy", "device")
_COUNTS = ("trial", "iteration", "seed", "attempts", *PARTIAL)


def percent(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """Measurements as they are written: accuracies in percent, the rest unchanged."""
    return {
        name: 100 * x if name in ACCURACIES and x is not None else x for name, x in numbers.items()
    }


def write_rows(rows: Sequence[Mapping[str, object]], columns: Iterable[str], path: Path) -> None:
    """Write rows to a parquet file whole; raises OSError."""
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


def column_names(path: Path) -> list[str]:
    """Columns of a parquet file; raises EvaluatorConfigError when it cannot be read as one."""
    try:
        return list(pq.read_schema(path).names)
    except FileNotFoundError:
        raise EvaluatorConfigError(f"no such table: {path}") from None
    except (pa.ArrowInvalid, OSError):
        raise EvaluatorConfigError(f"{path} is not a readable parquet file") from None


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list]:
    """The named columns of a parquet file as Python lists, nulls as None.

    Raises EvaluatorConfigError when the file or a column is missing.
    """
    available = column_names(path)
    missing = [name for name in columns if name not in available]
    if missing:
        raise EvaluatorConfigError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(available) or 'none'}"
        )
    try:
        return pq.ParquetFile(path).read(columns=list(columns)).to_pydict()
    except (pa.ArrowInvalid, OSError):
        raise EvaluatorConfigError(f"{path} is not a readable parquet file") from None


def _type(name: str) -> pa.DataType:
    if name in _TEXT:
        return pa.string()
    if name == "curve":
        return pa.list_(pa.float64())
    return pa.int64() if name in _COUNTS else pa.float64()
