"""The figures of a comparison: curves of methods in, an inline SVG out.

The colours are those of Okabe and Ito, which colour-blind people can tell apart. `guided` is drawn
thicker and on top of the others.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from orchestrator.comparison.panels import Method
from orchestrator.comparison.statistics import Numbers, Ranking
from orchestrator.comparison.summary import Curve
from orchestrator.reporting.figures import STYLE, to_svg
from orchestrator.reporting.view import Quantity
from trainers.rows import Unit

_GUIDED = "#d55e00"
_COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a94a0")
_DASHES = ("-", "--", ":", "-.")
_CROWD = 8  # methods that one pair of axes can hold
_MANY = 5  # methods whose intervals can be told apart
_LABEL = 0.062  # height of a label relative to the axes
_ZERO = 1e-9  # regret up to which none is drawn


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    dashes: str = "-"
    width: float = 1.4
    order: int = 2
    shade: float = 0.13  # opacity of the interval


class Line(NamedTuple):
    """A curve, its label and its look."""

    label: str
    look: Look
    curve: Curve


Facets = Mapping[str, Sequence[Line]]  # axes side by side, by title


def family_colours(methods: Sequence[Method]) -> dict[str, str]:
    """A colour for each family, the same in all panels that these methods come from."""
    families = dict.fromkeys(method.family for method in methods if not method.guided)
    colours = {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(families)}
    return colours | {method.family: _GUIDED for method in methods if method.guided}


def looks(methods: Sequence[Method], colours: Mapping[str, str]) -> dict[str, Look]:
    """The looks of a panel, by label: dashes distinguish equal colours in the same axes.

    If all methods belong to one family, each has its own colour.
    """
    several = _crowded(methods)
    alone = len({method.family for method in methods}) == 1
    taken: Counter[tuple[str, str]] = Counter()
    found = {}
    for i, method in enumerate(methods):
        colour = (_GUIDED, *_COLOURS)[i % 7] if alone else colours[method.family]
        axes = colour, method.facet if several else ""
        dashes = _DASHES[taken[axes] % len(_DASHES)]
        taken[axes] += 1
        width, order = (2.4, 3) if method.guided else (1.4, 2)
        faint = not (method.guided or several) and len(methods) > _MANY
        found[method.label] = Look(colour, dashes, width, order, 0.05 if faint else 0.13)
    return found


def facets(
    methods: Sequence[Method], look: Mapping[str, Look], curves: Mapping[str, Curve]
) -> Facets:
    """One pair of axes or, if that would be too crowded, one per acquisition function."""
    several = _crowded(methods)
    found: dict[str, list[Line]] = {}
    for method in methods:
        if method.label in curves:
            title = (method.facet or "named methods") if several else ""
            name = method.family if several and method.facet else method.label
            line = Line(name, look[method.label], curves[method.label])
            found.setdefault(title, []).append(line)
    return dict(sorted(found.items()))


def draw_curves(lines: Facets, name: str, *, ylabel: str, unit: Unit, watermark: str = "") -> str:
    """Best so far over evaluations: means and intervals; dotted where seeds are missing."""
    shown = _changed(lines, lambda curve: _in_unit(curve, unit))
    limits = _range(lines, unit)

    def scale(axes: Axes) -> None:
        axes.set(ylim=limits)
        _evaluations_along_x(axes)

    return _draw(shown, name, scale, ylabel, watermark)


def draw_regret(
    lines: Facets, name: str, *, optimum: float, unit: Unit, watermark: str = ""
) -> str:
    """Simple regret over evaluations on a logarithmic scale; zero is below the axis."""

    def regret(curve: Curve) -> Curve:
        found = unit.times * (optimum - curve.mean)
        return _in_unit(curve, unit)._replace(mean=np.where(found > _ZERO, found, np.nan))

    shown = _changed(lines, regret)
    seen = np.concatenate([line.curve.mean for line in _flat(shown)])
    seen = seen[np.isfinite(seen)]

    def scale(axes: Axes) -> None:
        if len(seen):
            axes.set(yscale="log", ylim=(0.7 * seen.min(), 1.5 * seen.max()))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter("{x:g}")
        _evaluations_along_x(axes)

    return _draw(shown, name, scale, unit.of_differences("simple regret"), watermark, least=_ZERO)


def draw_clock(
    lines: Facets, name: str, *, ylabel: str, unit: Unit, workers: int, watermark: str = ""
) -> str:
    """Best so far over simulated seconds of training on `workers` workers."""
    shown = _changed(lines, lambda curve: _in_unit(curve, unit)._replace(x=curve.x / 1000))
    limits, where = _range(lines, unit), "1 GPU" if workers == 1 else f"{workers} GPUs"

    def scale(axes: Axes) -> None:
        axes.set(xlabel=f"simulated time on {where}, 1000 s", ylim=limits)
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return _draw(shown, name, scale, ylabel, watermark)


def draw_fronts(
    lines: Facets, name: str, *, quantity: Quantity, ylabel: str, unit: Unit, watermark: str = ""
) -> str:
    """Best value over a limit on a quantity."""
    shown = _changed(lines, lambda c: _in_unit(c, unit)._replace(x=c.x / quantity.one))

    def scale(axes: Axes) -> None:
        axes.set(xlabel=f"limit on {quantity}")
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return _draw(shown, name, scale, ylabel, watermark)


def draw_diagnostics(
    rows: Mapping[str, Facets],
    name: str,
    *,
    ideal: Mapping[str, float] | None = None,
    watermark: str = "",
) -> str:
    """Small axes stacked vertically, one for each quantity, over windows of evaluations.

    rows: by y-axis label.
    ideal: the value for a calibrated prediction, if there is one.
    """
    titles = sorted({title for lines in rows.values() for title in lines})
    with rc_context(STYLE):
        size = (5.4 if len(titles) == 1 else 2.7 * len(titles), 0.5 + 1.25 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), len(titles), sharex=True, sharey="row", squeeze=False)
        for (ylabel, lines), row in zip(rows.items(), grid, strict=True):
            for axes, title in zip(row, titles, strict=True):
                for line in lines.get(title, ()):
                    x, mean, half, _ = line.curve
                    _band(axes, line.look, x, mean - half, mean + half)
                    _line(axes, line, x, mean, marker="o", ms=2.5)
                if ideal and ylabel in ideal:
                    axes.axhline(ideal[ylabel], color="#8a94a0", lw=0.9, ls=(0, (4, 3)))
                axes.margins(y=0.15)
                axes.ticklabel_format(axis="y", useOffset=False)
            row[0].set_ylabel(ylabel)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, fontsize=9)
        for axes in grid[-1]:
            _evaluations_along_x(axes)
        _watermark(figure, watermark)
        _key(figure, list(grid.flat))
        return to_svg(figure, name, wide=len(titles) > 1)


def draw_ranking(
    ranking: Ranking, look: Mapping[str, Look], name: str, *, watermark: str = ""
) -> str:
    """A critical-difference diagram (Demsar, 2006): bars join methods that do not differ."""
    count, half = len(ranking.names), (len(ranking.names) + 1) // 2
    cliques = ranking.cliques()
    bars = 0.34 * len(cliques)
    depth = bars + 0.5 + 0.62 * half
    with rc_context(STYLE):
        figure = Figure(figsize=(5.8, 0.55 + 0.26 * (depth + 1.2)), layout="constrained")
        axes = figure.subplots()
        axes.set(xlim=(1 - 0.02 * count, count + 0.02 * count), ylim=(depth, -1.6))
        axes.xaxis.set(ticks_position="top", label_position="top")
        axes.set_xticks(range(1, count + 1, 1 + count // 12))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.spines["top"].set_visible(True)
        axes.spines["top"].set_position(("data", 0))
        axes.yaxis.set_visible(False)
        for i, (label, rank) in enumerate(zip(ranking.names, ranking.ranks, strict=True)):
            left = i < half
            y = bars + 0.5 + 0.62 * (i if left else count - 1 - i)
            edge = axes.get_xlim()[0 if left else 1]
            axes.plot([rank, rank, edge], [0, y, y], color=look[label].colour, lw=1.2)
            axes.annotate(
                f"{label}  {rank:.2f}",
                (edge, y),
                xytext=(-4 if left else 4, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                weight="bold" if look[label].width > 2 else "normal",
                annotation_clip=False,
            )
        for i, (start, end) in enumerate(cliques):
            ends = ranking.ranks[start] - 0.01 * count, ranking.ranks[end] + 0.01 * count
            axes.plot(ends, [0.34 * (i + 1)] * 2, color="#000000", lw=3.2, solid_capstyle="butt")
        wide = min(ranking.critical_difference, count - 1)
        axes.plot([1, 1 + wide], [-1.1, -1.1], "|-", color="#000000", lw=1, ms=6)
        more = "" if wide == ranking.critical_difference else " (longer than the scale)"
        axes.text(
            1 + wide / 2, -1.25, f"CD = {ranking.critical_difference:.2f}{more}", ha="center",
            va="bottom", fontsize=8,
        )  # fmt: skip
        _watermark(figure, watermark)
        return to_svg(figure, name)


def _draw(
    lines: Facets,
    name: str,
    scale: Callable[[Axes], None],
    ylabel: str,
    watermark: str,
    least: float = -np.inf,
) -> str:
    """Curves on axes side by side: `scale` sets up each of them; no band goes below `least`."""
    with rc_context(STYLE):
        size = (5.8, 3.4) if len(lines) == 1 else (2.75 * len(lines), 2.9)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
        for axes, (title, members) in zip(grid, lines.items(), strict=True):
            for line in members:
                x, mean, half, whole = line.curve
                _band(axes, line.look, x, np.maximum(mean - half, least), mean + half)
                _line(axes, line, x[:whole], mean[:whole])
                _line(axes, line, x[max(whole - 1, 0) :], mean[max(whole - 1, 0) :], dashes=":")
            axes.set_title(title, fontsize=9)
        for axes in grid:
            scale(axes)
        grid[0].set(ylabel=ylabel)
        _watermark(figure, watermark)
        if len(lines) == 1:
            _name_at_end(grid[0], next(iter(lines.values())))
        else:
            _key(figure, grid)
        return to_svg(figure, name, wide=len(lines) > 1)


def _evaluations_along_x(axes: Axes) -> None:
    axes.set(xlabel="evaluations")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _band(axes: Axes, look: Look, x: Numbers, low: Numbers, high: Numbers) -> None:
    axes.fill_between(x, low, high, color=look.colour, alpha=look.shade, lw=0, zorder=1)


def _line(
    axes: Axes, line: Line, x: Numbers, y: Numbers, dashes: str | None = None, **marks: Any
) -> None:
    label = line.label if dashes is None else ""
    if np.isfinite(y).sum() > (dashes is not None):
        axes.plot(
            x, y, ls=dashes or line.look.dashes, color=line.look.colour, lw=line.look.width,
            zorder=line.look.order, label=label, **marks,
        )  # fmt: skip


def _name_at_end(axes: Axes, lines: Sequence[Line]) -> None:
    """Labels to the right of the axes, at the ends of their curves, without overlap."""
    ends: dict[str, float] = {}
    for drawn in axes.get_lines():
        y = np.asarray(drawn.get_ydata(), dtype=float)
        x = np.asarray(drawn.get_xdata(), dtype=float)
        owner = next((one for one in lines if one.label == drawn.get_label()), None)
        if owner is not None and np.isfinite(y).any():
            last = np.flatnonzero(np.isfinite(y))[-1]
            place = axes.transData.transform((x[last], y[last]))
            ends[owner.label] = float(axes.transAxes.inverted().transform(place)[1])
    if not ends:
        return
    order = sorted(ends, key=lambda label: ends[label])
    steps = _LABEL * np.arange(len(order))
    heights = np.array([min(max(ends[label], 0.02), 0.98) for label in order])
    places = scipy.optimize.isotonic_regression(heights - steps).x + steps
    places += max(0.0, 0.02 - places[0]) - max(0.0, places[-1] - 1.02)
    by_label = {line.label: line.look for line in lines}
    for label, place in zip(order, places, strict=True):
        look = by_label[label]
        axes.plot(
            [1.015, 1.05], [place, place], ls=look.dashes, color=look.colour, lw=look.width,
            transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.text(
            1.065, place, label, transform=axes.transAxes, va="center", fontsize=8.5,
            weight="bold" if look.width > 2 else "normal",
        )  # fmt: skip


def _key(figure: Figure, grid: Sequence[Axes]) -> None:
    """One legend above all axes."""
    found: dict[str, Artist] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        entry = 0.5 + 0.075 * max(map(len, found))  # inches
        columns = min(len(found), max(1, int(figure.get_figwidth() / entry)))
        figure.legend(
            list(found.values()), list(found), loc="outside upper center", ncols=columns,
            handlelength=2.2, columnspacing=1.3,
        )  # fmt: skip


def _watermark(figure: Figure, text: str) -> None:
    if text:
        figure.text(
            0.45, 0.5, text, fontsize=30, color="#8a94a0", alpha=0.35, rotation=20, ha="center",
            va="center", weight="bold", in_layout=False, zorder=0,
        )  # fmt: skip


def _crowded(methods: Sequence[Method]) -> bool:
    """Whether a panel needs separate axes for each acquisition function."""
    return len(methods) > _CROWD and any(method.facet for method in methods)


def _flat(lines: Facets) -> list[Line]:
    return [line for members in lines.values() for line in members]


def _changed(lines: Facets, change: Callable[[Curve], Curve]) -> Facets:
    return {
        title: [line._replace(curve=change(line.curve)) for line in members]
        for title, members in lines.items()
    }


def _in_unit(curve: Curve, unit: Unit) -> Curve:
    return curve._replace(mean=unit.times * curve.mean, half=unit.times * curve.half)


def _range(lines: Facets, unit: Unit) -> tuple[float, float]:
    """Limits of an axis that shows the means and everything above them."""
    curves = [line.curve for line in _flat(lines)]
    seen = [unit.times * edge for curve in curves for edge in (curve.mean, curve.mean + curve.half)]
    numbers = np.concatenate([*seen, [np.nan]])
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return 0.0, unit.times
    low, high = float(numbers.min()), float(numbers.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
