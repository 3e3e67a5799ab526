"""The figures of the report: numbers in (accuracies as fractions), an inline SVG out.

n trials, R rounds. Axes and text take the colour of the page, so that a figure is legible on light
and on dark pages.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator
from numpy.typing import NDArray

from trainers.rows import PERCENT, Unit

Numbers = NDArray[np.float64]

BLUE, ORANGE, GREEN, GREY, RED = "#3a87c8", "#e08a2e", "#2f9e6e", "#8a94a0", "#d64545"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw_progress(
    trials: NDArray[np.int64],
    values: Numbers,
    best: Numbers,
    initial: NDArray[np.bool_],
    unit: Unit,
) -> str:
    """Every trial and the best so far (n,); `values` (n,) is NaN where a trial failed."""
    shown, best = unit.times * values, unit.times * best
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.step(trials, best, where="post", color=BLUE, lw=1.6, label="best so far")
        _draw_trials(axes, trials, shown, initial)
        axes.set(ylabel=unit.label("value"))
        _count_along_x(axes, "trial", int(trials.max()) + 1)
        _legend_above(axes)
        return to_svg(figure, "progress")


def draw_pareto(
    name: str,
    amounts: Numbers,
    values: Numbers,
    initial: NDArray[np.bool_],
    *,
    front: NDArray[np.int64],
    best: int | None,
    limits: Sequence[tuple[float, bool]] = (),
    unit: Unit = PERCENT,
) -> str:
    """Values (n,) over amounts (n,) of the quantity `name`.

    front: the trials on the Pareto front, by increasing amount.
    best: the trial to mark, if any.
    limits: (amount, is at most) of each; a limit far from all trials is not drawn.
    """
    shown = unit.times * values
    ends = amounts.min(), amounts.max()
    width = float(np.ptp(amounts)) or 0.1 * abs(float(ends[1])) or 1.0
    near = {limit: at_most for limit, at_most in limits if -width < limit - ends[0] < 2 * width}
    left, right = min(*ends, *near) - 0.05 * width, max(*ends, *near) + 0.05 * width
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.step(
            np.append(amounts[front], right),
            np.append(shown[front], shown[front[-1]]),
            where="post",
            color=GREEN,
            lw=1.4,
            label="Pareto front",
        )
        _draw_trials(axes, amounts, shown, initial)
        if best is not None:
            x, y = amounts[[best]], shown[[best]]
            axes.plot(x, y, "*", color=GREEN, ms=12, mec="#000000", mew=0.7, label="best")
        for i, (limit, at_most) in enumerate(near.items()):
            axes.axvline(limit, color=RED, lw=1.2, ls="--", label="" if i else "limit")
            axes.axvspan(limit, right if at_most else left, color=RED, alpha=0.1, lw=0)
        axes.set(xlabel=name, ylabel=unit.label("value"), xlim=(left, right))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _legend_above(axes)
        return to_svg(figure, f"pareto-{name.split(',')[0]}")


def draw_hypervolume(trials: NDArray[np.int64], share: Numbers) -> str:
    """Share (n,) of the final hypervolume that a Pareto front has after each trial."""
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.step(trials, 100 * share, where="post", color=GREEN, lw=1.6)
        axes.set(ylabel="hypervolume, % of the front so far")
        _count_along_x(axes, "trial", int(trials.max()) + 1)
        return to_svg(figure, "hypervolume")


def _draw_trials(
    axes: Axes, x: Numbers | NDArray[np.int64], values: Numbers, initial: NDArray[np.bool_]
) -> None:
    """Trials (n,) as points; `values` is NaN where one failed.

    The scale ends at Tukey's outer fence, so that one hopeless architecture does not flatten the
    rest; trials below it are marked at the lower end.
    """
    lower, upper = np.nanpercentile(values, (25, 75))
    fence = lower - 3 * (upper - lower)
    shown, below, failed = values >= fence, values < fence, np.isnan(values)
    for chosen, colour, label in (
        (shown & initial, ORANGE, "initial design"),
        (shown & ~initial, BLUE, "proposed"),
    ):
        if chosen.any():
            y = values[chosen]
            axes.plot(x[chosen], y, "o", color=colour, ms=4, alpha=0.75, mew=0, label=label)
    if np.ptp(values[shown]) > 0:
        margin = 0.06 * float(np.ptp(values[shown]))
        axes.set_ylim(values[shown].min() - margin, values[shown].max() + margin)
    bottom = axes.get_ylim()[0]
    for chosen, marker, colour, label in (
        (below, "v", GREY, "off the scale"),
        (failed, "x", RED, "failed"),
    ):
        if chosen.any():
            y = np.full(int(chosen.sum()), bottom)
            axes.plot(x[chosen], y, marker, color=colour, ms=6, clip_on=False, label=label)
    axes.set_ylim(bottom=bottom)


def draw_curves(curves: Sequence[Sequence[float]], best: int | None, unit: Unit) -> str:
    """Value after each epoch of each training; `best` is the one to highlight, if any."""
    first = 1 if best == 0 else 0  # first of the others
    with rc_context(STYLE):
        figure, axes = _axes()
        for number, curve in enumerate(curves):
            chosen = number == best
            axes.plot(
                range(1, len(curve) + 1),
                [unit.times * value for value in curve],
                label={first: "trial", best: "best trial"}.get(number),
                marker=".",
                color=BLUE if chosen else GREY,
                lw=1.8 if chosen else 0.8,
                zorder=3 if chosen else 2,
            )
        axes.set(ylabel=unit.label("value"))
        _count_along_x(axes, "epoch", max(map(len, curves)), first=1)
        _legend_above(axes)
        return to_svg(figure, "curves")


def draw_calibration(mean: Numbers, std: Numbers, observed: Numbers, unit: Unit) -> str:
    """Predictions (n,) against the values observed later."""
    mean, std, observed = (unit.times * numbers for numbers in (mean, std, observed))
    with rc_context(STYLE):
        figure, axes = _axes()
        start = float(observed.mean())
        axes.axline(
            (start, start), slope=1, ls="--", color=GREY, lw=1, label="predicted = observed"
        )
        axes.errorbar(
            observed,
            mean,
            yerr=std,
            fmt="o",
            color=BLUE,
            ms=4,
            mew=0,
            elinewidth=0.9,
            alpha=0.75,
            label="mean ± 1 std",
        )
        axes.set(xlabel=unit.label("observed value"), ylabel=unit.label("predicted value"))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _legend_above(axes)
        return to_svg(figure, "calibration")


def draw_seconds(seconds: Mapping[str, Numbers]) -> str:
    """Stacked bars: the seconds (R,) that each phase took in each round."""
    with rc_context(STYLE):
        figure, axes = _axes()
        colours = (GREY, BLUE, GREEN, ORANGE)
        below = np.zeros(len(next(iter(seconds.values()))))
        edges = np.arange(len(below) + 1) - 0.5
        for (phase, spent), colour in zip(seconds.items(), colours, strict=True):
            top = below + spent
            axes.stairs(
                top, edges, baseline=below, fill=True, color=colour, linewidth=0, label=phase
            )
            below = top
        axes.set(ylabel="time per round", ylim=(0, None))
        axes.yaxis.set_major_formatter(EngFormatter("s"))
        _count_along_x(axes, "round", len(below))
        _legend_above(axes)
        return to_svg(figure, "seconds")


def draw_pools(rates: Mapping[str, Numbers], sizes: Numbers) -> str:
    """Rates (R,) per round above, pool sizes (R,) below; NaN for rounds without."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        rounds = np.arange(len(sizes))
        drawn = {name: rate for name, rate in rates.items() if np.isfinite(rate).any()}
        if drawn:
            above, axes = figure.subplots(2, sharex=True, height_ratios=(2, 1))
            looks = (("o-", BLUE), ("s-", ORANGE), ("^-", GREEN), ("v-", RED))
            for (name, rate), (style, colour) in zip(drawn.items(), looks, strict=False):
                above.plot(
                    rounds, 100 * rate, style, color=colour, ms=3, lw=1, clip_on=False, label=name
                )
            above.set(ylabel="%", ylim=(min(90, 100 * _smallest(drawn) - 5), 100))
            _legend_above(above)
        else:
            axes = figure.subplots()
        axes.bar(rounds, np.nan_to_num(sizes), width=0.8, color=GREY)
        axes.set(ylabel="pool size")
        _count_along_x(axes, "round", len(sizes))
        return to_svg(figure, "pools")


