"""Progress of a run in Ray's metrics, for Prometheus."""

from collections.abc import Mapping
from itertools import islice
from math import isfinite
from threading import Thread
from time import perf_counter, sleep
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ray
import scipy
from ray.util.metrics import Counter, Gauge, Histogram

from orchestrator.config import RunConfig
from orchestrator.history.trials import Outcome
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.store import RunStore

_WINDOW = 100  # outcomes, for the rank correlation
_AGAIN_SECONDS = 5.0  # Ray forgets a gauge that has not been set for a while


class _Metric(NamedTuple):
    """A metric's kind and help text, and the label that distinguishes its series."""

    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    label: str | None = None


METRICS: Mapping[str, _Metric] = MappingProxyType(
    {
        "nag_budget": _Metric(Gauge, "Budget of the run, in evaluations"),
        "nag_spent": _Metric(
            Gauge, "Evaluations spent; low-fidelity ones count by their share of the epochs"
        ),
        "nag_best_value": _Metric(Gauge, "Best value so far, a fraction"),
        "nag_regret": _Metric(Gauge, "Largest value in the table minus the best so far"),
        "nag_evaluations": _Metric(Counter, "Finished evaluations", "status"),
        "nag_evaluation_seconds": _Metric(Histogram, "Seconds of an evaluation"),
        "nag_pending": _Metric(Gauge, "Trials proposed but without an outcome, running or queued"),
        "nag_staleness": _Metric(
            Gauge, "Earlier trials whose outcome was not available to the last proposal"
        ),
        "nag_slots": _Metric(Gauge, "Capacity for concurrent evaluations and generations", "role"),
        "nag_utilisation": _Metric(
            Gauge, "Busy seconds / (slots x wall seconds) since the driver started", "role"
        ),
        "nag_phase_seconds": _Metric(
            Counter,
            "Seconds by phase: the driver's fit, propose, select and wait; generate, which is part "
            "of propose; evaluate, summed over all slots",
            "phase",
        ),
        "nag_cost_seconds": _Metric(
            Counter,
            "CPU- and GPU-seconds: for evaluations what each reserved, for the generator its "
            "threads or its share of a GPU; only the last attempt at a trial counts",
            "resource",
        ),
        "nag_pool_validity": _Metric(Gauge, "Share of valid samples in the last pool"),
        "nag_pool_uniqueness": _Metric(
            Gauge, "Share of distinct samples among the valid ones of the last pool"
        ),
        "nag_guidance_scale": _Metric(Gauge, "Guidance scales of the last pool", "end"),
        "nag_kendall_tau": _Metric(
            Gauge, f"Rank correlation of predictions and values, last {_WINDOW} outcomes"
        ),
    }
)


@runtime_checkable
class OnRay(Protocol):
    """An executor whose work is on Ray."""

    generators: int
    generator_request: Mapping[str, float]  # resources that each reserves
    evaluation_request: Mapping[str, float]  # resources of the evaluation that ended last

    @property
    def slots(self) -> int:
        """How many evaluations there is room for at a time."""
        ...


