"""NAS-Bench-201 (Dong & Yang, ICLR 2020): a cell of six operators, 15,625 architectures.

The cell is a DAG over four feature maps; its six edges carry the operators. As in DiffusionNAG, we
generate its *line graph*: a node per cell edge, plus input (node 0) and output (node 7).
"""

import re
from typing import Any

import torch
from torch import Tensor

from nag.spaces.base import InvalidArchitectureError, Stage, StagedSpace

OPERATORS = (
    "input",
    "output",
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
)
CELL_OPERATORS = OPERATORS[2:]
INPUT, OUTPUT = 0, 1

# Cell edges of nodes 1..6, in the order of the published string.
CELL_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

_PATTERN = re.compile(
    r"\|{op}~0\|\+\|{op}~0\|{op}~1\|\+\|{op}~0\|{op}~1\|{op}~2\|".replace("{op}", r"([a-z0-9_]+)")
)


def _line_graph() -> tuple[tuple[int, int], ...]:
    """u -> v when cell edge v starts where cell edge u ends; plus input and output at the ends."""
    nodes = list(enumerate(CELL_EDGES, start=1))
    edges = [(0, v) for v, (tail, _) in nodes if tail == 0]
    edges += [(u, v) for u, (_, head) in nodes for v, (tail, _) in nodes if head == tail]
    edges += [(u, 7) for u, (_, head) in nodes if head == 3]
    return tuple(sorted(edges))


def _render(ops: tuple[int, ...]) -> str:
    a, b, c, d, e, f = (OPERATORS[op] for op in ops[1:7])
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def _parse(text: str) -> tuple[int, ...]:
    match = _PATTERN.fullmatch(text)
    if not match or not set(match.groups()) <= set(CELL_OPERATORS):
        raise InvalidArchitectureError(
            f"{text!r} is not a NAS-Bench-201 cell: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2| "
            f"with op one of {', '.join(CELL_OPERATORS)}"
        )
    return (INPUT, *(OPERATORS.index(op) for op in match.groups()), OUTPUT)


def _config(ops: tuple[int, ...]) -> dict[str, Any]:
    return {"name": "infer.tiny", "arch_str": _render(ops)}


Words = list[Tensor]  # entry n: (B, 3^n), how many paths spell each word of n letters


def _then(p: Words, q: Words) -> Words:
    """Each word of `p` followed by each of `q`: a product of non-commutative polynomials."""
    out: Words = [torch.zeros(1)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            out[i + j] = out[i + j].to(a) + (a[:, :, None] * b[:, None, :]).flatten(1)
    return out


def _plus(p: Words, q: Words) -> Words:
    """Words of `p` and `q` together; `q` must be at least as long as `p`."""
    return [a + b for a, b in zip(p, q, strict=False)] + q[len(p) :]


def _paths(x: Tensor) -> Tensor:
    """How many paths from input to output spell each word of at most three letters, (B, 40).

    A path spells the word of its operators (conv 1x1, conv 3x3, pooling), without skips; a path
    through `none` does not count. So cells that compute the same function have the same words. This
    is the path encoding of BANANAS (White et al., AAAI 2021) as a polynomial in `x`.
    """
    to1, to2, one_to2, to3, one_to3, two_to3 = ([x[:, i, 3:4], x[:, i, 4:]] for i in range(1, 7))
    at2 = _plus(to2, _then(to1, one_to2))
    words = _plus(_plus(to3, _then(to1, one_to3)), _then(at2, two_to3))
    return torch.cat(words, dim=1)


def _operators(x: Tensor) -> Tensor:
    """Operators, except `none`, of the edges on a path from input to output, (B, 6, 4).

    The other edges do not affect what the cell computes. Polynomials in `x`.
    """
    operators = x[:, 1:7, 3:]
    to1, to2, one_to2, _, one_to3, two_to3 = operators.sum(-1).unbind(1)
    from1 = _either(one_to3, one_to2 * two_to3)
    at2 = _either(to2, to1 * one_to2)
    lies = torch.stack([from1, two_to3, to1 * two_to3, torch.ones_like(to1), to1, at2], dim=1)
    return operators * lies[:, :, None]


def _either(p: Tensor, q: Tensor) -> Tensor:
    return 1 - (1 - p) * (1 - q)


def _placed(x: Tensor) -> Tensor:
    """Which operator is on which edge, (B, 24)."""
    return _operators(x).flatten(1)


def _counts(x: Tensor) -> Tensor:
    """How often each operator occurs, (B, 4): this determines the size and cost of a cell."""
    return _operators(x).sum(1)


NASBENCH201 = StagedSpace(
    name="nasbench201",
    operators=OPERATORS,
    stages=(
        Stage(choices=((INPUT,),), depths=(1,)),
        *(Stage(choices=((2, 3, 4, 5, 6),), depths=(1,)) for _ in CELL_EDGES),
        Stage(choices=((OUTPUT,),), depths=(1,)),
    ),
    edges=_line_graph(),
    render=_render,
    parse=_parse,
    config=_config,
    structure=(_placed, _paths, _counts),
)
