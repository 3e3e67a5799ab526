"""Architectures as small SVG pictures. A space without its own drawing gets the plain one.

Elements carry a class, so that a drawing can be read back: `layer` is a box, `edge` an operation
that is present, `none` one that is not. Text and lines take the colours of the page.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import NamedTuple

from nag.spaces import ABSENT, Architecture, SearchSpace
from nag.spaces.mobilenetv3 import LAYERS
from nag.spaces.nasbench201 import CELL_EDGES, OPERATORS

_WIDTH = 340  # of every drawing
_LEFT = 22.0  # of the first box in a row
_FONT = 10


class Box(NamedTuple):
    """How one layer is drawn."""

    label: str
    width: float
    height: float
    fill: str
    ink: str  # of the label


def draw(space: SearchSpace, arch: Architecture) -> str:
    """The architecture as an `<svg>` element without ids."""
    return DRAWINGS.get(space.name, _PLAIN).draw(space, arch)


def legend(space: SearchSpace) -> str:
    """What the drawings of a space show, in a sentence."""
    return DRAWINGS.get(space.name, _PLAIN).legend


def _draw_plain(space: SearchSpace, arch: Architecture) -> str:
    """A row of named boxes per stage."""
    longest = int((_WIDTH - _LEFT - 24) / 6.5)
    names = [n if len(n) <= longest else n[: longest - 1] + "…" for n in space.operators]
    width = 24 + 6.5 * max(map(len, names))
    boxes = [Box(name, width, 22, "#d8dee6", "#1d2126") for name in names]
    return _draw_stages(space, arch, boxes)


def _draw_mobilenetv3(space: SearchSpace, arch: Architecture) -> str:
    """Height and colour of a box show the kernel size, its width the expand ratio."""
    colours = {3: ("#a9cce8", "#10202e"), 5: ("#4a90c8", "#ffffff"), 7: ("#174f86", "#ffffff")}
    boxes = [Box(f"{k}×{k} e{e}", 10.5 * e + 9, 12 + 2 * k, *colours[k]) for k, e in LAYERS]
    return _draw_stages(space, arch, boxes)


def _draw_stages(space: SearchSpace, arch: Architecture, boxes: Sequence[Box]) -> str:
    """The layers present in each stage in a row, or in several if one is too short.

    boxes: (F,) how each operator looks; none is wider than a row.
    """
    row_height = max(box.height for box in boxes) + 6
    parts, ops, middle = [], iter(arch.ops), row_height / 2
    for s, stage in enumerate(space.stages):
        parts.append(_text(str(s + 1), 8, middle, "class='label'"))
        x = _LEFT
        for op in [next(ops) for _ in stage.choices]:
            if op != ABSENT:
                if x + boxes[op].width > _WIDTH:
                    x, middle = _LEFT, middle + row_height
                parts.append(_box(boxes[op], x, middle))
                x += boxes[op].width + 4
        middle += row_height
    return _svg(middle - row_height / 2, parts, space.to_str(arch))


def _draw_nasbench201(space: SearchSpace, arch: Architecture) -> str:
    """The cell: four feature maps and the operation on each of the six edges between them."""
    spacing, left, base = 97, 24, 92
    bend = {(0, 2): -72, (0, 3): -150, (1, 3): 72}  # of the curves; the other edges are straight
    parts = []
    for (tail, head), op in zip(CELL_EDGES, arch.ops[1:-1], strict=True):
        label, colour = _CELL_LOOK[OPERATORS[op]]
        a, b, dy = left + spacing * tail, left + spacing * head, bend.get((tail, head), 0)
        kind = "none" if OPERATORS[op] == "none" else "edge"
        parts.append(
            f'<path class="{kind}" d="M{a} {base}Q{(a + b) / 2} {base + dy} {b} {base}" '
            f'fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        if kind == "edge":
            look = f'fill="{colour}"' + (' class="halo"' if dy else "")
            parts.append(_text(label, (a + b) / 2, base + (dy / 2 if dy else -9), look))
    for node, name in enumerate(("in", "1", "2", "out")):
        x = left + spacing * node
        parts.append(f'<circle class="node" cx="{x}" cy="{base}" r="13"/>')
        parts.append(_text(name, x, base))
    return _svg(140, parts, space.to_str(arch))


_CELL_LOOK = {  # operator -> label, colour
    "none": ("", "#9aa3ad"),
    "skip_connect": ("skip", "#7a8590"),
    "nor_conv_1x1": ("conv 1×1", "#d9822b"),
    "nor_conv_3x3": ("conv 3×3", "#3578b8"),
    "avg_pool_3x3": ("pool 3×3", "#2f9e6e"),
}


class _Drawing(NamedTuple):
    draw: Callable[[SearchSpace, Architecture], str]
    legend: str


_PLAIN = _Drawing(_draw_plain, "Each row is a stage, each box one of its layers.")
DRAWINGS: Mapping[str, _Drawing] = MappingProxyType(
    {
        "mobilenetv3": _Drawing(
            _draw_mobilenetv3,
            "Each row is a stage, each box one of its layers: kernel size k×k (height, colour) "
            "and expand ratio e (width).",
        ),
        "nasbench201": _Drawing(
            _draw_nasbench201,
            "The cell: four feature maps and the operation on each edge; dotted: no operation.",
        ),
    }
)


def _box(box: Box, x: float, middle: float) -> str:
    rect = (
        f'<rect class="layer" x="{x:g}" y="{middle - box.height / 2:g}" width="{box.width:g}" '
        f'height="{box.height:g}" rx="3" fill="{box.fill}"/>'
    )
    return rect + _text(box.label, x + box.width / 2, middle, f'fill="{box.ink}"')


def _text(text: str, x: float, y: float, look: str = "") -> str:
    return f'<text x="{x:g}" y="{y + 0.35 * _FONT:g}" {look}>{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], name: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" '
        f'viewBox="0 0 {_WIDTH} {height:g}" font-size="{_FONT}" text-anchor="middle" '
        f'aria-label="{escape(name)}">{"".join(parts)}</svg>'
    )
