"""From a pool to a batch: greedy picks by acquisition, with the earlier picks pending."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acquisition.base import Pool
from acquisition.functions import AcquisitionFunction
from nag.predictors.base import FittedPredictor
from nag.properties import Constraint
from nag.spaces import Architecture


@dataclass(frozen=True)
class Candidate:
    """An architecture worth evaluating, and its prediction."""

    arch: Architecture
    mean: float  # predicted before any other pick of the batch was pending
    std: float


def select_batch(
    pool: Pool,
    predictor: FittedPredictor,
    acquisition: AcquisitionFunction,
    best: float,
    count: int,
    rng: np.random.Generator,
    constraints: Sequence[Constraint] = (),
) -> list[Candidate]:
    """At most `count` candidates of the pool, without repeats.

    EI and PI are weighted by the probability of satisfying the constraints (Gardner et al., ICML
    2014), which matters for predicted properties; strategies already exclude architectures that
    are more likely than not to violate one.

    Each pick is pending for the next one: it counts as observed at its predicted mean (kriging
    believer, Ginsbourger et al. 2010). This removes the uncertainty around it, and if that mean
    exceeds `best`, the next pick has to improve on it. Both spread the batch.
    """
    prediction = before = predictor.predict(pool.archs)
    log_weight = np.zeros(len(pool.archs))
    if acquisition.is_logarithm:
        log_weight += sum(constraint.log_feasible(pool.archs) for constraint in constraints)
    left = list(range(len(pool.archs)))
    picked: list[Candidate] = []
    while left and len(picked) < count:
        scores = acquisition(prediction, best=best, rng=rng) + log_weight[left]
        place = int(np.argmax(scores))
        best = max(best, float(prediction.mean[place]))
        i = left.pop(place)
        picked.append(Candidate(pool.archs[i], float(before.mean[i]), float(before.std[i])))
        if left and len(picked) < count:
            predictor = predictor.condition([pool.archs[i]])
            prediction = predictor.predict([pool.archs[i] for i in left])
    return picked
