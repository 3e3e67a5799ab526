"""A space of 144 architectures: small enough to list, with stages and depths like MobileNetV3.

Two stages of one or two layers; each layer is one of three operators. For tests and examples.
"""

from nag.spaces.base import ABSENT, InvalidArchitectureError, Stage, StagedSpace

OPERATORS = ("a", "b", "c")


def _render(ops: tuple[int, ...]) -> str:
    letters = ["-" if op == ABSENT else OPERATORS[op] for op in ops]
    return "".join(letters[:2]) + "/" + "".join(letters[2:])


def _parse(text: str) -> tuple[int, ...]:
    letters = text.replace("/", "", 1)
    if len(text) != 5 or text[2] != "/" or not set(letters) <= {*OPERATORS, "-"}:
        raise InvalidArchitectureError(f"{text!r} is not a toy architecture, e.g. 'ab/c-'")
    return tuple(ABSENT if c == "-" else OPERATORS.index(c) for c in letters)


TOY = StagedSpace(
    name="toy",
    operators=OPERATORS,
    stages=(Stage(choices=((0, 1, 2), (0, 1, 2)), depths=(1, 2)),) * 2,
    render=_render,
    parse=_parse,
)
