"""Embedded default evaluator: estimated ImageNet top-1 of once-for-all MobileNetV3 sub-networks.

The estimate is a quadratic function of the architecture, fitted by `trainers.fit_surrogate`:

    top1(A) = offset + sum_i a[i, o_i] + sum_{p <= q} b[p, q] z_p z_q

with o_i the operator of layer i and z (15,) the depth, kernel size and expand ratio of each stage.
docs/surrogate.md explains what these values mean and what they do not mean.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from nag.errors import UserError
from nag.spaces import Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3, NUM_STAGES, stage_numbers
from trainers.base import Measurement
from trainers.cost import cost

DATASET = "imagenet"
WEIGHTS = Path(__file__).parents[1] / "weights" / "mobilenetv3_imagenet.safetensors"

_CENTRE = np.tile((3.0, 0.0, 0.0), NUM_STAGES)
_PAIRS = np.triu_indices(3 * NUM_STAGES)


def features(archs: Sequence[Architecture]) -> NDArray[np.float64]:
    """(B, 300): the encoding, then the 120 products z_p z_q.

    z: the `stage_numbers`, depths minus 3. Centring keeps the products small for ordinary networks.
    Raises UserError for other spaces.
    """
    for arch in archs:
        if arch.space != MOBILENETV3.name:
            raise UserError(
                f"the surrogate supports the space {MOBILENETV3.name}, not {arch.space}"
            )
    v = MOBILENETV3.encode(archs).double()  # (B, 20, 9)
    z = stage_numbers(v).numpy() - _CENTRE  # (B, 15)
    products = z[:, _PAIRS[0]] * z[:, _PAIRS[1]]
    return np.concatenate([v.flatten(1).numpy(), products], axis=1)


class SurrogateEvaluator:
    """Estimated ImageNet-1K top-1 (fraction) of a width-1.0 sub-network at 224 px; no training.

    Raises UserError if the weights are missing or do not match the hash beside them.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        tensors = _load(weights)
        self._offset = float(tensors["offset"])
        self._coefficients = tensors["coefficients"]  # (300,)

    def predict(self, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """(B,) estimated top-1 as fractions."""
        return self._offset + features(archs) @ self._coefficients

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """Estimate one sub-network; `seed` is ignored."""
        start = time.perf_counter()
        value = float(self.predict([arch])[0])
        return Measurement(value, cost(arch, DATASET), seconds=time.perf_counter() - start)


def _load(weights: Path) -> dict[str, NDArray[np.float64]]:
    try:
        content = weights.read_bytes()
        description = json.loads(weights.with_suffix(".json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"surrogate weights are missing: {error.filename}") from None
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise UserError(f"{weights} does not match the hash in {weights.with_suffix('.json').name}")
    return safetensors.numpy.load(content)
