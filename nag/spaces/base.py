"""What a search space is.

Shapes: B batch, N nodes, F operators per node.

An architecture gives every node of a fixed graph one operator, or none (``ABSENT``). Its encoding
is the matrix V (N, F) of one-hot rows; an absent node is an all-zero row. The graph itself is a
constant of the space: only V is ever generated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

ABSENT = -1


class InvalidArchitectureError(ValueError):
    """A text, encoding or operator list that is no architecture of the space."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture: its own identity, so it can be compared, hashed and used as a key."""

    space: str
    ops: tuple[int, ...]  # (N,) operator of each node, ABSENT = -1


@dataclass(frozen=True)
class Stage:
    """Consecutive nodes of which the first `depth` are present; every allowed depth is as likely.

    choices: for each slot of the stage, the operators it may hold.
    depths: the allowed numbers of present nodes.
    """

    choices: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]


class SearchSpace(Protocol):
    """The contract between a search space and everything else; one contract test runs over all."""

    @property
    def name(self) -> str: ...

    @property
    def operators(self) -> tuple[str, ...]:
        """(F,) names of the operators."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The uniform law: independent stages of independent nodes."""
        ...

    @property
    def errors(self) -> Mapping[int, str]:
        """What the codes 1, 2, 3 of `check` mean."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F)."""
        ...

    @property
    def adjacency(self) -> Tensor:
        """(N, N) bool; [u, v] is True when node u feeds node v."""
        ...

    @property
    def slots(self) -> Tensor:
        """(N, 2) int64; the stage of each node and its position inside that stage."""
        ...

    def sample(self, n: int, rng: np.random.Generator) -> list[Architecture]:
        """Draw n independent architectures from the uniform law (repeats are possible)."""
        ...

    def mutate(self, arch: Architecture, rng: np.random.Generator) -> Architecture:
        """Change one decision of `arch`: the operator of a node, or the depth of a stage."""
        ...

    def encode(self, archs: Sequence[Architecture]) -> Tensor:
        """(B, N, F) float32 in {0, 1}."""
        ...

    def check(self, x: Tensor) -> Tensor:
        """(B, N, F) real -> (B,) int64: 0 valid, else the first rule broken (see `errors`)."""
        ...

    def decode(self, x: Tensor) -> list[Architecture | None]:
        """(B, N, F) real, entries counted as 1 above 0.5; None where the sample is not valid."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """(B, N, F) in [0, 1] -> (B, D): smooth structural features a surrogate learns from."""
        ...

    def to_str(self, arch: Architecture) -> str:
        """The notation in which such architectures are published."""
        ...

    def from_str(self, text: str) -> Architecture:
        """Inverse of `to_str`; raises InvalidArchitectureError."""
        ...

    def to_config(self, arch: Architecture) -> dict[str, Any]:
        """A JSON object that the space's own tools can read."""
        ...


