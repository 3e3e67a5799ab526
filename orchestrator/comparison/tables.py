"""The tables of a comparison: built once, written as HTML by the page and as LaTeX here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from orchestrator.comparison.diagnostics import RATES
from orchestrator.comparison.panels import Method, Panel
from orchestrator.comparison.statistics import Comparison, mean_interval
from orchestrator.comparison.summary import BySeed, Summary
from orchestrator.history.trials import PHASES
from orchestrator.methods import METHODS

NOT_RUN = "not run"
_NOT_REACHED = "not reached"
_UNDEFINED = "–"

# Table 2 of An et al., DiffusionNAG, ICLR 2024: test accuracy, percent, @ trained architectures.
_PUBLISHED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cifar10": {
            "random-search": "93.70 ± 0.36 @>500",
            "rea": "93.92 ± 0.30 @>500",
            "reinforce": "93.85 ± 0.37 @>500",
            "bohb": "93.61 ± 0.52 @>500",
            "gp-ucb": "94.37 ± 0.00 @58",
            "bananas": "94.37 ± 0.00 @46",
            "nasbowl": "94.34 ± 0.00 @100",
            "hebo": "94.34 ± 0.00 @100",
            "TNAS": "94.37 ± 0.00 @29",
            "MetaD2A": "94.37 ± 0.00 @100",
            "DiffusionNAG with transfer": "94.37 ± 0.00 @1",
        },
        "cifar100": {
            "random-search": "71.04 ± 1.07 @>500",
            "rea": "71.84 ± 0.99 @>500",
            "reinforce": "71.71 ± 1.09 @>500",
            "bohb": "70.85 ± 1.28 @>500",
            "gp-ucb": "73.14 ± 0.00 @100",
            "bananas": "73.51 ± 0.00 @88",
            "nasbowl": "73.51 ± 0.00 @87",
            "hebo": "72.62 ± 0.20 @100",
            "TNAS": "73.51 ± 0.00 @59",
            "MetaD2A": "73.34 ± 0.04 @100",
            "DiffusionNAG with transfer": "73.51 ± 0.00 @2",
        },
    }
)


class Cell(NamedTuple):
    """A text, and how it looks: `best`, `tied`, `missing`, `better`, `worse` or plain."""

    text: str
    look: str = ""


@dataclass(frozen=True)
class Table:
    """head: of each column; the first column is text, the others are numbers."""

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def published(panel: Panel) -> Mapping[str, str]:
    """By method, published results for this panel's task; empty if there are none."""
    facts = panel.facts
    ours = facts["constraint"] or panel.pareto or facts["batch_size"] not in (None, 1)
    if facts["space"] != "nasbench201" or facts["evaluator"] != "table" or ours:
        return {}
    return _PUBLISHED.get(str(facts["dataset"]), {})


def overview(summaries: Sequence[Summary]) -> Table:
    """Methods by panels: what is found at the horizon."""
    methods = [method for summary in summaries for method in summary.panel.methods]
    labels = dict.fromkeys(m.label for m in sorted(methods, key=lambda m: not m.guided))
    columns = [_means(s, s.at_marks(s.horizon), s.horizon) for s in summaries]
    missing = Cell(NOT_RUN, "missing")
    rows = [(Cell(label), *(column.get(label, missing) for column in columns)) for label in labels]
    measures = dict.fromkeys(s.panel.measure for s in summaries)
    names = [
        f"{s.panel.name}{f', {s.panel.measure}' if len(measures) > 1 else ''} @{s.horizon}"
        for s in summaries
    ]
    head = [s.panel.unit.label(name) for s, name in zip(summaries, names, strict=True)]
    caption = f"{' or '.join(measures)} at the horizon".capitalize()
    return Table("overview", caption, ("method", *head), tuple(rows))


def values_table(summary: Summary) -> Table:
    """What is found at the marks, area under the curve and evaluations to the target."""
    columns = [_means(summary, summary.at_marks(mark), mark) for mark in summary.marks]
    columns.append(_means(summary, summary.areas, summary.horizon, times=1, form=".3f"))
    rows = [
        (
            Cell(method.label),
            Cell(_seeds(summary, method)),
            *(column[method.label] for column in columns),
            *_hits(summary, method),
        )
        for method in summary.panel.methods
    ]
    head = (
        "method",
        "finished seeds",
        *(summary.panel.unit.label(f"@{mark}") for mark in summary.marks),
        f"area @{summary.horizon}",
        "evaluations to target",
        "reached",
    )
    return Table("values", f"{summary.panel.measure} and speed".capitalize(), head, tuple(rows))


