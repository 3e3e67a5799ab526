"""A space of 144 architectures: small enough to list, with stages and depths like MobileNetV3.

Two stages of one or two layers, each layer one of three operators. Used by tests and examples.
"""

from typing import Any

import torch
from torch import Tensor

from nag.spaces.base import ABSENT, InvalidArchitectureError, Stage, StagedSpace

OPERATORS = ("a", "b", "c")


def _check(on: Tensor) -> Tensor:
    code = torch.zeros(len(on), dtype=torch.int64, device=on.device)
    first_missing = ~on[:, ::2].any(-1).all(-1)
    two_operators = (on.sum(-1) > 1).any(-1)
    code[first_missing], code[two_operators] = 2, 1
    return code


def _render(ops: tuple[int, ...]) -> str:
    letters = ["-" if op == ABSENT else OPERATORS[op] for op in ops]
    return "".join(letters[:2]) + "/" + "".join(letters[2:])


def _parse(text: str) -> tuple[int, ...]:
    letters = text.replace("/", "", 1)
    if len(text) != 5 or text[2] != "/" or not set(letters) <= {*OPERATORS, "-"}:
        raise InvalidArchitectureError(f"{text!r} is not a toy architecture, e.g. 'ab/c-'")
    return tuple(ABSENT if c == "-" else OPERATORS.index(c) for c in letters)


def _config(ops: tuple[int, ...]) -> dict[str, Any]:
    return {"layers": _render(ops)}


TOY = StagedSpace(
    name="toy",
    operators=OPERATORS,
    stages=(Stage(choices=((0, 1, 2), (0, 1, 2)), depths=(1, 2)),) * 2,
    edges=((0, 1), (1, 2), (2, 3)),
    errors={1: "a layer holds more than one operator", 2: "the first layer of a stage is absent"},
    check_rows=_check,
    render=_render,
    parse=_parse,
    config=_config,
)
