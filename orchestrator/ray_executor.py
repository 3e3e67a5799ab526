"""Everything that knows Ray: a generator actor, a pool of evaluator actors, tasks, and metrics.

The driver sends architectures and small predictors; weights, tables and supernets are loaded once
inside the actors. Evaluators and generator take turns (a round is proposed, then evaluated), so on
a cluster without a GPU the generator reserves no CPU of its own.

A cluster may pin roles to hosts with the custom resources `generator` and `evaluator`: where nodes
offer them, each actor asks for one.
"""

import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

# Set before Ray starts its processes. By default Ray retries for ever what ran out of memory.
os.environ.setdefault("RAY_task_oom_retries", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Counter, Gauge, Histogram

from nag.cli import UserError
from nag.generate import Samples
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance
from orchestrator.bayesopt import Suggestion
from orchestrator.config import RunConfig, Runtime, wants_gpu
from orchestrator.store import RunStore
from orchestrator.trial import Outcome, Trial, evaluate_trial
from trainers.base import Evaluator

_START_SECONDS = 300.0  # for an actor to start
_RETURN_SECONDS = 600.0  # for a lost evaluator to come back, when no other is left
_HEARTBEAT_SECONDS = 1.0
_OBJECT_STORE_BYTES = 200 * 2**20


class ClusterError(UserError):
    """The cluster cannot be reached, lacks what the run needs, or has lost it."""


@ray.remote
class GeneratorActor:
    """Holds the score network on its device for the whole run."""

    def __init__(self, config: GeneratorConfig) -> None:
        self._generator = DiffusionGenerator(config)

    def generate(self, n: int, seed: int, guidance: Guidance | None) -> Samples:
        return self._generator.generate(n, seed=seed, guidance=guidance)

    def ready(self) -> str:
        """The device in use."""
        return str(self._generator.device)


@ray.remote
class EvaluatorActor:
    """Holds one evaluator."""

    def __init__(self, evaluator: Callable[[], Evaluator], retries: int) -> None:
        self._evaluator, self._retries = evaluator(), retries

    @ray.method(max_task_retries=0)  # the executor decides who tries again
    def evaluate(self, trial: Trial) -> Outcome:
        return evaluate_trial(self._evaluator, trial, self._retries)

    def ready(self) -> None:
        """Answers when the evaluator is there, be it after a restart."""


class RayGenerator:
    """A `Generator` that works in an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def generate(self, n: int, *, seed: int, guidance: Guidance | None = None) -> Samples:
        try:
            return ray.get(self._actor.generate.remote(n, seed, guidance))
        except RayTaskError:
            raise  # our own bug
        except RayError as error:
            raise ClusterError(
                f"the generator is lost ({type(error).__name__}): repeat the command to continue"
            ) from error


class RayExecutor:
    """Starts or joins a cluster and runs trials on it. Raises ClusterError at start."""

    def __init__(
        self, config: RunConfig, runtime: Runtime, evaluator: Callable[[], Evaluator]
    ) -> None:
        dashboard = _connect(runtime)
        try:
            resources = ray.cluster_resources()
            plan = _plan(resources, config, runtime)
            namespace = f"nag-{os.getpid()}"
            actor = GeneratorActor.options(  # type: ignore[attr-defined]
                name="generator",
                namespace=namespace,
                max_restarts=runtime.retries,
                max_task_retries=runtime.retries,
                **plan.generator,
            ).remote(config.generator(plan.device))
            device = _get_ready("the generator", actor)
            self.generator = RayGenerator(actor)
            evaluators = [
                EvaluatorActor.options(  # type: ignore[attr-defined]
                    name=f"evaluator-{i}",
                    namespace=namespace,
                    max_restarts=-1,
                    max_task_retries=-1,
                    **plan.evaluator,
                ).remote(evaluator, runtime.retries)
                for i in range(plan.workers)
            ]
            for actor in evaluators:
                _get_ready("an evaluator", actor)
        except BaseException:
            ray.shutdown()
            raise
        self.num_workers = plan.workers
        self.description = (
            f"on Ray, generator on {device}, {plan.workers} evaluator(s), "
            f"dashboard {dashboard or 'off'}"
        )
        self._retries = runtime.retries
        self._idle = deque(evaluators)
        self._lost: dict[Any, Any] = {}  # question whether it is ready again -> evaluator

    def run(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """One trial at a time on every evaluator.

        The trial of a lost evaluator goes to the queue again, the evaluator itself gets work again
        when Ray has restarted it. Raises ClusterError when no evaluator is left.
        """
        waiting = deque((trial, 1) for trial in trials)
        running: dict[Any, tuple[Any, Trial, int]] = {}
        while waiting or running:
            while waiting and self._idle:
                actor, (trial, attempt) = self._idle.popleft(), waiting.popleft()
                running[actor.evaluate.remote(trial)] = actor, trial, attempt
            for reference in self._wait(running):
                if reference in self._lost:
                    self._take_back(reference)
                    continue
                actor, trial, attempt = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                    outcome = replace(outcome, attempts=outcome.attempts + attempt - 1)
                except RayTaskError:
                    raise  # evaluate_trial catches what an evaluation raises: this is our own bug
                except RayError as error:
                    self._lost[actor.ready.remote()] = actor
                    if attempt <= self._retries:
                        waiting.append((trial, attempt + 1))
                        continue
                    text = f"{type(error).__name__}: the worker was lost"
                    outcome = Outcome(trial.trial, "failed", error=text, attempts=attempt)
                else:
                    self._idle.append(actor)
                yield outcome

    def _wait(self, running: Mapping[Any, Any]) -> list[Any]:
        """The next thing that is done: a trial of `running`, or the return of an evaluator."""
        open_ends = [*running, *self._lost]
        limit = None if running else _RETURN_SECONDS
        done = ray.wait(open_ends, num_returns=1, timeout=limit)[0] if open_ends else []
        if not done:
            raise ClusterError("all evaluators are lost: repeat the command to continue")
        return done

    def _take_back(self, reference: Any) -> None:
        """Give a restarted evaluator work again; do without one that cannot be restarted."""
        actor = self._lost.pop(reference)
        with suppress(RayError):
            ray.get(reference)
            self._idle.append(actor)

    def close(self) -> None:
        ray.shutdown()


@ray.remote
def _call(function: Callable[[], Any]) -> Any:
    return function()


class RayTasks:
    """Starts or joins a cluster and calls functions on it. Raises ClusterError at start.

    Each call takes one CPU and the share `gpu` of a GPU; at most `runtime.workers` are called at a
    time, by default as many as the cluster has room for.
    """

    def __init__(self, runtime: Runtime, gpu: float = 0.0) -> None:
        _connect(runtime)
        resources = ray.cluster_resources()
        slots = resources.get("CPU", 0)
        self._options: dict[str, Any] = {"num_cpus": 1, "max_retries": runtime.retries}
        if "evaluator" in resources:
            self._options["resources"] = {"evaluator": 1}
            slots = min(slots, resources["evaluator"])
        if gpu:
            self._options["num_gpus"] = gpu
            slots = min(slots, resources.get("GPU", 0) / gpu)
        if slots < 1:
            ray.shutdown()
            raise ClusterError(f"the cluster has no room for a task of one CPU and {gpu:g} GPUs")
        self.workers = runtime.workers or int(slots)

    def run(
        self, functions: Sequence[Callable[[], Any]]
    ) -> Iterator[tuple[list[int], list[tuple[int, Any]]]]:
        """What is done, as it is done, and at least every second what is being done.

        Yields the numbers of the functions that are running and (number, result) of those that have
        ended; the result of one that was lost with its workers is a ClusterError.
        """
        waiting = deque(enumerate(functions))
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < self.workers:
                number, function = waiting.popleft()
                running[_call.options(**self._options).remote(function)] = number
            done, _ = ray.wait(list(running), timeout=_HEARTBEAT_SECONDS)
            ended = [(running.pop(reference), _result(reference)) for reference in done]
            yield list(running.values()), ended

    def close(self) -> None:
        ray.shutdown()


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError:
        raise  # the functions return their errors: this is our own bug
    except RayError as error:
        return ClusterError(f"the worker was lost ({type(error).__name__})")


class _Plan:
    """How many actors, and what each asks the cluster for."""

    def __init__(
        self,
        workers: int,
        device: str,
        generator: Mapping[str, Any],
        evaluator: Mapping[str, Any],
    ) -> None:
        self.workers, self.device = workers, device
        self.generator, self.evaluator = generator, evaluator


def _plan(resources: Mapping[str, float], config: RunConfig, runtime: Runtime) -> _Plan:
    """Compare what the run asks for with what the cluster has; raises ClusterError."""
    cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0)
    if runtime.device.startswith("cuda") and not gpus:
        raise ClusterError(f"--device {runtime.device}: the cluster has no GPU; use cpu or auto")
    on_gpu = wants_gpu(runtime.device) and gpus >= 1
    generator: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1 if on_gpu else 0}
    evaluator: dict[str, Any] = {"num_cpus": 1}
    slots = cpus
    if resources.get("generator", 0) >= 1:
        generator["resources"] = {"generator": 1}
    if "evaluator" in resources:
        evaluator["resources"] = {"evaluator": 1}
        slots = min(slots, int(resources["evaluator"]))
    workers = runtime.workers or max(1, min(config.batch_size, slots))
    if workers > slots:
        raise ClusterError(f"--workers {workers}: the cluster has room for {slots} evaluators")
    return _Plan(workers, "cuda" if on_gpu else "cpu", generator, evaluator)


def _connect(runtime: Runtime) -> str | None:
    """Start a Ray of our own or join a cluster; returns the address of the dashboard."""
    os.environ["RAY_AUTH_MODE"] = runtime.auth or os.environ.get("RAY_AUTH_MODE", "token")
    Config.initialize("")  # Ray read its environment when it was imported: read it again
    address = runtime.address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address in (None, "local"):
        cpus = max(os.cpu_count() or 1, runtime.workers or 1)
        options |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": runtime.dashboard,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        _check_reachable(str(address))
        options |= {"address": address}
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray puts one of its own in its place
    try:
        context = ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"cannot use Ray at {address or 'this machine'}: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    url = context.dashboard_url
    return f"http://{url}" if url else None


def _check_reachable(address: str) -> None:
    """Fail in seconds, where Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"Ray address {address!r} must be host:port, ray://host:port or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error}") from error


def _get_ready(what: str, actor: Any) -> Any:
    """Wait for an actor to start; raises ClusterError with the reason when it does not."""
    try:
        return ray.get(actor.ready.remote(), timeout=_START_SECONDS)
    except RayError as error:
        # When the start of an actor raises, Ray's message ends like a traceback.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise ClusterError(f"{what} could not start: {reason}") from error


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