def draw_guidance(low: Numbers, high: Numbers, norm_ratio: Numbers) -> str:
    """Scales (R,) per round above, norm of guidance over score (R,) below; NaN for none."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        rounds = np.arange(len(low))
        above.fill_between(rounds, low, high, color=BLUE, alpha=0.2, lw=0)
        for scale, style, label in ((high, "^-", "strongest"), (low, "v-", "weakest")):
            above.plot(rounds, scale, style, color=BLUE, ms=3, lw=1, label=label)
        above.set(ylabel="guidance scale", yscale="log")
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter(LogFormatter())
        _legend_above(above)
        below.plot(rounds, norm_ratio, "o-", color=GREEN, ms=3, lw=1)
        below.set(ylabel="guidance / score", ylim=(0, None))
        _count_along_x(below, "round", len(rounds))
        return to_svg(figure, "guidance")


def draw_densities(groups: Mapping[str, Numbers]) -> str:
    """Kernel densities of accuracies (n,) by group, from the lowest quartile overall upwards."""
    with rc_context(STYLE):
        figure, axes = _axes()
        together = 100 * np.concatenate(list(groups.values()))
        low, high = np.percentile(together, 25), together.max()
        low = low if low < high else together.min()  # most are equal to the best
        x = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 400)
        colours = (GREY, ORANGE, "#c9a227", RED, BLUE, GREEN, "#8e5bb0", "#444444")
        for (name, values), colour in zip(groups.items(), colours, strict=False):
            percent = 100 * values
            if np.ptp(percent) == 0:
                axes.axvline(percent[0], color=colour, lw=1.4, label=name)
                continue
            width = 0.04 * (high - low) / percent.std()
            axes.plot(
                x, scipy.stats.gaussian_kde(percent, width)(x), color=colour, lw=1.4, label=name
            )
        axes.set(xlabel="accuracy, %", ylabel="density", ylim=(0, None))
        axes.legend(loc="upper left")
        return to_svg(figure, "densities")


def _smallest(rates: Mapping[str, Numbers]) -> float:
    return min(float(np.nanmin(rate)) for rate in rates.values())


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    return figure, figure.subplots()


def _count_along_x(axes: Axes, label: str, count: int, first: int = 0) -> None:
    """`count` numbers along the x axis: first, first + 1, ..."""
    margin = 0.5 + 0.02 * count
    axes.set(xlabel=label, xlim=(first - margin, first + count - 1 + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _legend_above(axes: Axes) -> None:
    count = len(axes.get_legend_handles_labels()[1])
    axes.legend(
        ncols=count if count <= 5 else (count + 1) // 2,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        columnspacing=1.1,
        handlelength=1.4,
        handletextpad=0.5,
    )


def to_svg(figure: Figure, name: str, *, wide: bool = False) -> str:
    """The figure as an `<svg>` element, in which every id begins with `name`."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would apply to the whole page
    look = f' class="figure{" wide" if wide else ""}" role="img"'
    svg = re.sub(r' width="[^"]*pt" height="[^"]*pt"', look, svg, count=1)
    svg = svg.replace("font-family: 'DejaVu Sans', sans-serif; ", "")
    return re.sub(r"\s*\n\s*", "\n", svg.replace("#000000", "var(--ink)")).strip()


def standalone(svg: str) -> str:
    """A standalone file from what `to_svg` made for a page."""
    head, rest = svg.split(">", 1)
    head = re.sub(r' class="figure[^"]*"', "", head)
    style = (
        "<style>text{font-family:sans-serif}*{stroke-linejoin:round;stroke-linecap:butt}</style>"
    )
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{head}>{style}{ground}{rest}".replace("var(--ink)", "#000000")
