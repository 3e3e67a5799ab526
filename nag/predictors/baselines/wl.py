"""NASBOWL's surrogate: a Gaussian process with the Weisfeiler-Lehman subtree kernel.

Nodes are labelled with their operators. Every iteration replaces the label of a node by one for the
pair (its own label, the multiset of its successors' labels). With phi_i(G) the counts of the labels
after i iterations,

    k_h(G, G') = sum_{i <= h} <phi_i(G), phi_i(G')>,
    K_h(G, G') = k_h(G, G') / sqrt(k_h(G, G) k_h(G', G')).

Ru et al., ICLR 2021; Shervashidze et al., JMLR 2011. Shapes: B graphs, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nag.predictors.base import Observations
from nag.predictors.baselines.outputs import log_error
from nag.predictors.baselines.posterior import Posterior
from nag.spaces import ABSENT, Architecture, SearchSpace

CUTS = ("none",)  # operators that pass nothing on
PASSES = ("skip_connect",)  # operators that pass their input on unchanged

ITERATIONS = (0, 1, 2)  # h to choose from
NOISES = tuple(np.geomspace(1e-5, 1e-2, 31))  # variances to choose from, the range of NASBOWL


class Graphs(NamedTuple):
    """Labelled directed graphs."""

    labels: NDArray[np.int64]  # (B, N), ABSENT for a missing node
    edges: NDArray[np.bool_]  # (B, N, N), [u, v] is True when u feeds v


def graphs(space: SearchSpace, ops: NDArray[np.int64]) -> Graphs:
    """The graphs that operators (B, N) compute, reduced to nodes that change their input.

    `none` and whatever it cuts off are removed. Skip connections and absent layers are removed too,
    and their predecessors are connected to their successors. The first and last nodes stay. Labels
    are operators; layers of a stage with several layers are also labelled with their stage, since
    the same operator has another width in another stage.
    """
    fixed = space.adjacency.numpy()
    ends = ~fixed.any(0), ~fixed.any(1)
    cut = np.isin(ops, _indices(space, CUTS))
    passing = (ops == ABSENT) | np.isin(ops, _indices(space, PASSES))
    edges = fixed & ~cut[:, :, None] & ~cut[:, None, :]
    fed, feeding = (np.tile(end, (len(ops), 1)) for end in ends)
    for _ in range(len(fixed)):
        fed |= (fed[:, :, None] & edges).any(1)
        feeding |= (edges & feeding[:, None, :]).any(2)
    kept = ((fed & feeding & ~cut) | ends[0] | ends[1]) & ~passing
    edges &= (fed & feeding)[:, :, None] & (fed & feeding)[:, None, :]
    for v in range(len(fixed)):
        edges |= edges[:, :, v, None] & edges[:, None, v, :] & passing[:, v, None, None]
    edges &= kept[:, :, None] & kept[:, None, :]
    return Graphs(np.where(kept, ops + _stage_offsets(space), ABSENT), edges)


def subtree_counts(graphs: Graphs, iterations: int) -> NDArray[np.float64]:
    """(phi_0, .., phi_h) side by side, (B, number of labels in these graphs)."""
    labels, edges = graphs
    present = labels != ABSENT
    graph = present.nonzero()[0]  # of each node
    degree = int(edges.sum(2).max(initial=1))
    rows = labels[present][:, None]
    counts = []
    for _ in range(iterations + 1):
        names, index = np.unique(rows, axis=0, return_inverse=True)
        labels = np.full_like(labels, ABSENT)
        labels[present] = index
        phi = np.zeros((len(labels), len(names)))
        np.add.at(phi, (graph, index), 1)
        counts.append(phi)
        successors = np.where(edges, labels[:, None, :], ABSENT)  # (B, N, N)
        multisets = np.sort(successors, axis=2)[:, :, -degree:]  # the others are ABSENT
        rows = np.concatenate([labels[:, :, None], multisets], axis=2)[present]
    return np.concatenate(counts, axis=1)


@dataclass(frozen=True)
class SubtreeKernel:
    """K_h of operators (B, N) and (n, N)."""

    space: SearchSpace
    iterations: int  # h

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        phi = subtree_counts(graphs(self.space, torch.cat([left, right]).numpy()), self.iterations)
        unit = torch.from_numpy(phi / np.maximum(np.linalg.norm(phi, axis=1, keepdims=True), 1))
        return unit[: len(left)] @ unit[len(left) :].T


@dataclass(frozen=True)
class WeisfeilerLehmanGaussianProcess:
    """NASBOWL's Gaussian process on any search space. Implements `SurrogatePredictor`.

    Values y become -log(1 - y), standardised. h and the noise variance maximise the marginal
    likelihood on a grid; the amplitude is 1.
    """

    space: SearchSpace

    def _inputs(self, archs: Sequence[Architecture]) -> Tensor:
        return torch.tensor([arch.ops for arch in archs]).reshape(-1, self.space.shape[0])

    def fit(self, observations: Observations, rng: np.random.Generator) -> Posterior:
        del rng
        outputs = log_error(observations.values)
        X, z = self._inputs(observations.archs), torch.from_numpy(outputs.z)
        found = []
        for iterations in ITERATIONS:
            kernel = SubtreeKernel(self.space, iterations)
            evidence = log_evidence(kernel(X, X), z, NOISES)
            best = int(evidence.argmax())
            found.append((float(evidence[best]), NOISES[best], kernel))
        _, noise, kernel = max(found, key=lambda item: item[0])
        return Posterior(self._inputs, kernel, 0.0, noise, outputs, X, z)


def log_evidence(K: Tensor, z: Tensor, noises: Sequence[float]) -> Tensor:
    """log N(z | 0, K + noise I), up to a constant, for each noise variance.

    One decomposition K = U diag(l) U' serves them all.
    """
    eigenvalues, U = torch.linalg.eigh(K)
    total = eigenvalues.clamp_min(0) + torch.tensor(noises, dtype=K.dtype)[:, None]
    return -0.5 * ((U.T @ z).square() / total + total.log()).sum(1)


def _stage_offsets(space: SearchSpace) -> NDArray[np.int64]:
    """(N,) offsets that distinguish the operators of stages with several layers."""
    stage = space.slots[:, 0].numpy()
    has_several = np.array([len(s.choices) > 1 for s in space.stages])
    return space.shape[1] * np.where(has_several[stage], stage + 1, 0)


def _indices(space: SearchSpace, names: Sequence[str]) -> list[int]:
    return [i for i, name in enumerate(space.operators) if name in names]
