"""An architecture as its decisions: of each stage the depth, then the operator of each slot.

Shapes: n architectures, D decisions, K options at most.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nag.spaces import ABSENT, Architecture, SearchSpace


def options(space: SearchSpace) -> list[tuple[int, ...]]:
    """What each of the D decisions chooses from."""
    return [choice for stage in space.stages for choice in (stage.depths, *stage.choices)]


def one_hot(space: SearchSpace, archs: Sequence[Architecture]) -> NDArray[np.float64]:
    """(n, D, K) the option that was chosen; zero for the operator of a slot that is absent."""
    decisions = options(space)
    found = np.zeros((len(archs), len(decisions), max(map(len, decisions))))
    for chosen, arch in zip(found, archs, strict=True):
        for decision, option in enumerate(_decided(space, arch)):
            if option != ABSENT:
                chosen[decision, decisions[decision].index(option)] = 1
    return found


def _decided(space: SearchSpace, arch: Architecture) -> Iterator[int]:
    """What is chosen at each of the D decisions."""
    for nodes in space.nodes:
        held = arch.ops[nodes]
        yield sum(op != ABSENT for op in held)
        yield from held


def draw(
    space: SearchSpace, probabilities: NDArray[np.float64], n: int, rng: np.random.Generator
) -> list[Architecture]:
    """n architectures with independent decisions; probabilities (D, K), zero beyond the options."""
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