def regret_table(summary: Summary) -> Table | None:
    """Mean simple regret at the marks; for a front, the hypervolume already says it."""
    if summary.panel.pareto is not None:
        return None
    unit = summary.panel.unit
    best = summary.optimum.value if summary.optimum else np.nan
    columns = []
    for mark in summary.marks:
        below = {
            label: {seed: value - best for seed, value in values.items()}
            for label, values in summary.at_marks(mark).items()
        }
        columns.append(_means(summary, below, mark, times=-unit.times, form=unit.form(3)))
    rows = [
        (Cell(method.label), *(column[method.label] for column in columns))
        for method in summary.panel.methods
    ]
    head = ("method", *(unit.of_differences(f"@{mark}") for mark in summary.marks))
    return Table("regret", "Simple regret", head, tuple(rows))


def accuracy_table(summary: Summary) -> Table | None:
    """`test` of the best by value, accuracy or not, and published results on the same task."""
    if not summary.has_test:
        return None
    others = published(summary.panel)
    columns = [_means(summary, summary.at_marks(mark, "test"), mark) for mark in summary.marks]
    rows = [
        (Cell(method.label), *(column[method.label] for column in columns))
        for method in summary.panel.methods
    ]
    unit = summary.panel.unit
    head = ("method", *(unit.label(f"@{mark}") for mark in summary.marks))
    caption = f"Test {'accuracy' if unit.sign else 'value'} of the architecture with the best value"
    if not others:
        return Table("accuracy", caption, head, tuple(rows))
    families = [method.family for method in summary.panel.methods]
    rows = [
        (*row, Cell(others.get(family, _UNDEFINED)))
        for row, family in zip(rows, families, strict=True)
    ]
    for name, text in others.items():
        if name not in families:
            missing = Cell(NOT_RUN if name in METHODS else _UNDEFINED, "missing")
            rows.append((Cell(name), *[missing] * len(summary.marks), Cell(text)))
    return Table(
        "accuracy",
        caption,
        (*head, "published, % @ evaluations"),
        tuple(rows),
        "Published: test accuracy @ number of trained architectures, as printed in Table 2 of the "
        "DiffusionNAG paper (ICLR 2024), whose protocol searches on test; not measured here. "
        "There, TNAS, MetaD2A and DiffusionNAG use predictors trained on other data sets; they "
        "cannot be run here.",
    )


def tests_table(summary: Summary, measure: str) -> Table | None:
    """Holm-corrected p-values of every pair on one measure: row against column."""
    found = summary.comparisons[measure]
    return _matrix(summary, found, _p_value, f"tests {measure}", f"Paired tests, {measure}")


def reference_table(summary: Summary) -> Table | None:
    """The reference against every other method, on every measure."""
    by_measure = {
        measure: {one.b: one for one in found} for measure, found in summary.comparisons.items()
    }
    rows = []
    for method in summary.panel.methods:
        if method.label != summary.reference:
            found = [ones.get(method.label) for ones in by_measure.values()]
            rows.append((Cell(method.label), *(_verdict(one) for one in found)))
    if not rows:
        return None
    return Table("reference", f"{summary.reference} against", ("method", *by_measure), tuple(rows))


def win_tie_loss_table(summary: Summary, mark: int) -> Table | None:
    """Seeds won, tied and lost by the row against the column."""
    found = summary.pairs(mark)
    return _matrix(summary, found, _tally, f"win-tie-loss {mark}", f"Won / tied / lost @{mark}")


def diagnostics_table(summary: Summary) -> Table:
    """Quality of the surrogate predictor and the pools: means over windows and seeds."""
    shares = ("within 1 std", "within 2 std", *RATES)
    names = ("tau", *shares[:2], "nll", *PHASES, *RATES)
    rows = []
    for method in summary.panel.methods:
        cells = [Cell(method.label)]
        for name in names:
            found = summary.overall(method.label, name)
            if found is None:
                cells.append(Cell(_UNDEFINED))
            elif name in shares:
                cells.append(Cell(f"{100 * found.mean:.1f}"))
            elif name in PHASES:
                cells.append(Cell(f"{found.mean:.3f}"))
            else:
                cells.append(Cell(f"{found.mean:.2f}"))
        rows.append(tuple(cells))
    head = (
        "method",
        "Kendall τ",
        "within ±1 std, %",
        "±2 std, %",
        "NLL, nats",
        *(f"{phase}, s" for phase in PHASES),
        *(f"{rate}, %" for rate in RATES),
    )
    return Table("diagnostics", "Surrogate predictor and pools", head, tuple(rows))


