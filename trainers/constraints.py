"""Parses constraints that users type: 'macs<=300e6', 'params<=6e6', 'latency<=25'."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from nag.errors import UserError
from nag.properties import Constraint, Property
from nag.spaces import SearchSpace
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from trainers.cost import COSTS, Task, cost_property, task_of_data_set
from trainers.latency.tables import latency_property

Builder = Callable[[SearchSpace, str | Task | None, str | None], Property]

_PATTERN = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([-+.\w]+)\s*")


def parse_constraint(text: str) -> tuple[str, bool, float]:
    """'macs<=300e6' -> ("macs", True, 3e8); True means "at most". Raises UserError."""
    match = _PATTERN.fullmatch(text)
    try:
        if match and math.isfinite(limit := float(match[3])):
            return match[1], match[2] == "<=", limit
    except ValueError:
        pass
    raise UserError(
        f"{text!r} is not a constraint: expected QUANTITY<=NUMBER or QUANTITY>=NUMBER, "
        "e.g. 'macs<=300e6'"
    )


def build_property(
    space: SearchSpace, name: str, task: str | Task | None, latency_table: str | None
) -> Property:
    """A property by name; raises UserError if the space does not have it.

    task: the task of the networks, or the name of a data set; None means the usual one of the
        space, or for a latency, networks of any width.
    """
    known = PROPERTIES.get(space.name, {})
    if name not in known:
        choice = f"choose from {', '.join(known)}" if known else "it has none"
        raise UserError(f"unknown quantity {name!r} of the space {space.name}: {choice}")
    return replace(known[name](space, task, latency_table), name=name)


def build_constraints(
    space: SearchSpace, texts: Sequence[str], task: str | Task | None, latency_table: str | None
) -> tuple[Constraint, ...]:
    """Constraints from their texts; raises UserError, also if one cannot be met.

    task, latency_table: as for `build_property`.
    """
    constraints = []
    for text in texts:
        name, at_most, limit = parse_constraint(text)
        constraint = Constraint(build_property(space, name, task, latency_table), limit, at_most)
        if not constraint.possible:
            low, high = constraint.quantity.extremes
            raise UserError(
                f"no architecture of {space.name} satisfies {text!r}: {name} is between {low:.6g} "
                f"and {high:.6g}"
            )
        constraints.append(constraint)
    for name in dict.fromkeys(constraint.quantity.name for constraint in constraints):
        bounds = [c for c in constraints if c.quantity.name == name]
        least = max((c.limit for c in bounds if not c.at_most), default=-math.inf)
        most = min((c.limit for c in bounds if c.at_most), default=math.inf)
        if least > most:
            raise UserError(f"{name} cannot be at least {least:.6g} and at most {most:.6g}")
    return tuple(constraints)


def nothing_satisfies(texts: Sequence[str]) -> UserError:
    """The error of a search that finds no architecture at all."""
    return UserError(f"no architecture found that satisfies {' and '.join(texts)}")


def _cost(name: str, by_default: str) -> Builder:
    return lambda space, task, _: cost_property(space, name, task or by_default)


def _latency(space: SearchSpace, task: str | Task | None, table: str | None) -> Property:
    if table is None:
        raise UserError("latency needs --latency-table")
    if isinstance(task, str):
        task = task_of_data_set(space.name, task)
    return latency_property(space, table, task)


# Space -> quantity -> builder of its property from the space, the task of its networks, and
# --latency-table.
PROPERTIES: dict[str, dict[str, Builder]] = {
    MOBILENETV3.name: {**{name: _cost(name, "imagenet") for name in COSTS}, "latency": _latency},
    NASBENCH201.name: {name: _cost(name, "cifar10") for name in COSTS},
}
