"""From a pool to a batch: the best by acquisition, one after the other, earlier ones pending."""

from dataclasses import dataclass

import numpy as np

from acquisition.functions import AcquisitionFunction
from acquisition.strategies import Pool
from nag.predictors.base import FittedPredictor
from nag.spaces import Architecture


@dataclass(frozen=True)
class Candidate:
    """An architecture worth evaluating, and what was predicted of it."""

    arch: Architecture
    mean: float
    std: float


def select_batch(
    pool: Pool,
    predictor: FittedPredictor,
    acquisition: AcquisitionFunction,
    best: float,
    count: int,
    rng: np.random.Generator,
) -> list[Candidate]:
    """At most `count` candidates of the pool, without repeats.

    Each pick is pending for the next: the predictor is conditioned on its own mean there
    (kriging believer), which removes the uncertainty around it and so spreads the batch.
    """
    left = list(pool.archs)
    picked: list[Candidate] = []
    while left and len(picked) < count:
        prediction = predictor.predict(left)
        i = int(np.argmax(acquisition(prediction, best=best, rng=rng)))
        arch = left.pop(i)
        picked.append(Candidate(arch, float(prediction.mean[i]), float(prediction.std[i])))
        if len(picked) < count:
            predictor = predictor.condition([arch])
    return picked
