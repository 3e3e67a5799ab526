"""Groups runs into panels of methods.

A panel holds the runs that can be compared: the same space, evaluator, data set, objective,
constraints, quantity of a Pareto front, content of the files that values come from and, unless an
experiment compares them, batch size. Within a panel, a method is a set of runs whose configurations
differ only in the seed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from nag.errors import UserError
from orchestrator.history.earlier import task_of_prior
from orchestrator.history.find import Skipped
from orchestrator.history.run import Run
from orchestrator.methods import METHODS, NONE
from trainers.build import unit_of
from trainers.rows import PERCENT, Unit

_NETWORKS = (
    "data",
    "resolution",
    "held_out",
    "train_fraction",
    "recipe",
    "epochs",
    "precision",
    "weights",
)
_TASK = (
    *("space", "evaluator", "dataset", "objective", "constraint", "pareto", "latency_table"),
    *_NETWORKS,
)
_PANEL = (*_TASK, "batch_size")
_FILES = ("table", "data", "weights", "latency_table")  # their content affects the values
_NO_SETTINGS = {"seed", "budget", "sha256"}
_NAMES = ("surrogate", "strategy", "acq")
_SAY_ENOUGH = (*_NAMES, "evaluator", "data", "recipe", "weights")
_PRESETS: Mapping[tuple[str, ...], str] = {
    method.parts: name
    for name, method in METHODS.items()
    if name != method.parts.strategy or method.parts.surrogate == NONE
}


@dataclass(frozen=True)
class Method:
    """The runs of one way to search, by seed.

    family: methods of one family, which differ only in settings, share a colour.
    facet: its acquisition function, if the panel has several; named methods have none.
    """

    label: str
    family: str
    facet: str
    runs: Mapping[int, Run]

    @property
    def guided(self) -> bool:
        return self.family == "guided"


@dataclass(frozen=True)
class Panel:
    """Runs that can be compared.

    facts: the settings that all runs of the panel share.
    """

    name: str
    facts: Mapping[str, Any]
    methods: tuple[Method, ...]

    @property
    def task(self) -> str:
        """Identifies the task: panels with the same task share one optimum."""
        return repr([self.facts.get(key) for key in (*_TASK, "files")])

    @property
    def runs(self) -> list[Run]:
        return [run for method in self.methods for run in method.runs.values()]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for method in self.methods for seed in method.runs})

    @property
    def synthetic(self) -> bool:
        return self.facts["evaluator"] == "toy"

    @property
    def pareto(self) -> str | None:
        """The quantity of the Pareto front that its runs search for; None if for the best value."""
        return self.facts["pareto"]

    @property
    def measure(self) -> str:
        """What its methods are compared by."""
        return "best value" if self.pareto is None else "hypervolume"

    @property
    def unit(self) -> Unit:
        """The unit of what its methods are compared by."""
        return self.value_unit if self.pareto is None else PERCENT

    @property
    def value_unit(self) -> Unit:
        """The unit of the values of trials."""
        return unit_of(str(self.facts["evaluator"]))

    @property
    def usual_budget(self) -> int:
        """The most common budget of its runs; the largest if tied."""
        counts = Counter(run.budget for run in self.runs)
        return max(counts, key=lambda budget: (counts[budget], budget))


def slugs(panels: Iterable[Panel]) -> list[str]:
    """File names for panels, unique even on filesystems that ignore case."""
    found: dict[str, str] = {}
    for panel in panels:
        text = panel.name.replace("<=", "-max").replace(">=", "-min")
        text = re.sub(r"[^\w.+-]+", "-", text).strip("-") or "panel"
        slug = next(
            slug
            for slug in chain([text], (f"{text}-{i}" for i in count(2)))
            if slug.casefold() not in found
        )
        found[slug.casefold()] = slug
    return list(found.values())


def make_panels(
    runs: Sequence[tuple[str, Run]], split: Sequence[str] = ()
) -> tuple[list[Panel], list[Skipped]]:
    """Panels in order of name, and duplicate runs, of which the longest is kept.

    runs: with the group that an experiment puts them in.
    split: further settings whose values each get their own panels.

    Runs with different batch sizes, and those for a Pareto front and for the best value, are in
    separate panels, unless an experiment groups them.
    """
    settings = {key for _, run in runs for key in run.config} - _NO_SETTINGS
    if unknown := set(split) - settings:
        raise UserError(
            f"unknown setting {min(unknown)!r} to split by: choose from "
            f"{', '.join(sorted(settings - set(_PANEL)))}"
        )
    on_images = [run.config for _, run in runs if run.config.get("data")]
    apart = [
        key
        for key in ("evaluator", *_NETWORKS)
        if len({repr(config.get(key)) for config in on_images}) > 1
    ]
    by_key: dict[tuple[str, str], list[Run]] = {}
    for group, run in runs:
        keys = dict.fromkeys((*(apart if run.config.get("data") else ()), *split))
        name = _panel_name(run.config, keys, grouped=bool(group))
        by_key.setdefault((group, name), []).append(run)
    by_key = _taken_apart(by_key, lambda members: [run.config["evaluator"] for run in members])
    by_key = _taken_apart(by_key, _contents)
    by_key = _taken_apart(by_key, _fronts)
    alone = Counter(group for group, _ in by_key)
    panels, twice = [], []
    for (group, name), members in sorted(by_key.items()):
        varied = {run.config["batch_size"] for run in members}
        facts = {key: members[0].config.get(key) for key in (*_PANEL, *split)}
        facts["pareto"] = _quantity(members)
        facts["batch_size"] = varied.pop() if len(varied) == 1 else "several"
        facts["files"] = {key: _content(members[0].config, key) for key in _FILES}
        methods, doubles = _methods(members, {*_TASK, *_FILES, *split})
        title = (group if alone[group] == 1 else f"{group}: {name}") if group else name
        panels.append(Panel(title, facts, methods))
        twice += doubles
    return panels, twice


def _taken_apart(
    by_key: Mapping[tuple[str, str], list[Run]], tell: Callable[[Sequence[Run]], Sequence[str]]
) -> dict[tuple[str, str], list[Run]]:
    """Split panels whose runs differ in what `tell` returns for each; names include it."""
    apart: dict[tuple[str, str], list[Run]] = {}
    for (group, name), members in by_key.items():
        told = tell(members)
        for run, text in zip(members, told, strict=True):
            own = name if len(set(told)) == 1 else f"{name}-{text}"
            apart.setdefault((group, own), []).append(run)
    return apart


def _content(config: Mapping[str, Any], key: str) -> str | None:
    """First digits of the SHA-256 of the file in a setting, or its name if that is unknown."""
    digest: str | None = config.get("sha256", {}).get(key)
    return digest[:8] if digest else config.get(key)


def _contents(runs: Sequence[Run]) -> list[str]:
    """For each run, the content of those of its files that differ between runs."""
    of_files = [[_content(run.config, key) for run in runs] for key in _FILES]
    differ = [found for found in of_files if len(set(found)) > 1]
    return ["-".join(str(found[i]) for found in differ) for i in range(len(runs))]


def _quantity(runs: Sequence[Run]) -> str | None:
    """The quantity of the Pareto front that any of the runs searches for."""
    return next(filter(None, (run.config.get("pareto") for run in runs)), None)


def _fronts(runs: Sequence[Run]) -> list[str]:
    """For each run, what it searches for, if the runs have fronts of several quantities."""
    found = [run.config.get("pareto") for run in runs]
    if len({*found} - {None}) < 2:
        return [""] * len(found)
    return [f"pareto-{quantity}" if quantity else "best" for quantity in found]


def _panel_name(config: Mapping[str, Any], keys: Iterable[str], *, grouped: bool) -> str:
    """A name made of what distinguishes the runs of a panel from all others.

    keys: further settings that separate panels.
    grouped: whether an experiment puts runs with different batch sizes and aims together.
    """
    parts = [config["space"], config["dataset"], config["objective"]]
    if config["evaluator"] == "toy":
        parts = [config["space"]]
    parts += config["constraint"]
    if config["latency_table"]:
        parts.append(config["latency_table"])
    if config.get("pareto") and not grouped:
        parts.append(f"pareto-{config['pareto']}")
    if config["batch_size"] != 1 and not grouped:
        parts.append(f"batch{config['batch_size']}")
    parts += [_shown(key, config[key]) for key in keys if config.get(key) is not None]
    return "-".join(part.replace(" ", "") for part in parts if part)


def _shown(key: str, value: Any) -> str:
    """A setting as part of a label; some values need no key."""
    if key == "acq":
        return str(value).upper()
    if key in _SAY_ENOUGH:
        return str(value)
    if key == "prior":
        return _shown_prior(value)
    shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{key.replace('_', '-')} {shown}"


def _shown_prior(contents: Sequence[str]) -> str:
    """The tasks of the earlier runs; empty if there are none."""
    return f"prior {', '.join(map(task_of_prior, contents))}" if contents else ""


def _share_seeds(runs: Sequence[Run]) -> bool:
    """Whether some runs with the same seed differ only in the content of their earlier runs."""
    contents: dict[str, set[str]] = {}
    for run in runs:
        others = {**run.config, "prior": _shown_prior(run.config["prior"]), "budget": None}
        contents.setdefault(repr(sorted(others.items())), set()).add(repr(run.config["prior"]))
    return any(len(found) > 1 for found in contents.values())


def _methods(runs: Sequence[Run], panel: set[str]) -> tuple[tuple[Method, ...], list[Skipped]]:
    """The methods of a panel: guided first, then by label.

    Earlier runs are named by their tasks, so that every seed may have its own, or in full if that
    would merge several methods. Weights with equal names but different content get its digest.
    Beside searches for a Pareto front, those for the best value say so.
    """
    keys = {key for run in runs for key in run.config} - panel
    keys -= {"prior", *_NO_SETTINGS, *_NAMES}
    in_full = _share_seeds(runs)
    weights = {_content(run.config, "score_weights") for run in runs}
    for_front = _quantity(runs) is not None
    same_name = len({run.config["score_weights"] for run in runs}) < len(weights)

    def setting(config: Mapping[str, Any], key: str) -> Any:
        if key == "score_weights" and same_name and config[key]:
            return f"{config[key]} {_content(config, key)}"
        return config.get(key)

    others = sorted(
        key for key in keys if len({repr(setting(run.config, key)) for run in runs}) > 1
    )
    unnamed = [run.config for run in runs if preset(run.config) is None]
    varied = [
        key for key in ("surrogate", "acq") if len({str(config[key]) for config in unnamed}) > 1
    ]
    found: dict[str, tuple[str, str, dict[int, Run]]] = {}
    twice = []
    for run in sorted(runs, key=len, reverse=True):
        config = run.config
        name = preset(config)
        family = name or str(config["strategy"])
        extra = [_shown(key, config[key]) for key in varied if name is None and key not in panel]
        extra += [_shown(key, setting(config, key)) for key in others]
        if config["prior"] and "prior" not in panel:
            prior = config["prior"]
            extra.append(f"prior {', '.join(prior)}" if in_full else _shown_prior(prior))
        if for_front and not config.get("pareto"):
            extra.append("for the best value")
        label = " · ".join([family, *extra])
        facet = _shown("acq", config["acq"]) if "acq" in varied and name is None else ""
        _, _, by_seed = found.setdefault(label, (family, facet, {}))
        if run.seed in by_seed:
            twice.append(Skipped(run.path, f"the same run as {by_seed[run.seed].path}"))
        else:
            by_seed[run.seed] = run
    methods = [
        Method(label, family, facet, dict(sorted(by_seed.items())))
        for label, (family, facet, by_seed) in found.items()
    ]
    methods.sort(key=lambda method: (not method.guided, method.label))
    return tuple(methods), twice


def preset(config: Mapping[str, Any]) -> str | None:
    """The named method that a run uses, unless its strategy already says so."""
    return _PRESETS.get((config["surrogate"], config["strategy"], config["acq"]))
