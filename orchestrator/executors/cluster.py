"""Starting a local Ray or joining a cluster, and what its machines have room for."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from time import monotonic, sleep
from typing import Any
from unittest.mock import patch

# Set before Ray starts its processes. By default Ray retries tasks that ran out of memory forever.
os.environ.setdefault("RAY_task_oom_retries", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import torch
from ray._private import services
from ray._private.utils import get_num_cpus
from ray._raylet import Config  # type: ignore[attr-defined]

from nag.errors import UserError
from orchestrator.runtime import Runtime, is_own, wants_gpu
from trainers.images.parallel import cores

_OBJECT_STORE_BYTES = 200 * 2**20
_LOOPBACK = "127.0.0.1"
_START_SECONDS = 120.0  # for a local Ray to start; Ray's own 30 are too few on a busy machine
_HEAD_SECONDS, _MISSES = 2.0, 3  # between checks of the head; failures in a row before a warning
_RETURN_SECONDS = 600.0  # to wait for a machine when none has room

_log = logging.getLogger(__name__)


class ClusterError(UserError):
    """The cluster cannot be reached, or lacks or has lost what the run needs."""


def connect(runtime: Runtime) -> str | None:
    """Start a local Ray or join a cluster; returns the address of the dashboard.

    A local Ray listens on the loopback interface only. Raises ClusterError.
    """
    os.environ["RAY_AUTH_MODE"] = runtime.auth or os.environ.get("RAY_AUTH_MODE", "token")
    Config.initialize("")  # Ray read its environment on import: read it again
    address = runtime.address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if is_own(runtime):
        options |= {
            "address": "local",
            "num_cpus": max(_cores(), runtime.workers or 1),
            # Ray also counts GPUs that PyTorch cannot use: Apple's, or with too old a driver
            "num_gpus": None if torch.cuda.is_available() else 0,
            "include_dashboard": runtime.dashboard,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": _LOOPBACK,
            "_metrics_export_port": runtime.metrics_port,
        }
        _check_free(runtime.metrics_port)
    else:
        _check_reachable(str(address))
        options |= {"address": address}
    on_sigterm = signal.getsignal(signal.SIGTERM)  # which Ray replaces
    try:
        with (
            # ray.init replaces a loopback address with that of the network; `ray start` does not
            patch.object(services, "resolve_ip_for_localhost", lambda host: host),
            patch.object(services, "get_node", _patient(services.get_node)),
        ):
            context = ray.init(**options)
    except Exception as error:  # Ray raises errors of all kinds, `Exception` itself among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"cannot use Ray at {address or 'this machine'}: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    _watch_head()
    url = context.dashboard_url
    return f"http://{url}" if url else None


def _patient(get_node: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """Ask until the node is known: Ray asks this of a node that it has just started."""

    def ask(gcs_address: str, node_id: str) -> Any:
        deadline = monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:
                if monotonic() > deadline:
                    raise
                sleep(0.1)

    return ask


def _cores() -> int:
    """CPU cores that this process may use, by its container, as Ray sees it, and its affinity."""
    return max(1, min(int(get_num_cpus()), cores()))


def _watch_head() -> None:
    """Warn when the head stops answering: a minute later, Ray silently ends this process."""
    context = ray.get_runtime_context()
    head = context.gcs_address

    def joined() -> bool:
        with suppress(AttributeError):  # if Ray is shutting down
            return ray.is_initialized() and context.gcs_address == head
        return False

    def look() -> None:
        misses = 0
        while joined():
            try:
                _knock(head)
                misses = 0
            except OSError:
                misses += 1
            if misses == _MISSES and joined():
                _log.warning(
                    "the head of the cluster does not answer (%s): unless it comes back, Ray will "
                    "soon end this process; finished trials are saved: repeat the command to "
                    "continue",
                    head,
                )
            sleep(_HEAD_SECONDS)

    Thread(target=look, name="head", daemon=True).start()


def generator_request(
    resources: Mapping[str, float], runtime: Runtime
) -> tuple[dict[str, float], str]:
    """What the generator requests on a cluster with `resources`, and its device.

    Raises ClusterError.
    """
    gpus = resources.get("GPU", 0)
    if runtime.device.startswith("cuda") and not gpus:
        raise ClusterError(f"--device {runtime.device}: the cluster has no GPU; use cpu or auto")
    share = 1.0 if runtime.generator_gpus is None else runtime.generator_gpus
    on_gpu = wants_gpu(runtime.device) and gpus >= max(share, 1e-9)
    request = {"GPU": share} if on_gpu else {}
    if resources.get("generator", 0) >= 1:
        request["generator"] = 1
    return request, "cuda" if on_gpu else "cpu"


def evaluation_request(
    resources: Mapping[str, float], runtime: Runtime, gpus: float
) -> dict[str, float]:
    """What one evaluation requests, including `gpus` GPUs."""
    request = {"CPU": runtime.cpus_per_eval, "GPU": gpus}
    if "evaluator" in resources:
        request["evaluator"] = 1
    return {name: amount for name, amount in request.items() if amount}


@dataclass(frozen=True)
class Machines:
    """What each machine of a cluster has: Ray's resources, by name."""

    each: tuple[Mapping[str, float], ...]

    @classmethod
    def now(cls) -> "Machines":
        """The machines that are alive."""
        return cls(tuple(node["Resources"] for node in ray.nodes() if node["Alive"]))

    @property
    def total(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for machine in self.each:
            for name, amount in machine.items():
                found[name] = found.get(name, 0) + amount
        return found

    def room(self, request: Mapping[str, float], held: Sequence[Mapping[str, float]] = ()) -> int:
        """How many tasks with this request fit on the machines at a time.

        held: reservations, each taken to be on the machine where it displaces fewest tasks.
        """
        free = list(self.each)

        def costs(i: int, share: Mapping[str, float]) -> int:
            return _times(free[i], request) - _times(_without(free[i], share), request)

        for share in held:
            able = [
                i
                for i, machine in enumerate(free)
                if all(machine.get(name, 0) >= amount for name, amount in share.items())
            ]
            if able:
                least = min(able, key=lambda i: costs(i, share))
                free[least] = _without(free[least], share)
        return sum(_times(machine, request) for machine in free)

    def lack(
        self, what: str, request: Mapping[str, float], held: Sequence[Mapping[str, float]] = ()
    ) -> str | None:
        """Why there is no room for one more task, in words; None if there is."""
        if self.room(request, held):
            return None
        needed = f"{what} needs {in_words(request)}"
        if any(held):
            times = f"{len(held)} x " if len(held) > 1 else ""
            needed += f" in addition to the generator's {times}{in_words(held[0])}"
        there = {name: self.total.get(name, 0) for name in request}
        return f"no machine has room: {needed}; the cluster has {in_words(there)}"

    def may_move(self, request: Mapping[str, float]) -> bool:
        """Whether a process kept for the next task with this request may be given another GPU then.

        It would stay on its first one, to which CUDA has bound it.
        """
        gpus = request.get("GPU", 0)
        return gpus > 0 and any(machine.get("GPU", 0) > max(gpus, 1) for machine in self.each)

    def alone(self, request: Mapping[str, float], held: Mapping[str, float]) -> dict[str, float]:
        """The request for all of a machine's CPUs, and for the part of a GPU that is not held."""
        asked = dict(request)
        able = [machine for machine in self.each if _times(machine, request)]
        asked["CPU"] = max((machine["CPU"] for machine in able), default=asked["CPU"])
        if "GPU" in asked:
            asked["GPU"] = max(asked["GPU"], 1 - held.get("GPU", 0) % 1)
        return asked


def _without(machine: Mapping[str, float], share: Mapping[str, float]) -> dict[str, float]:
    return {name: amount - share.get(name, 0) for name, amount in machine.items()}


def _times(machine: Mapping[str, float], request: Mapping[str, float]) -> int:
    shares = (int(machine.get(name, 0) / share + 1e-9) for name, share in request.items())
    return min(shares, default=1)


class Patience:
    """For waiting for a machine: warns, and gives up once none has had room for ten minutes."""

    def __init__(self) -> None:
        self._since: float | None = None

    def look(self, lack: str | None) -> None:
        """To be called repeatedly; raises ClusterError.

        lack: the result of `Machines.lack`.
        """
        if lack is None:
            self._since = None
        elif self._since is None:
            self._since = monotonic()
            _log.warning("%s: waiting up to %g minutes for a machine", lack, _RETURN_SECONDS / 60)
        elif monotonic() - self._since > _RETURN_SECONDS:
            raise ClusterError(lack)


def in_words(request: Mapping[str, float]) -> str:
    """Resources as a person would write them."""
    return ", ".join(f"{amount:g} {name}" for name, amount in request.items()) or "nothing"


def options_of(request: Mapping[str, float]) -> dict[str, Any]:
    """These resources under the names that Ray's `options` use."""
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    named = {own[name]: amount for name, amount in request.items() if name in own}
    custom = {name: amount for name, amount in request.items() if name not in own}
    return {**named, "resources": custom} if custom else named


def _check_free(port: int | None) -> None:
    """Raise ClusterError if the port is taken: Ray would silently go without metrics."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port or 0))
        except OSError as error:
            raise ClusterError(f"--metrics-port {port} cannot be used: {error.strerror}") from error


def _check_reachable(address: str) -> None:
    """Fail within seconds; Ray would keep trying for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ClusterError(f"Ray address {address!r} must be host:port or auto")
    try:
        _knock(f"{host}:{port}")
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error}") from error


def _knock(address: str) -> None:
    """Raises OSError if nobody listens, and OverflowError for an impossible port."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()
