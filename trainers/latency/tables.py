"""Latency of once-for-all MobileNetV3 networks, from a table of measurements from the user.

Two kinds of table list single layers, whose times are added up. A third lists whole networks, to
which a sum over layers is fitted.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nag.errors import UserError, counted
from nag.properties import Property
from nag.spaces import Architecture, SearchSpace
from nag.spaces.mobilenetv3 import (
    DEPTHS,
    EXPANDS,
    KERNELS,
    LAYERS,
    MOBILENETV3,
    ops_from_ofa,
)
from trainers.cost import Task
from trainers.plans import MAX_WIDTH, MobileNetV3Plan, Slot, mobilenetv3_plan
from trainers.rows import column_names, numbers, read_columns

Array = NDArray[np.float64]

RESOLUTION = 224  # pixels
_OTHER_UNITS = ("s", "us", "\u00b5s", "\u03bcs", "ns")  # "unit" may also hold any remark
_FOLDS = 5
_PENALTIES = np.logspace(-3, 2, 6)  # of the ridge regression; cross-validation chooses one


def latency_property(space: SearchSpace, table: str, task: Task | None = None) -> Property:
    """Latency in milliseconds, from a `table` "FILE" or "FILE:KEY".

    FILE is one of

    * JSON {"tables": {resolution: {layer: ms}}}, the format of once-for-all, for networks of width
      1.2, or {"table": {layer: ms}}, the format of MSuNAS, for networks of width 1.0. "width" in
      the JSON overrides this, as in tables of `trainers.build_latency_table`; "unit" must not name
      another unit. KEY is the resolution, by default that of the task. Latency is the sum over the
      layers, so the property is exact.
    * parquet with a row per network: `ks`, `e`, `d` as in once-for-all, the resolution `r` (224 if
      there is no such column) and latencies `lat_*` in ms. KEY is one of these columns, by default
      the only one. A sum over the layers is fitted for the resolution of the task; `std` is the
      root mean square error in cross-validation, over networks at every resolution. If computation
      dominates, e.g. in large batches on a GPU, the fit is almost exact; if kernel launches
      dominate, the measurements scatter widely around it, as `std` shows.

    task: that of the networks; None means 224 pixels and any width.

    Raises UserError, in one line, for another space, a table in another format, or one
    that states another width.
    """
    if space.name != MOBILENETV3.name:
        raise UserError(f"latency tables are for the space {MOBILENETV3.name}, not {space.name}")
    path, key = file_and_key(table)
    if path.suffix not in _READERS:
        raise UserError(
            f"{path} is not a latency table: choose a file that ends in {' or '.join(_READERS)}"
        )
    resolution = RESOLUTION if task is None else task.resolution
    offset, coefficients, std, stated = _READERS[path.suffix](path, key, resolution)
    if task is not None and stated not in (None, task.width):
        raise UserError(
            f"{path} is for networks of width {stated:g}, but those evaluated are of width "
            f"{task.width:g}"
        )
    return Property("latency", space, offset, coefficients, std)


def file_and_key(table: str) -> tuple[Path, str]:
    """The parts of "FILE" or "FILE:KEY"."""
    keyed = ":" in table and not Path(table).exists()  # the colon may be part of the file name
    file, _, key = table.rpartition(":") if keyed else (table, "", "")
    return Path(file), key


# Tables of layers: their keys describe a layer.


@dataclass(frozen=True, slots=True)
class _Format:
    """How a table names the layers of a network.

    width: of the networks, if the table does not state it.
    ends: names of the layers that every network has.
    block: name of an inverted bottleneck with a given kernel and expand ratio.
    """

    width: float
    ends: Callable[[MobileNetV3Plan], list[str]]
    block: Callable[[Slot, int, int], str]


def _layer(kind: str, size: int, inputs: int, size_out: int, outputs: int) -> str:
    return f"{kind}-input:{size}x{size}x{inputs}-output:{size_out}x{size_out}x{outputs}"


def _placed(kind: str, slot: Slot) -> str:
    return _layer(kind, slot.size_in, slot.inputs, slot.size_out, slot.outputs)


def once_for_all_block(slot: Slot, kernel: int, expand: int) -> str:
    """Key of an inverted bottleneck in a once-for-all table."""
    return (
        f"{_placed('expanded_conv', slot)}-expand:{slot.inputs * expand}-kernel:{kernel}"
        f"-stride:{slot.stride}-idskip:{slot.skip:d}-se:{slot.squeeze_excite:d}"
        f"-hs:{slot.hard_swish:d}"
    )


def once_for_all_ends(plan: MobileNetV3Plan) -> list[str]:
    """Keys of the layers that every network has, in order; the blocks follow the second."""
    first, last = plan.first, plan.slots[-1]
    return [
        _layer("Conv", plan.resolution, 3, first.size_in, first.inputs),
        once_for_all_block(first, 3, 1),
        _layer("Conv_1", last.size_out, last.outputs, last.size_out, plan.expanded),
        _layer("AvgPool2D", last.size_out, plan.expanded, 1, plan.expanded),
        _layer("Conv_2", 1, plan.expanded, 1, plan.features),
        f"Logits-input:1x1x{plan.features}-output:1000",
    ]


def _msunas_block(slot: Slot, kernel: int, expand: int) -> str:
    return (
        f"{_placed('MBConv', slot)}-expand:{expand}-kernel:{kernel}"
        f"-stride:{slot.stride}-idskip:{slot.skip:d}-se:{slot.squeeze_excite:d}"
    )


def _msunas_ends(plan: MobileNetV3Plan) -> list[str]:
    first, last = plan.first, plan.slots[-1]
    return [
        _layer("first_conv", plan.resolution, 3, first.size_in, first.inputs),
        _msunas_block(first, 3, 1),
        _layer("final_expand_layer", last.size_out, last.outputs, last.size_out, plan.expanded),
        _layer("feature_mix_layer", 1, plan.expanded, 1, plan.features),
        f"classifier-input:{plan.features}-output:1000",
    ]


_FORMATS = {
    "tables": _Format(1.2, once_for_all_ends, once_for_all_block),
    "table": _Format(1.0, _msunas_ends, _msunas_block),
}


def _looked_up(path: Path, key: str, resolution: int) -> tuple[float, Array, float, float | None]:
    """Offset, coefficients (20, 9), standard deviation (0) and width, from a table of layers."""
    form, width, tables = _layer_tables(path)
    key = key or str(resolution)
    if key not in tables:
        raise UserError(
            f"{path} has no resolution {key!r}: choose from {', '.join(tables) or 'none'}"
        )
    plan, times = mobilenetv3_plan(int(key), width), tables[key]
    ends = form.ends(plan)
    blocks = [[form.block(slot, k, e) for k, e in LAYERS] for slot in plan.slots]
    missing = [layer for layer in chain(ends, *blocks) if not _is_time(times.get(layer))]
    if missing:
        raise UserError(
            f"{path} lacks times in ms of {counted(len(missing), 'layer')}, such as {missing[0]}"
        )
    return (
        float(sum(times[layer] for layer in ends)),
        np.array([[times[layer] for layer in row] for row in blocks], np.float64),
        0.0,
        width,
    )


def _layer_tables(path: Path) -> tuple[_Format, float, dict[str, Mapping[str, Any]]]:
    """The format of a JSON file, the width of its networks, and its times by resolution."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no such table: {path}") from None
    except (OSError, ValueError):
        raise UserError(f"{path} is not a readable JSON file") from None
    named = [name for name in _FORMATS if isinstance(content, dict) and name in content]
    if not named or not isinstance(content[named[0]], dict):
        raise UserError(
            f"{path} is not a latency table: expected an object named {' or '.join(_FORMATS)}"
        )
    if content.get("unit") in _OTHER_UNITS:
        raise UserError(f"{path} has times in {content['unit']!r}: expected ms")
    form, tables = _FORMATS[named[0]], content[named[0]]
    width = content.get("width", form.width)
    if not _is_time(width) or not 0 < width <= MAX_WIDTH:
        raise UserError(
            f"{path} is for networks of width {width!r}: expected a number up to {MAX_WIDTH}"
        )
    if named[0] == "table":  # one table for all resolutions, which its keys name
        found = {m[1] for key in tables if (m := re.match(r"first_conv-input:(\d+)x\1x3-", key))}
        tables = dict.fromkeys(found, tables)
    usable = [r for r, times in tables.items() if r.isdecimal() and isinstance(times, dict)]
    return form, width, {r: tables[r] for r in sorted(usable, key=int)}


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


