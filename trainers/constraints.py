"""Constraints from what a user types: 'macs<=300e6', 'params<=6e6', 'latency<=25'."""

import math
import re
from collections.abc import Sequence

from nag.properties import Constraint, Property
from nag.spaces import SearchSpace
from trainers.base import EvaluatorConfigError
from trainers.cost import cost_property
from trainers.latency.tables import latency_property

QUANTITIES = ("macs", "params", "latency")
_DATASET = {"mobilenetv3": "imagenet", "nasbench201": "cifar10"}
_PATTERN = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([-+.\w]+)\s*")


def parse_constraint(text: str) -> tuple[str, bool, float]:
    """'macs<=300e6' -> ("macs", True, 3e8); the bool says at most. Raises EvaluatorConfigError."""
    match = _PATTERN.fullmatch(text)
    try:
        if match and match[1] in QUANTITIES and math.isfinite(limit := float(match[3])):
            return match[1], match[2] == "<=", limit
    except ValueError:
        pass
    raise EvaluatorConfigError(
        f"{text!r} is not a constraint: expected QUANTITY<=NUMBER or QUANTITY>=NUMBER with one of "
        f"{', '.join(QUANTITIES)}, e.g. 'macs<=300e6'"
    )


def build_property(
    space: SearchSpace, name: str, dataset: str | None, latency_table: str | None
) -> Property:
    """A property by name; raises EvaluatorConfigError for what is not known of the space."""
    if name != "latency":
        return cost_property(space, name, dataset or _DATASET.get(space.name, ""))
    if latency_table is None:
        raise EvaluatorConfigError("a constraint on latency needs --latency-table")
    return latency_property(space, latency_table)


def build_constraints(
    space: SearchSpace, texts: Sequence[str], dataset: str | None, latency_table: str | None
) -> tuple[Constraint, ...]:
    """Constraints from their texts; raises EvaluatorConfigError, also when none can be met."""
    constraints = []
    for text in texts:
        name, at_most, limit = parse_constraint(text)
        constraint = Constraint(build_property(space, name, dataset, latency_table), limit, at_most)
        if not constraint.possible:
            low, high = constraint.quantity.extremes
            raise EvaluatorConfigError(
                f"no architecture of {space.name} satisfies {text!r}: {name} is between {low:.6g} "
                f"and {high:.6g}"
            )
        constraints.append(constraint)
    for name in dict.fromkeys(constraint.quantity.name for constraint in constraints):
        bounds = [c for c in constraints if c.quantity.name == name]
        least = max((c.limit for c in bounds if not c.at_most), default=-math.inf)
        most = min((c.limit for c in bounds if c.at_most), default=math.inf)
        if least > most:
            raise EvaluatorConfigError(f"no {name} is at least {least:.6g} and at most {most:.6g}")
    if latency_table is not None and all(c.quantity.name != "latency" for c in constraints):
        raise EvaluatorConfigError("--latency-table goes with a constraint on latency")
    return tuple(constraints)
