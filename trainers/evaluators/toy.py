"""A synthetic objective on the toy space, for tests and examples; it measures nothing real."""

import math
import time

from nag.errors import UserError
from nag.spaces import ABSENT, Architecture
from nag.spaces.toy import TOY
from trainers.base import Measurement

# Score of operators a, b, c at each slot; an absent layer scores 0.
_SCORES = ((0.1, 0.5, 0.3), (0.4, -0.2, 0.2), (0.2, 0.3, 0.0), (-0.3, 0.1, 0.6))
_BONUS = 0.7  # operator c in the first slot together with b in the third


class ToyEvaluator:
    """Logistic function of one score per slot and one interaction, in (0, 1).

    The best of the 144 architectures is "ca/bc"; without the interaction it would be "ba/bc", so a
    purely additive model misses it.
    """

    @property
    def optimum(self) -> float:
        return self.evaluate(TOY.from_str("ca/bc"), seed=0).value

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        """The synthetic value of `arch`; `seed` is ignored."""
        start = time.perf_counter()
        if arch.space != TOY.name:
            raise UserError(f"the toy evaluator supports the space {TOY.name}, not {arch.space}")
        score = sum(
            scores[op] for scores, op in zip(_SCORES, arch.ops, strict=True) if op != ABSENT
        )
        if arch.ops[0] == 2 and arch.ops[2] == 1:
            score += _BONUS
        return Measurement(1 / (1 + math.exp(-score)), seconds=time.perf_counter() - start)