class RayMetrics:
    """An `Observer` that reports progress to Ray. All metrics have the label `run`.

    store: of the run, which may be a continued one.
    optimum: the largest possible value, a fraction; None if unknown.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        executor: OnRay,
        optimum: float | None,
        store: RunStore,
    ) -> None:
        self._metrics: Mapping[str, Any] = {
            name: _made(name, metric, run) for name, metric in METRICS.items()
        }
        self._executor, self._optimum = executor, optimum
        gpus = executor.generator_request.get("GPU", 0.0)
        self._generator = {"CPU": 0.0 if gpus else float(config.threads), "GPU": gpus}
        self._busy = {"generate": 0.0, "evaluate": 0.0}
        self._began = self._told = perf_counter()
        self._capacity = 0.0  # slots x wall seconds
        self._gauges: dict[tuple[str, str | None], float] = {}
        self._set("nag_budget", config.budget)
        self._elapsed()
        self._progress(store)
        Thread(target=self._keep, daemon=True).start()

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        found = suggestion.diagnostics
        self._elapsed(worked=sum(suggestion.seconds.values()))
        for phase, seconds in suggestion.seconds.items():
            self._count("nag_phase_seconds", seconds, phase)
        self._spend("generate", found.get("generator_seconds", 0.0), self._generator)
        for share in ("validity", "uniqueness"):
            if share in found:
                self._set(f"nag_pool_{share}", found[share])
        for end in ("low", "high"):
            if f"scale_{end}" in found:
                self._set("nag_guidance_scale", found[f"scale_{end}"], end)
        self._set("nag_staleness", found.get("pending", 0))
        self._progress(store)

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        self._elapsed()
        self._count("nag_evaluations", 1, outcome.status)
        self._metrics["nag_evaluation_seconds"].observe(outcome.seconds)
        self._spend("evaluate", outcome.seconds, self._executor.evaluation_request)
        self._progress(store)

    def _progress(self, store: RunStore) -> None:
        if store.best is not None:
            self._set("nag_best_value", store.best[1])
            if self._optimum is not None:
                self._set("nag_regret", self._optimum - store.best[1])
        tau = rank_correlation(store)
        if tau is not None:
            self._set("nag_kendall_tau", tau)
        self._set("nag_spent", float(store.spent))
        self._set("nag_pending", len(store.trials) - store.num_finished)

    def _elapsed(self, worked: float = 0.0) -> None:
        """Since the last call the driver worked for `worked` seconds and waited for the rest."""
        now = perf_counter()
        seconds, self._told = now - self._told, now
        self._count("nag_phase_seconds", seconds - worked, "wait")
        slots = self._executor.slots
        self._set("nag_slots", slots, "evaluate")
        self._set("nag_slots", self._executor.generators, "generate")
        self._capacity += slots * seconds

    def _spend(self, role: str, seconds: float, reserved: Mapping[str, float]) -> None:
        self._busy[role] += seconds
        self._count("nag_phase_seconds", seconds, role)
        for resource in ("CPU", "GPU"):
            amount = reserved.get(resource, 0.0)
            self._count("nag_cost_seconds", seconds * amount, resource.lower())
        generating = (self._told - self._began) * self._executor.generators
        capacity = {"generate": generating, "evaluate": self._capacity}
        for name, available in capacity.items():
            if available > 0:
                self._set("nag_utilisation", self._busy[name] / available, name)

    def _set(self, name: str, value: float, label: str | None = None) -> None:
        self._gauges[name, label] = value
        self._metrics[name].set(value, _tags(name, label))

    def _keep(self) -> None:
        """Keep setting the gauges for as long as Ray is up."""
        while ray.is_initialized():
            for (name, label), value in list(self._gauges.items()):
                self._metrics[name].set(value, _tags(name, label))
            sleep(_AGAIN_SECONDS)

    def _count(self, name: str, amount: float, label: str) -> None:
        if amount > 0:
            self._metrics[name].inc(amount, _tags(name, label))


def rank_correlation(store: RunStore) -> float | None:
    """Kendall's tau-b of predicted and observed values, among the last _WINDOW outcomes.

    None if it is undefined. Never looks further back, however few have a prediction.
    """
    last = islice(reversed(store.outcomes.values()), _WINDOW)
    pairs = [
        (predicted, outcome.value)
        for outcome in last
        if (predicted := store.trials[outcome.trial].predicted_mean) is not None
        and outcome.value is not None
    ]
    if len(pairs) < 2:
        return None
    tau = float(scipy.stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    return tau if isfinite(tau) else None


def _made(name: str, metric: _Metric, run: str) -> Counter | Gauge | Histogram:
    labels = ("run",) if metric.label is None else ("run", metric.label)
    more = {"boundaries": [0.01, 0.1, 1, 10, 100, 1_000, 10_000]}
    options = more if metric.kind is Histogram else {}
    made = metric.kind(name, description=metric.help, tag_keys=labels, **options)
    made.set_default_tags({"run": run})
    return made


def _tags(name: str, value: str | None) -> dict[str, str]:
    label = METRICS[name].label
    return {label: value} if label and value else {}
