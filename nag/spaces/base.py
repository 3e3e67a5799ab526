"""What a search space is.

Shapes: B batch, N nodes, F operators per node.

An architecture assigns one operator, or none (``ABSENT``), to every node of a fixed graph. Its
encoding is the matrix V (N, F) of one-hot rows; the row of an absent node is all zeros. The graph
is a constant of the space: only V is ever generated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, chain, pairwise, product
from math import prod
from operator import contains
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

ABSENT = -1


class InvalidArchitectureError(ValueError):
    """A text, encoding or operator list that is not an architecture of the space."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture: a plain value that can be compared, hashed and used as a key."""

    space: str
    ops: tuple[int, ...]  # (N,) operator of each node, ABSENT = -1


@dataclass(frozen=True)
class Stage:
    """Consecutive nodes; the first `depth` are present. Allowed depths are equally likely.

    choices: the operators that each slot of the stage may hold.
    depths: the allowed numbers of present nodes; the largest is that of all nodes.
    """

    choices: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]


class SearchSpace(Protocol):
    """What all other code expects of a search space; one contract test runs on every space."""

    @property
    def name(self) -> str: ...

    @property
    def operators(self) -> tuple[str, ...]:
        """(F,) names of the operators."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The uniform law: independent stages, with independent nodes."""
        ...

    @property
    def nodes(self) -> tuple[slice, ...]:
        """The nodes of each stage."""
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

    def neighbours(self, arch: Architecture) -> list[Architecture]:
        """Every architecture that `mutate` can return for `arch`, each once."""
        ...

    def encode(self, archs: Sequence[Architecture]) -> Tensor:
        """(B, N, F) float32 in {0, 1}."""
        ...

    def check(self, x: Tensor) -> Tensor:
        """(B, N, F) real -> (B,) int64: 0 if valid, else the first broken rule (see `errors`)."""
        ...

    def decode(self, x: Tensor) -> list[Architecture | None]:
        """(B, N, F) real; entries above 0.5 count as 1. None for an invalid sample."""
        ...

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, F) in [0, 1] -> groups (B, D_g) of smooth features for the surrogate.

        The surrogate learns a weight per group. Equivalent architectures may share features.
        """
        ...

    def to_str(self, arch: Architecture) -> str:
        """The published notation of an architecture."""
        ...

    def from_str(self, text: str) -> Architecture:
        """Inverse of `to_str`; raises InvalidArchitectureError."""
        ...

    def to_config(self, arch: Architecture) -> dict[str, Any]:
        """A JSON object that the space's own tools can read."""
        ...


def encoding(x: Tensor) -> Tensor:
    """(B, N, F) -> (B, N F): the features of a space that defines none of its own."""
    return x.flatten(1)


