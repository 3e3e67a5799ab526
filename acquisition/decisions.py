"""An architecture as its decisions: for each stage, the depth, then the operator of each slot.

Shapes: n architectures, D decisions, at most K options.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nag.spaces import ABSENT, Architecture, SearchSpace


def options(space: SearchSpace) -> list[tuple[int, ...]]:
    """The options of each of the D decisions."""
    return [choice for stage in space.stages for choice in (stage.depths, *stage.choices)]


def one_hot(space: SearchSpace, archs: Sequence[Architecture]) -> NDArray[np.float64]:
    """(n, D, K): the chosen options; all zeros for the operator of an absent slot."""
    decisions = options(space)
    found = np.zeros((len(archs), len(decisions), max(map(len, decisions))))
    for chosen, arch in zip(found, archs, strict=True):
        for decision, option in enumerate(_decided(space, arch)):
            if option != ABSENT:
                chosen[decision, decisions[decision].index(option)] = 1
    return found


def _decided(space: SearchSpace, arch: Architecture) -> Iterator[int]:
    """The chosen option of each of the D decisions."""
    for nodes in space.nodes:
        held = arch.ops[nodes]
        yield sum(op != ABSENT for op in held)
        yield from held


def draw(
    space: SearchSpace, probabilities: NDArray[np.float64], n: int, rng: np.random.Generator
) -> list[Architecture]:
    """Draw n architectures with independent decisions.

    probabilities: (D, K), zero beyond the options.
    """
    columns = [
        rng.choice(option, size=n, p=p[: len(option)])
        for option, p in zip(options(space), probabilities, strict=True)
    ]
    rows: list[NDArray[np.int64]] = []
    first = 0
    for stage in space.stages:
        depth, *slots = columns[first : first + 1 + len(stage.choices)]
        rows += [np.where(j < depth, ops, ABSENT) for j, ops in enumerate(slots)]
        first += 1 + len(slots)
    return [Architecture(space.name, tuple(row)) for row in np.stack(rows, 1).tolist()]