@dataclass(frozen=True, eq=False)
class StagedSpace:
    """A search space made of stages, completed by a few functions. Implements `SearchSpace`.

    edges: (u, v) pairs of the graph over the N nodes.
    check: (B, N, F) bool -> (B,) int64 error codes; its meanings are in `errors`.
    render, parse: operators (N,) to published text and back; `parse` need not check validity.
    config: operators (N,) to a JSON object.
    structure: optional (B, N, F) -> (B, D) smooth features, used beside the encoding itself.
    """

    name: str
    operators: tuple[str, ...]
    stages: tuple[Stage, ...]
    edges: tuple[tuple[int, int], ...]
    errors: Mapping[int, str]
    check_rows: Callable[[Tensor], Tensor]
    render: Callable[[tuple[int, ...]], str]
    parse: Callable[[str], tuple[int, ...]]
    config: Callable[[tuple[int, ...]], dict[str, Any]]
    structure: Callable[[Tensor], Tensor] | None = field(default=None)

    @cached_property
    def shape(self) -> tuple[int, int]:
        return sum(len(stage.choices) for stage in self.stages), len(self.operators)

    @cached_property
    def size(self) -> int:
        """Number of distinct architectures."""
        total = 1
        for stage in self.stages:
            total *= sum(
                int(np.prod([len(c) for c in stage.choices[:depth]], dtype=object))
                for depth in stage.depths
            )
        return total

    @cached_property
    def adjacency(self) -> Tensor:
        n = self.shape[0]
        adjacency = torch.zeros(n, n, dtype=torch.bool)
        for u, v in self.edges:
            adjacency[u, v] = True
        return adjacency

    @cached_property
    def slots(self) -> Tensor:
        return torch.tensor(
            [(s, j) for s, stage in enumerate(self.stages) for j in range(len(stage.choices))]
        )

    def _first_nodes(self) -> list[int]:
        return [0, *np.cumsum([len(stage.choices) for stage in self.stages])[:-1].tolist()]

    def sample(self, n: int, rng: np.random.Generator) -> list[Architecture]:
        columns = []
        for stage in self.stages:
            depth = rng.choice(stage.depths, size=n)
            for j, choices in enumerate(stage.choices):
                ops = rng.choice(choices, size=n)
                columns.append(np.where(j < depth, ops, ABSENT))
        return [Architecture(self.name, tuple(row)) for row in np.stack(columns, axis=1).tolist()]

    def mutate(self, arch: Architecture, rng: np.random.Generator) -> Architecture:
        ops = list(arch.ops)
        moves = [  # (first node, stage, slot), slot None = the depth of the stage
            (first, stage, j)
            for first, stage in zip(self._first_nodes(), self.stages, strict=True)
            for j in (*range(len(stage.choices)), None)
            if (len(stage.depths) > 1 if j is None else len(stage.choices[j]) > 1)
            and (j is None or ops[first + j] != ABSENT)
        ]
        first, stage, j = moves[rng.integers(len(moves))]
        if j is not None:
            ops[first + j] = int(rng.choice([o for o in stage.choices[j] if o != ops[first + j]]))
        else:
            width = len(stage.choices)
            depth = sum(op != ABSENT for op in ops[first : first + width])
            new_depth = int(rng.choice([d for d in stage.depths if d != depth]))
            for slot in range(width):
                if slot >= new_depth:
                    ops[first + slot] = ABSENT
                elif slot >= depth:
                    ops[first + slot] = int(rng.choice(stage.choices[slot]))
        return Architecture(self.name, tuple(ops))

    def encode(self, archs: Sequence[Architecture]) -> Tensor:
        ops = torch.tensor([arch.ops for arch in archs]).reshape(-1, self.shape[0])  # (B, N)
        return (ops[..., None] == torch.arange(self.shape[1])).float()  # (B, N, F)

    def check(self, x: Tensor) -> Tensor:
        return self.check_rows(x > 0.5)

    def decode(self, x: Tensor) -> list[Architecture | None]:
        on = x > 0.5
        valid = (self.check_rows(on) == 0).tolist()
        ops = torch.where(on.any(-1), on.int().argmax(-1), ABSENT).tolist()  # (B, N)
        return [
            Architecture(self.name, tuple(row)) if ok else None
            for row, ok in zip(ops, valid, strict=True)
        ]

    def features(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat if self.structure is None else torch.cat([flat, self.structure(x)], dim=1)

    def to_str(self, arch: Architecture) -> str:
        return self.render(arch.ops)

    def from_str(self, text: str) -> Architecture:
        ops = self.parse(text.strip())
        arch = Architecture(self.name, ops)
        if len(ops) != self.shape[0] or int(self.check(self.encode([arch]))) != 0:
            raise InvalidArchitectureError(f"{text!r} is not an architecture of {self.name}")
        return arch

    def to_config(self, arch: Architecture) -> dict[str, Any]:
        return self.config(arch.ops)