# Tables of networks.


def _fitted(path: Path, key: str, resolution: int) -> tuple[float, Array, float, float | None]:
    """Offset, coefficients (20, 9) and standard deviation of a fit to networks of any width."""
    latencies = [name for name in column_names(path) if name.startswith("lat_")]
    if not latencies:
        raise UserError(f"{path} has no latencies: columns with names lat_*")
    if not key and len(latencies) > 1:
        raise UserError(f"{path} has several latencies: add :KEY, one of {', '.join(latencies)}")
    column = key or latencies[0]
    if column not in latencies:
        raise UserError(f"{path} has no latency {column}: it has {', '.join(latencies)}")
    one_hot, area, y = _measured(path, column, resolution)
    # A layer takes a constant time plus one proportional to the pixels of its output.
    x = np.stack([one_hot, one_hot * area[..., None]], axis=1).reshape(len(y), -1)  # (n, 2NF)
    errors = _cross_validate(x, y)  # (P,)
    offsets, weights = _ridge(x, y)
    best = int(errors.argmin())
    there = weights[:, best].reshape(2, *one_hot.shape[1:]).sum(0)  # at the task: all areas are 1
    return float(offsets[best]), there, float(errors[best]), None


def _measured(path: Path, column: str, resolution: int) -> tuple[Array, Array, Array]:
    """Measured networks: operators (n, 20, 9) one-hot, areas (n, 20) and latencies (n,) in ms.

    The area is that of a layer's output, relative to its output at `resolution`, which must be
    within the measured range. Rows without a latency or a resolution are left out.
    """
    sized = ["r"] if "r" in column_names(path) else []
    columns = read_columns(path, ["ks", "e", "d", *sized, column])
    y = numbers(path, column, columns[column])
    r = numbers(path, "r", columns["r"]) if sized else np.full(len(y), float(RESOLUTION))
    archs = once_for_all_networks(path, columns)
    kept = np.isfinite(y) & np.isfinite(r)
    if (found := int(kept.sum())) < _FOLDS:
        raise UserError(
            f"{path} has {counted(found, 'network')} with {column}: at least {_FOLDS} are needed"
        )
    if (least := y[kept].min()) <= 0:
        raise UserError(f"{path} has a {column} of {least:g}: latencies must be positive")
    if not r[kept].min() <= resolution <= r[kept].max():
        raise UserError(
            f"{path} has networks at {r[kept].min():g} to {r[kept].max():g} pixels, but "
            f"{resolution} is outside this range"
        )
    resolutions, which = np.unique(r[kept].astype(int), return_inverse=True)
    areas = np.array([_areas(size) for size in resolutions.tolist()]) / _areas(resolution)
    one_hot = MOBILENETV3.encode(archs).double().numpy()
    return one_hot[kept], areas[which], y[kept]