@dataclass(frozen=True, eq=False)
class StagedSpace:
    """A search space made of stages. Implements `SearchSpace`.

    A matrix is valid when it encodes an architecture that the stages allow. Name, operators and
    stages are required. The other fields are optional and have defaults:

    edges: (u, v) pairs of the graph over the N nodes. Default: a chain.
    render, parse: operators (N,) to published text and back; `parse` need not check validity.
        Default: the names of the present operators, "," within a stage and "/" between stages.
    config: operators (N,) to a JSON object. Default: the operator names of each stage.
    structure: functions (B, N, F) -> (B, D_g), groups of smooth features for the surrogate.
        Default: the encoding itself.
    """

    name: str
    operators: tuple[str, ...]
    stages: tuple[Stage, ...]
    edges: tuple[tuple[int, int], ...] | None = None
    render: Callable[[tuple[int, ...]], str] | None = None
    parse: Callable[[str], tuple[int, ...]] | None = None
    config: Callable[[tuple[int, ...]], dict[str, Any]] | None = None
    structure: tuple[Callable[[Tensor], Tensor], ...] = (encoding,)

    errors: ClassVar[Mapping[int, str]] = MappingProxyType(
        {
            1: "a node holds more than one operator",
            2: "a stage has a gap, or a number of nodes that is not allowed",
            3: "a node holds an operator that is none of its choices",
        }
    )

    def __post_init__(self) -> None:
        if not any(stage.choices for stage in self.stages):
            raise ValueError(f"{self.name}: needs at least one stage with a node")
        last = len(self.operators) - 1
        for number, stage in enumerate(self.stages, start=1):
            for choices in stage.choices:
                if not _are_distinct(choices, range(last + 1)):
                    raise ValueError(
                        f"{self.name}, stage {number}: the choices of a node are different indices "
                        f"of operators, 0 to {last}, not {choices!r}"
                    )
            slots = len(stage.choices)
            if not _are_distinct(stage.depths, range(slots + 1)) or slots not in stage.depths:
                raise ValueError(
                    f"{self.name}, stage {number}: depths are different numbers up to that of its "
                    f"nodes, {slots}, and include it, not {stage.depths!r}"
                )
        if (self.render is None) != (self.parse is None):
            raise ValueError(f"{self.name}: render and parse go together")
        if self.render is None and (
            len({*self.operators}) < len(self.operators)
            or any(not name or name.strip() != name or {*name} & {*",/"} for name in self.operators)
        ):
            raise ValueError(
                f"{self.name}: without render, operators need distinct names without ',' and '/'"
            )

    @cached_property
    def shape(self) -> tuple[int, int]:
        return sum(len(stage.choices) for stage in self.stages), len(self.operators)

    @cached_property
    def size(self) -> int:
        """Number of distinct architectures."""
        return prod(
            sum(prod(map(len, stage.choices[:depth])) for depth in stage.depths)
            for stage in self.stages
        )

    @cached_property
    def adjacency(self) -> Tensor:
        n = self.shape[0]
        adjacency = torch.zeros(n, n, dtype=torch.bool)
        for u, v in pairwise(range(n)) if self.edges is None else self.edges:
            adjacency[u, v] = True
        return adjacency

    @cached_property
    def slots(self) -> Tensor:
        return torch.tensor(
            [(s, j) for s, stage in enumerate(self.stages) for j in range(len(stage.choices))]
        )

    @cached_property
    def nodes(self) -> tuple[slice, ...]:
        ends = accumulate((len(stage.choices) for stage in self.stages), initial=0)
        return tuple(slice(first, end) for first, end in pairwise(ends))

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
        moves: list[tuple[slice, Stage, int | None]] = []  # None: the depth, else an operator
        for nodes, stage in zip(self.nodes, self.stages, strict=True):
            for j, choices in enumerate(stage.choices):
                if len(choices) > 1 and ops[nodes.start + j] != ABSENT:
                    moves.append((nodes, stage, j))
            if len(stage.depths) > 1:
                moves.append((nodes, stage, None))
        nodes, stage, slot = moves[rng.integers(len(moves))]
        own = ops[nodes]
        if slot is not None:
            own[slot] = int(rng.choice([op for op in stage.choices[slot] if op != own[slot]]))
        else:
            depth = sum(op != ABSENT for op in own)
            new_depth = int(rng.choice([d for d in stage.depths if d != depth]))
            own[new_depth:] = [ABSENT] * (len(own) - new_depth)
            new = [int(rng.choice(choices)) for choices in stage.choices[depth:new_depth]]
            own[depth:new_depth] = new  # nothing if the stage becomes shallower
        ops[nodes] = own
        return Architecture(self.name, tuple(ops))

    def neighbours(self, arch: Architecture) -> list[Architecture]:
        ops = arch.ops
        return [
            Architecture(self.name, ops[: nodes.start] + other + ops[nodes.stop :])
            for nodes, stage in zip(self.nodes, self.stages, strict=True)
            for other in _changes(stage, ops[nodes])
        ]

    def encode(self, archs: Sequence[Architecture]) -> Tensor:
        ops = torch.tensor([arch.ops for arch in archs]).reshape(-1, self.shape[0])  # (B, N)
        return (ops[..., None] == torch.arange(self.shape[1])).float()  # (B, N, F)

    def check(self, x: Tensor) -> Tensor:
        on = x > 0.5
        code = torch.zeros(len(on), dtype=torch.int64, device=on.device)
        code[(on & ~self._allowed.to(on.device)).flatten(1).any(1)] = 3
        for nodes, stage in zip(self.nodes, self.stages, strict=True):
            present = on[:, nodes].any(-1)
            hole = (present[:, 1:] & ~present[:, :-1]).any(1)
            depths = torch.tensor(stage.depths, device=on.device)
            code[hole | ~torch.isin(present.sum(1), depths)] = 2
        code[(on.sum(-1) > 1).any(-1)] = 1  # last, so that the first rule wins
        return code

    @cached_property
    def _allowed(self) -> Tensor:
        """(N, F) bool: the operators that each node may hold."""
        choices = [slot for stage in self.stages for slot in stage.choices]
        return torch.tensor([[op in slot for op in range(self.shape[1])] for slot in choices])

    def decode(self, x: Tensor) -> list[Architecture | None]:
        on = x > 0.5
        valid = (self.check(x) == 0).tolist()
        ops = torch.where(on.any(-1), on.int().argmax(-1), ABSENT).tolist()  # (B, N)
        return [
            Architecture(self.name, tuple(row)) if ok else None
            for row, ok in zip(ops, valid, strict=True)
        ]

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(group(x) for group in self.structure)

    def to_str(self, arch: Architecture) -> str:
        if self.render is not None:
            return self.render(arch.ops)
        return "/".join(",".join(names) for names in self._names(arch.ops))

    def from_str(self, text: str) -> Architecture:
        ops = (self.parse or self._parse_names)(text.strip())
        if not self._holds(ops):
            raise InvalidArchitectureError(f"{text!r} is not an architecture of {self.name}")
        return Architecture(self.name, ops)

    def to_config(self, arch: Architecture) -> dict[str, Any]:
        if self.config is not None:
            return self.config(arch.ops)
        return {"stages": self._names(arch.ops)}

    def _holds(self, ops: tuple[int, ...]) -> bool:
        """Whether `check` would accept the encoding of operators (N,), without encoding them."""
        if len(ops) != self.shape[0]:
            return False
        return all(_fits(self, s, ops[nodes]) for s, nodes in enumerate(self.nodes))

    # Default notation, derived from `stages`, for spaces without functions of their own.

    def _names(self, ops: tuple[int, ...]) -> list[list[str]]:
        """Names of the present operators of each stage."""
        return [[self.operators[op] for op in ops[nodes] if op != ABSENT] for nodes in self.nodes]

    def _parse_names(self, text: str) -> tuple[int, ...]:
        stages = [part.split(",") if part else [] for part in text.split("/")]
        if len(stages) != len(self.stages) or not {*chain(*stages)} <= {*self.operators}:
            raise InvalidArchitectureError(
                f"{text!r} is not an architecture of {self.name}: expected operators joined by ',' "
                f"in {len(self.stages)} stages joined by '/'"
            )
        ops: list[int] = []
        for stage, names in zip(self.stages, stages, strict=True):
            ops += [self.operators.index(name) for name in names]
            ops += [ABSENT] * (len(stage.choices) - len(names))
        return tuple(ops)


def _are_distinct(values: object, allowed: range) -> bool:
    """Whether `values` are one or more numbers, all different and allowed."""
    if not isinstance(values, Sequence) or not values:
        return False
    return len({*values}) == len(values) and all(value in allowed for value in values)


def _changes(stage: Stage, own: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Change the operator of one present slot, or the depth, with any operators in new slots."""
    depth = sum(op != ABSENT for op in own)
    for slot in range(depth):
        for op in stage.choices[slot]:
            if op != own[slot]:
                yield (*own[:slot], op, *own[slot + 1 :])
    for other in stage.depths:
        if other != depth:
            absent = (ABSENT,) * (len(own) - other)
            for new in product(*stage.choices[depth:other]):
                yield own[: min(depth, other)] + new + absent


@lru_cache(2**16)  # a stage has few possible contents, and they are checked again and again
def _fits(space: StagedSpace, stage: int, ops: tuple[int, ...]) -> bool:
    """Whether a stage may hold these operators."""
    choices, depths = space.stages[stage].choices, space.stages[stage].depths
    depth = len(ops) - ops.count(ABSENT)
    present = ops[:depth]
    return depth in depths and ABSENT not in present and all(map(contains, choices, present))
