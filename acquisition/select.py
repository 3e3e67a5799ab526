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
    mean: float  # before any other of its batch was pending
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
    before = predictor.predict(pool.archs)
    left = list(range(len(pool.archs)))
    picked: list[Candidate] = []
    while left and len(picked) < count:
        prediction = predictor.predict([pool.archs[i] for i in left])
        i = left.pop(int(np.argmax(acquisition(prediction, best=best, rng=rng))))
        picked.append(Candidate(pool.archs[i], float(before.mean[i]), float(before.std[i])))
        if len(picked) < count:
            predictor = predictor.condition([pool.archs[i]])
    return picked
