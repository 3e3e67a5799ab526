"""Sample quality: the paper's three metrics, and the distance to the law, which they do not show.

Notation: B samples, N nodes, F operators; a *cell* is the state of a node, one of F + 2: invalid
(as the whole sample is), absent, or an operator. A law over k nodes is an array with k axes of
cells.

Validity, uniqueness and novelty do not reveal whether samples prefer some operators or depths. The
distances do: total variation, half the sum of |p - q|, between the samples and the uniform law,
over one node, two nodes, and all nodes of a block. A block is a stage, or, in a space whose stages
are single nodes (NAS-Bench-201), all nodes that have a choice. Even draws from the law itself have
a nonzero distance; `noise` gives it as a reference.
"""

from collections.abc import Sequence, Set
from dataclasses import astuple, dataclass
from functools import reduce
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nag.generate import Samples
from nag.spaces import Architecture, SearchSpace, Stage

_INVALID, _ABSENT, _FIRST = 0, 1, 2  # cells; operator o is cell _FIRST + o


@dataclass(frozen=True)
class Summary:
    """Fractions: valid / generated, distinct / valid, and not known / distinct."""

    validity: float
    uniqueness: float
    novelty: float


def summary(samples: Samples, known: Set[bytes]) -> Summary:
    """Quality of samples; `known` are the packed training architectures."""
    novel = sum(pack(arch) not in known for arch in samples.unique)
    return Summary(samples.validity, samples.uniqueness, novel / max(len(samples.unique), 1))


def pack(arch: Architecture) -> bytes:
    """An architecture as one byte per node, so that sets of millions fit in memory."""
    return bytes(op + 1 for op in arch.ops)


@dataclass(frozen=True)
class Distances:
    """Mean total variation to the uniform law, in [0, 1]: over nodes, pairs of nodes in a block,
    and blocks."""

    node: float
    pair: float
    joint: float


def distances(space: SearchSpace, archs: Sequence[Architecture | None]) -> Distances:
    """Distances of samples (at least one) to the uniform law; None is an invalid sample."""
    cells = _cells(space, archs)
    node, pair, joint = [], [], []
    for nodes, law in _blocks(space):
        difference = _histogram(cells[:, nodes], law.shape) - law
        axes = range(len(nodes))
        node += [_variation(difference, (i,)) for i in axes]
        pair += [_variation(difference, two) for two in combinations(axes, 2)]
        joint.append(_variation(difference, tuple(axes)))
    return Distances(*(float(np.mean(found)) for found in (node, pair, joint)))


def noise(space: SearchSpace, num: int, rng: np.random.Generator, repeats: int = 20) -> Distances:
    """The distances of `num` independent draws from the law: means over `repeats`."""
    found = [astuple(distances(space, space.sample(num, rng))) for _ in range(repeats)]
    return Distances(*np.mean(found, axis=0).tolist())


def _cells(space: SearchSpace, archs: Sequence[Architecture | None]) -> NDArray[np.int64]:
    """(B, N)."""
    invalid = (_INVALID - _FIRST,) * space.shape[0]
    return np.array([invalid if arch is None else arch.ops for arch in archs]) + _FIRST


def _histogram(cells: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Relative frequencies of the cells of k nodes, (B, k) -> k axes."""
    index = np.ravel_multi_index(tuple(cells.T), shape)
    counts = np.bincount(index, minlength=int(np.prod(shape)))
    return counts.reshape(shape) / len(cells)


def _variation(difference: NDArray[np.float64], keep: tuple[int, ...]) -> float:
    """Total variation of the marginals of two laws on some of their axes."""
    away = tuple(axis for axis in range(difference.ndim) if axis not in keep)
    return 0.5 * float(np.abs(difference.sum(axis=away)).sum())


def _blocks(space: SearchSpace) -> list[tuple[list[int], NDArray[np.float64]]]:
    """(nodes, law over their cells) for each block."""
    num_cells = space.shape[1] + _FIRST
    blocks = [
        (list(range(nodes.start, nodes.stop)), _stage_law(stage, num_cells))
        for nodes, stage in zip(space.nodes, space.stages, strict=True)
        if len(stage.depths) > 1 or any(len(choices) > 1 for choices in stage.choices)
    ]
    if all(len(nodes) == 1 for nodes, _ in blocks):
        laws = [law for _, law in blocks]
        return [([node for nodes, _ in blocks for node in nodes], reduce(np.multiply.outer, laws))]
    return blocks


def _stage_law(stage: Stage, num_cells: int) -> NDArray[np.float64]:
    """A uniform depth, then a uniform operator for each node up to that depth."""

    def uniform(cells: Sequence[int]) -> NDArray[np.float64]:
        law = np.zeros(num_cells)
        law[list(cells)] = 1 / len(cells)
        return law

    used = [uniform([_FIRST + op for op in choices]) for choices in stage.choices]
    unused = [uniform([_ABSENT])] * len(used)
    of_depth = [reduce(np.multiply.outer, used[:d] + unused[d:]) for d in stage.depths]
    return sum(of_depth, np.zeros_like(of_depth[0])) / len(of_depth)
