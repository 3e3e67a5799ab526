"""Progress of a run in Ray's metrics (Prometheus)."""

from ray.util.metrics import Counter, Gauge, Histogram

from orchestrator.bayesopt import Suggestion
from orchestrator.store import RunStore
from orchestrator.trial import Outcome


class RayMetrics:
    """Progress of the run in Ray's metrics (Prometheus): an `Observer`."""

    def __init__(self) -> None:
        self._best = Gauge("nag_best_value", description="Best value found, as a fraction")
        self._evaluations = Counter(
            "nag_evaluations", description="Finished evaluations", tag_keys=("status",)
        )
        self._validity = Gauge("nag_pool_validity", description="Valid share of generated samples")
        self._phase = Gauge(
            "nag_phase_seconds", description="Seconds of the last round", tag_keys=("phase",)
        )
        self._evaluation = Histogram(
            "nag_evaluation_seconds",
            description="Seconds of an evaluation",
            boundaries=[0.01, 0.1, 1, 10, 100, 1_000, 10_000],
        )

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        for phase, seconds in suggestion.seconds.items():
            self._phase.set(seconds, tags={"phase": phase})
        if "validity" in suggestion.diagnostics:
            self._validity.set(suggestion.diagnostics["validity"])

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        self._evaluations.inc(tags={"status": outcome.status})
        self._evaluation.observe(outcome.seconds)
        if store.best is not None:
            self._best.set(store.best[1])
