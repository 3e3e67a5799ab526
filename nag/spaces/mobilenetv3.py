"""Once-for-all MobileNetV3 (Cai et al., ICLR 2020): 5 stages of 2 to 4 layers, 2.18e19 networks.

Node 4 * stage + position is a layer with kernel 3, 5 or 7 and expand ratio 3, 4 or 6. Layers
beyond the depth of their stage are absent (all-zero rows).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nag.spaces.base import ABSENT, InvalidArchitectureError, Stage, StagedSpace, encoding

KERNELS = (3, 5, 7)
EXPANDS = (3, 4, 6)
DEPTHS = (2, 3, 4)
NUM_STAGES, MAX_DEPTH = 5, 4
LAYERS = tuple((k, e) for k in KERNELS for e in EXPANDS)  # operator index -> (kernel, expand)
RANKS = tuple((KERNELS.index(k), EXPANDS.index(e)) for k, e in LAYERS)  # ranks of the two, 0 to 2
_TOKENS = {"0-0-0": (0, ABSENT)} | {  # of the published text -> depth of the stage, operator
    f"{d}-{k}-{e}": (d, op) for d in DEPTHS for op, (k, e) in enumerate(LAYERS)
}


def depths(ops: Sequence[int]) -> list[int]:
    """Number of layers present in each stage, (5,)."""
    return [
        sum(op != ABSENT for op in ops[s * MAX_DEPTH : (s + 1) * MAX_DEPTH])
        for s in range(NUM_STAGES)
    ]


def ops_from_ofa(ks: Sequence[int], e: Sequence[int], d: Sequence[int]) -> tuple[int, ...]:
    """Operators (20,) of an OFA sub-network; `ks` and `e` are ignored at absent positions."""
    return tuple(
        LAYERS.index((ks[i], e[i])) if i % MAX_DEPTH < d[i // MAX_DEPTH] else ABSENT
        for i in range(NUM_STAGES * MAX_DEPTH)
    )


def _config(ops: tuple[int, ...]) -> dict[str, Any]:
    """OFA's format; absent positions are written as 0, so that equal networks have equal text."""
    layers = [(0, 0) if op == ABSENT else LAYERS[op] for op in ops]
    return {"ks": [k for k, _ in layers], "e": [e for _, e in layers], "d": depths(ops)}


def _render(ops: tuple[int, ...]) -> str:
    depth = depths(ops)
    return "_".join(
        "0-0-0" if op == ABSENT else f"{depth[i // MAX_DEPTH]}-{LAYERS[op][0]}-{LAYERS[op][1]}"
        for i, op in enumerate(ops)
    )


def _parse(text: str) -> tuple[int, ...]:
    tokens = text.split("_")
    if len(tokens) != NUM_STAGES * MAX_DEPTH:
        raise InvalidArchitectureError(
            f"{text!r} is not a MobileNetV3 network: expected {NUM_STAGES * MAX_DEPTH} tokens "
            f"depth-kernel-expand joined by '_', found {len(tokens)}"
        )
    ops: list[int] = []
    try:
        for first in range(0, len(tokens), MAX_DEPTH):
            ops += _parse_stage(tuple(tokens[first : first + MAX_DEPTH]))
    except KeyError as error:
        raise InvalidArchitectureError(
            f"{error.args[0]!r} in {text!r} is not a layer: expected 0-0-0, or depth-kernel-expand "
            f"with depth in {DEPTHS}, kernel in {KERNELS}, expand in {EXPANDS}"
        ) from None
    except ValueError as error:
        stage = 1 + len(ops) // MAX_DEPTH
        raise InvalidArchitectureError(
            f"stage {stage} of {text!r} is inconsistent: {error}"
        ) from None
    return tuple(ops)


@cache
def _parse_stage(tokens: tuple[str, ...]) -> tuple[int, ...]:
    """Operators (4,) of one of 7,371 stages; KeyError: not a layer, ValueError: not a stage."""
    stated, ops = zip(*(_TOKENS[token] for token in tokens), strict=True)
    depth = sum(op != ABSENT for op in ops)
    if list(stated) != [depth] * depth + [0] * (MAX_DEPTH - depth):
        raise ValueError(f"its stated depths are {list(stated)}")
    return ops


def _numbers(x: Tensor) -> Tensor:
    """Presence, kernel and expand ratio of every layer as numbers, (B, 5, 4, 3)."""
    rows = [(1, kernel - 1, expand - 1) for kernel, expand in RANKS]
    numbers = torch.tensor(rows, dtype=x.dtype, device=x.device)  # (9, 3)
    return (x @ numbers).view(-1, NUM_STAGES, MAX_DEPTH, 3)


def _layers(x: Tensor) -> Tensor:
    return _numbers(x).flatten(1)


def stage_numbers(x: Tensor) -> Tensor:
    """Encodings (B, 20, 9) -> (B, 15): the depth of each stage, and the sums over its layers of
    kernel rank and expand rank in {-1, 0, 1}."""
    return _numbers(x).sum(2).flatten(1)


def _total(x: Tensor) -> Tensor:
    return _numbers(x).sum((1, 2))


MOBILENETV3 = StagedSpace(
    name="mobilenetv3",
    operators=tuple(f"{k}-{e}" for k, e in LAYERS),
    stages=(Stage(choices=(tuple(range(len(LAYERS))),) * MAX_DEPTH, depths=DEPTHS),) * NUM_STAGES,
    render=_render,
    parse=_parse,
    config=_config,
    structure=(encoding, _layers, stage_numbers, _total),
)
