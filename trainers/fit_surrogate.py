"""Fit the embedded surrogate (command and results: docs/surrogate.md).

Two sources are combined in one ridge regression on `trainers.evaluators.surrogate.features`:

* measured top-1 of sub-networks of the width-1.0 supernet. These come from searches, so they only
  cover good networks;
* labels from the once-for-all accuracy predictor for random networks of the whole space. It is for
  the width-1.2 supernet and about 5 points too high, so a linear map first brings it to the
  measured scale, and its labels count as noisier than measurements.

Units here are percentage points; the written weights are for fractions.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import safetensors.numpy
import scipy
from numpy.typing import NDArray

from nag.cli import command_line, run
from nag.errors import UserError
from nag.files import sha256_of, write_bytes, write_text
from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import (
    DEPTHS,
    EXPANDS,
    KERNELS,
    MAX_DEPTH,
    MOBILENETV3,
    NUM_STAGES,
    RANKS,
    ops_from_ofa,
)
from trainers.evaluators.surrogate import WEIGHTS, features
from trainers.latency.tables import once_for_all_networks
from trainers.ofa import LARGEST
from trainers.rows import numbers, read_columns

Array = NDArray[np.float64]

RESOLUTION = 224
MEASURED_STD = 0.05  # points; repeated measurements of one network agree to about this
PREDICTOR_STD = 0.2  # points; how far a mapped predictor label is trusted
COEFFICIENT_STD = 1.0  # points; a weak prior, which only matters in directions without data
NUM_LABELLED = 8000  # random networks labelled by the predictor
NUM_TEST = 5000  # uniform networks on which the fit is compared with the predictor
FOLDS = 5
CLIMBS, CLIMB_STEPS = 5, 20_000

STATEMENT = (
    "An estimate, not ImageNet training: top-1 on the ImageNet-1K validation images, at 224 px, "
    "of sub-networks of the once-for-all MobileNetV3 supernet of width 1.0 with its shared "
    "weights and no fine-tuning."
)

app = command_line(
    "python -m trainers.fit_surrogate",
    "python -m trainers.fit_surrogate --table mbv3.parquet --ofa-predictor ofa.npz --out "
    "trainers/weights",
)


@dataclass(frozen=True)
class Surrogate:
    """offset + features @ coefficients, in percentage points."""

    offset: float
    coefficients: Array  # (300,)

    def __call__(self, x: Array) -> Array:
        return self.offset + x @ self.coefficients  # (B,)


def fit(
    x: Array, y: Array, predictor: Array, x_random: Array, predictor_random: Array
) -> Surrogate:
    """Ridge regression on both sources.

    x (n, 300), y (n,), predictor (n,): features, measured values and predictor labels.
    x_random (m, 300), predictor_random (m,): features and predictor labels of random networks.
    """
    slope, intercept = np.polyfit(predictor, y, 1)
    offset = float(y.mean())
    rows = np.concatenate([x / MEASURED_STD, x_random / PREDICTOR_STD])
    targets = np.concatenate(
        [
            (y - offset) / MEASURED_STD,
            (slope * predictor_random + intercept - offset) / PREDICTOR_STD,
        ]
    )
    precision = rows.T @ rows + np.eye(x.shape[1]) / COEFFICIENT_STD**2
    coefficients = np.linalg.solve(precision, rows.T @ targets)
    # Rounded, so that the last bits, which depend on the number of threads, do not affect the hash.
    return Surrogate(round(offset, 5), coefficients.round(5))


def cross_validate(
    x: Array,
    y: Array,
    predictor: Array,
    x_random: Array,
    predictor_random: Array,
    fold: NDArray[np.int64],
) -> Array:
    """(n,) predictions of `fit` for left-out measured networks, one `fold` (n,) at a time."""
    held_out = np.empty_like(y)
    for k in np.unique(fold):
        train = fold != k
        model = fit(x[train], y[train], predictor[train], x_random, predictor_random)
        held_out[~train] = model(x[~train])
        error = _rmse(held_out[~train], y[~train])
        _say(f"  {(~train).sum()} networks held out: RMSE {error:.3f} points")
    return held_out


def themed(n: int, rng: np.random.Generator) -> list[Architecture]:
    """Networks that each use a random subset of kernels, expand ratios and depths.

    Uniform networks are all medium-sized; these range from the smallest to the largest.
    """

    def subset(values: Sequence[int]) -> NDArray[np.int64]:
        return rng.permutation(values)[: rng.integers(1, len(values) + 1)]

    archs = []
    for _ in range(n):
        kernels, expands, depths = subset(KERNELS), subset(EXPANDS), subset(DEPTHS)
        layers = NUM_STAGES * MAX_DEPTH
        ops = ops_from_ofa(
            rng.choice(kernels, layers).tolist(),
            rng.choice(expands, layers).tolist(),
            rng.choice(depths, NUM_STAGES).tolist(),
        )
        archs.append(Architecture(MOBILENETV3.name, ops))
    return archs


def local_search(
    predict: Callable[[Sequence[Architecture]], Array], steps: int, rng: np.random.Generator
) -> float:
    """The value reached from a random network by keeping mutations that are no worse."""
    (arch,) = MOBILENETV3.sample(1, rng)
    value = float(predict([arch])[0])
    for _ in range(steps):
        neighbour = MOBILENETV3.mutate(arch, rng)
        if (new := float(predict([neighbour])[0])) >= value:
            arch, value = neighbour, new
    return value


def load_predictor(path: Path) -> Callable[[Sequence[Architecture]], Array]:
    """The once-for-all accuracy predictor at 224 px, in percent; raises UserError."""
    shapes = {"W0": (400, 128), "W1": (400, 400), "W2": (400, 400), "W3": (1, 400)}
    try:
        with np.load(path) as file:
            weights = [file[name].astype(np.float64) for name in shapes]
            biases = [file[f"b{i}"].astype(np.float64) for i in range(len(shapes))]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path} is not the accuracy predictor: {error}") from None
    if [w.shape for w in weights] != list(shapes.values()):
        raise UserError(f"{path} is not the accuracy predictor: expected shapes {shapes}")

    def predict(archs: Sequence[Architecture]) -> Array:
        ops = np.array([arch.ops for arch in archs])  # (B, 20)
        present = (ops != ABSENT)[..., None]
        kernel, expand = np.moveaxis(np.array(RANKS)[ops], -1, 0)  # (B, 20) each
        resolution = np.zeros((len(archs), 8))
        resolution[:, (RESOLUTION - 112) // 16] = 1
        x = np.concatenate(
            [
                ((kernel[..., None] == np.arange(3)) & present).reshape(len(archs), -1),
                ((expand[..., None] == np.arange(3)) & present).reshape(len(archs), -1),
                resolution,
            ],
            axis=1,
        )  # (B, 128)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = np.maximum(x @ weight.T + bias, 0)
        return 100 * (x @ weights[-1].T + biases[-1])[:, 0]

    return predict


def measured(path: Path) -> tuple[list[Architecture], Array, NDArray[np.int64]]:
    """Distinct measured sub-networks, their mean top-1 in percent, and the search they come from.

    The order is fixed. Searches are numbered; a network found by several is assigned to the first.
    Rows with another resolution or without top-1 are skipped. Raises UserError.
    """
    columns = read_columns(path, ["ks", "e", "d", "r", "top1", "source"])
    found = once_for_all_networks(path, columns)
    r, top1 = (numbers(path, name, columns[name]) for name in ("r", "top1"))
    values: dict[tuple[int, ...], list[float]] = {}
    sources: dict[tuple[int, ...], str] = {}
    for i in np.flatnonzero((r == RESOLUTION) & np.isfinite(top1)):
        values.setdefault(found[i].ops, []).append(top1[i])
        sources.setdefault(found[i].ops, str(columns["source"][i]))
    if len(values) < FOLDS or len({*sources.values()}) < 2:
        raise UserError(
            f"{path} has {len(values)} networks with top1 at r={RESOLUTION}, from "
            f"{len({*sources.values()})} sources: at least {FOLDS} from 2 are needed"
        )
    archs = [Architecture(MOBILENETV3.name, ops) for ops in sorted(values)]
    y = np.array([np.mean(values[arch.ops]) for arch in archs])
    search = np.unique([sources[arch.ops] for arch in archs], return_inverse=True)[1]
    return archs, y, search


def errors(
    model: Surrogate,
    held_out: Array,
    held_out_search: Array,
    archs: Sequence[Architecture],
    y: Array,
    label: Callable[[Sequence[Architecture]], Array],
) -> dict[str, float]:
    """Every number the surrogate is judged by; percentages and percentage points."""

    def predict(archs: Sequence[Architecture]) -> Array:
        return model(features(archs))

    slope, intercept = np.polyfit(label(archs), y, 1)
    mapped = slope * label(archs) + intercept
    uniform = MOBILENETV3.sample(NUM_TEST, np.random.default_rng(2))
    climbs = []
    for seed in range(CLIMBS):
        top = local_search(predict, CLIMB_STEPS, np.random.default_rng(seed))
        _say(f"  local search {seed + 1}/{CLIMBS}: {top:.3f} % after {CLIMB_STEPS} steps")
        climbs.append(top)
    return {
        "measured_networks": len(y),
        "measured_best_percent": float(y.max()),
        "cross_validation_rmse_points": _rmse(held_out, y),
        "cross_validation_largest_error_points": float(np.abs(held_out - y).max()),
        "cross_validation_spearman": _rank_correlation(held_out, y),
        "unseen_search_rmse_points": _rmse(held_out_search, y),
        "unseen_search_spearman": _rank_correlation(held_out_search, y),
        "in_sample_rmse_points": _rmse(predict(archs), y),
        "mapped_ofa_predictor_rmse_points": _rmse(mapped, y),
        "mapped_ofa_predictor_spearman": _rank_correlation(mapped, y),
        "spearman_with_ofa_predictor_on_uniform_networks": _rank_correlation(
            predict(uniform), label(uniform)
        ),
        "local_search_best_percent": max(climbs),
        "largest_network_percent": float(predict([LARGEST])[0]),
    }


@app.default
def main(*, table: Path, ofa_predictor: Path, out: Path) -> None:
    """Fit and check the embedded estimate of ImageNet-1K top-1, and write its weights.

    Parameters
    ----------
    table
        Parquet file of measured sub-networks: columns ks, e, d, r, top1 (percent), source.
    ofa_predictor
        Npz file of the once-for-all accuracy predictor: arrays W0, b0, ..., W3, b3.
    out
        Folder for the weights and their description.
    """
    archs, y, search = measured(table)
    label = load_predictor(ofa_predictor)
    out.mkdir(parents=True, exist_ok=True)
    _say(f"{len(archs)} distinct measured sub-networks, {y.min():.2f} to {y.max():.2f} %")

    rng = np.random.default_rng(1)
    random = MOBILENETV3.sample(NUM_LABELLED // 2, rng) + themed(NUM_LABELLED // 2, rng)
    x, x_random = features(archs), features(random)
    data = x, y, label(archs), x_random, label(random)
    _say(f"{len(random)} random networks labelled; {FOLDS}-fold cross-validation:")
    held_out = cross_validate(*data, np.random.default_rng(0).permutation(len(y)) % FOLDS)
    _say("one search held out at a time:")
    held_out_search = cross_validate(*data, search)
    model = fit(*data)
    found = errors(model, held_out, held_out_search, archs, y, label)
    rounded = {name: round(number, 4) for name, number in found.items()}
    weights = safetensors.numpy.save(
        {"offset": np.array(model.offset / 100), "coefficients": model.coefficients / 100}
    )
    description = {
        "statement": STATEMENT,
        "model": "ridge regression on trainers.evaluators.surrogate.features: "
        "top-1 fraction = offset + features @ coefficients",
        "command": "python -m trainers.fit_surrogate "
        f"--table {table.name} --ofa-predictor {ofa_predictor.name} --out trainers/weights",
        "inputs_sha256": {path.name: sha256_of(path) for path in (table, ofa_predictor)},
        "sha256": hashlib.sha256(weights).hexdigest(),
        "errors": rounded,
    }
    write_bytes(out / WEIGHTS.name, weights)
    write_text(out / WEIGHTS.with_suffix(".json").name, json.dumps(description, indent=2))
    _say("\n".join(f"{name}: {number}" for name, number in rounded.items()))


def _rmse(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def _rank_correlation(a: Array, b: Array) -> float:
    return float(scipy.stats.spearmanr(a, b).statistic)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    run(app)