def _areas(resolution: int) -> Array:
    """Pixels of the output map of each layer, (20,)."""
    return np.array([slot.size_out for slot in mobilenetv3_plan(resolution).slots]) ** 2.0


def once_for_all_networks(path: Path, columns: Mapping[str, list]) -> list[Architecture]:
    """Networks from the columns ks, e and d of a file; raises UserError."""
    try:
        if not all(set(d) <= set(DEPTHS) for d in columns["d"]):
            raise ValueError
        networks = zip(columns["ks"], columns["e"], columns["d"], strict=True)
        return [Architecture(MOBILENETV3.name, ops_from_ofa(*network)) for network in networks]
    except (IndexError, TypeError, ValueError):
        raise UserError(
            f"{path} has a row that is not a network: allowed are ks in {KERNELS}, e in {EXPANDS} "
            f"and d in {DEPTHS}"
        ) from None


def _ridge(x: Array, y: Array) -> tuple[Array, Array]:
    """Offsets (P,) and weights (D, P) of ridge regressions of y (n,) on x (n, D), by penalty."""
    centre, mean = x.mean(0), y.mean()
    rows = x - centre
    values, vectors = np.linalg.eigh(rows.T @ rows)
    projected = vectors.T @ (rows.T @ (y - mean))  # (D,)
    weights = vectors @ (projected[:, None] / (values[:, None] + _PENALTIES))
    return mean - centre @ weights, weights


def _cross_validate(x: Array, y: Array) -> Array:
    """(P,) root mean square error on rows left out of the fit, by penalty."""
    fold = np.arange(len(y)) % _FOLDS
    residuals = np.empty((len(y), len(_PENALTIES)))
    for k in range(_FOLDS):
        out = fold == k
        offsets, weights = _ridge(x[~out], y[~out])
        residuals[out] = y[out, None] - offsets - x[out] @ weights
    return np.sqrt((residuals**2).mean(0))


_READERS = {".json": _looked_up, ".parquet": _fitted}