def _seeds(summary: Summary, method: Method) -> str:
    finished = sum(run.complete for run in method.runs.values())
    expected = len(summary.panel.seeds)
    return str(expected) if finished == expected else f"{finished} of {expected}"


def _means(
    summary: Summary,
    values: Mapping[str, BySeed],
    mark: int,
    *,
    times: float | None = None,
    form: str | None = None,
) -> dict[str, Cell]:
    """By method: mean, half-width of its interval, and the number of seeds if some are missing.

    mark: evaluations that a run must have reached.
    times, form: factor and format of these numbers; by default those of values.
    """
    unit = summary.panel.unit
    times = unit.times if times is None else times
    form = unit.form(2) if form is None else form
    first, tied = summary.leaders(values)
    num_at = summary.num_at(mark)
    begun = {method.label for method in summary.panel.methods if _has_begun(method)}
    cells = {}
    for label, by_seed in values.items():
        found = mean_interval(list(by_seed.values()))
        if found is None:
            short = _NOT_REACHED if label in begun else NOT_RUN
            cells[label] = Cell(_UNDEFINED if num_at[label] else short, "missing")
            continue
        text = f"{times * found.mean + 0:{form}}"
        if np.isfinite(found.half):
            text += f" ± {abs(times) * found.half:{form}}"
        if found.n < len(summary.panel.seeds):
            without = num_at[label] - found.n
            text += f" (n={found.n}{f', {without} without a value' if without else ''})"
        cells[label] = Cell(text, "best" if label == first else "tied" if label in tied else "")
    return cells


def _has_begun(method: Method) -> bool:
    return any(len(run) for run in method.runs.values())


def _hits(summary: Summary, method: Method) -> tuple[Cell, Cell]:
    hits = summary.hits(method)
    if hits is None:
        missing = Cell(_UNDEFINED if _has_begun(method) else NOT_RUN, "missing")
        return missing, missing
    low, median, high = (f"{q:g}" if np.isfinite(q) else f"> {hits.last}" for q in hits.quartiles)
    spread = f" ({low} to {high})" if low != high else ""
    return Cell(median + spread), Cell(f"{hits.reached} of {hits.n}")


def _matrix(
    summary: Summary,
    found: Sequence[Comparison],
    cell: Callable[[Comparison], Cell],
    name: str,
    caption: str,
) -> Table | None:
    labels = [method.label for method in summary.panel.methods]
    if len(labels) < 2 or not found:
        return None
    by_pair = {(one.a, one.b): one for one in found}
    by_pair |= {(one.b, one.a): one.reversed() for one in found}
    rows = [
        (
            Cell(f"{number} {row}"),
            *(
                Cell("·")
                if row == column
                else cell(by_pair[row, column])
                if (row, column) in by_pair
                else Cell(_UNDEFINED, "missing")
                for column in labels
            ),
        )
        for number, row in enumerate(labels, start=1)
    ]
    head = ("row against column", *map(str, range(1, len(labels) + 1)))
    return Table(name.replace(" ", "-").replace("@", ""), caption, head, tuple(rows))


def _p_value(one: Comparison) -> Cell:
    if not one.significant:
        return Cell(_p(one.p_holm))
    return Cell(_p(one.p_holm), "better" if one.a_is_better else "worse")


def _tally(one: Comparison) -> Cell:
    return Cell(f"{one.wins}/{one.ties}/{one.losses}", _p_value(one).look)


def _verdict(one: Comparison | None) -> Cell:
    if one is None:
        return Cell(_UNDEFINED, "missing")
    text, look = _p_value(one)
    return Cell(f"p {text} · {one.wins}/{one.ties}/{one.losses}", look)


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def to_latex(table: Table) -> str:
    """A `tabular` for the booktabs package; the best of a column is bold."""
    columns = "l" + "r" * (len(table.head) - 1)
    lines = [
        f"% {_escape(table.caption)}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_escape, table.head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.look == "best":
        return rf"\textbf{{{text}}}"
    if cell.look == "missing":
        return rf"\textit{{{text}}}"
    return text + r"$^{\approx}$" if cell.look == "tied" else text


_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": "$<$", ">": "$>$", "±": r"$\pm$", "·": r"$\cdot$", "–": "--", "τ": r"$\tau$",
    }
)  # fmt: skip


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)
