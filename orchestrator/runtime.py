"""Where a run happens: the part of the command line that does not change its trials."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from nag.cli import WholeNumber, section
from nag.devices import is_device
from nag.errors import UserError
from orchestrator.storage.location import OptionalPathOrURI
from trainers.training.task import Place

Auth = Literal["token", "disabled"]
GpusPerEval = float | Literal["auto"]

_ROUNDS = Parameter(group=section("Rounds"))


@Parameter(name="*", group=section("Where it runs"))
@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where a run happens, and when it ends; nothing here changes its trials.

    Parameters
    ----------
    out
        Folder of the run, or a URI such as s3://bucket/folder (docs/store.md); by default
        runs/SPACE-STRATEGY-ACQ-seedN, plus data set, evaluator, surrogate, earlier runs,
        constraints, --pareto and batch size where they differ from the defaults. Repeating a
        command continues its run.
    executor
        ray: generate in a Ray actor and evaluate in Ray tasks. tune: evaluate in Ray Tune trials,
        whose loggers write to OUT/tune. local: do everything in this process.
    address
        Ray cluster to join: host:port or auto; by default RAY_ADDRESS, else start a local Ray.
    workers
        Evaluations to run at a time; by default as many as there is work and room for.
    cpus_per_eval
        CPUs that an evaluation reserves.
    gpus_per_eval
        GPUs that an evaluation reserves: 0.25 puts four on one GPU. auto starts with a whole one
        each (or all that the generator leaves), then packs as many onto a GPU as fit, judging by
        the memory used so far. By default auto where a local Ray trains or measures networks and
        this machine has a GPU, else 0.
    timeout
        Seconds after which an evaluation is abandoned and its trial fails, not counting the
        start-up of its process; by default never.
    device
        Device of the generator; auto uses a GPU if the cluster has one.
    generators
        Number of generators; they split pools of more than 512 samples between them.
    generator_gpus
        Share of a GPU that each generator reserves if it runs on one; by default 1, but 0.2 if it
        shares GPUs with evaluations by default.
    auth
        Ray's token authentication; by default RAY_AUTH_MODE, else token.
    dashboard
        Start the Ray dashboard along with a local Ray.
    metrics_port
        Port on which a local Ray exposes its metrics to Prometheus; by default Ray chooses one.
    retries
        How often to retry an evaluation after an error or a lost worker.
    eval_device
        Device on which networks are trained and measured; auto uses a GPU if an evaluation
        reserves one (--gpus-per-eval) or, with --executor local, if there is one.
    image_workers
        Processes that decode images for an evaluation; by default as many as it has CPUs.
    cache
        Folder in which decoded images are cached if all of them, or those that networks are
        measured on, fit into a quarter of the memory; by default next to the data.
    patience
        Stop after this many evaluations without improvement, not counting the first n-init; by
        default only when the budget is spent. To continue, repeat the command with more patience.
    max_hours
        Begin no evaluation later than this many hours after the start; those that are running still
        end. To continue, repeat the command.
    ends_at
        When max_hours are over, in seconds since the epoch; set by the command when it starts.
    """

    out: OptionalPathOrURI = None
    executor: Annotated[
        Literal["ray", "tune", "local"], Parameter(name=("--executor", "--backend"))
    ] = "ray"
    address: str | None = None
    workers: WholeNumber | None = None
    cpus_per_eval: float = 1.0
    gpus_per_eval: GpusPerEval | None = None
    timeout: float | None = None
    device: str = "auto"
    generators: WholeNumber = 1
    generator_gpus: float | None = None
    auth: Auth | None = None
    dashboard: Annotated[bool, Parameter(negative="--no-dashboard")] = True
    metrics_port: WholeNumber | None = None
    retries: WholeNumber = 2
    eval_device: str = "auto"
    image_workers: WholeNumber | None = None
    cache: Path | None = None
    patience: Annotated[WholeNumber | None, _ROUNDS] = None
    max_hours: Annotated[float | None, _ROUNDS] = None
    ends_at: Annotated[float, Parameter(parse=False)] = math.inf

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError("--workers must be at least 1")
        if self.executor == "local" and self.address:
            raise UserError(
                "--address cannot be used with --executor local, which does not use Ray"
            )
        if self.executor == "local" and self.workers not in (None, 1):
            raise UserError(
                "--executor local evaluates one at a time: --workers requires ray or tune"
            )
        if self.generators < 1:
            raise UserError("--generators must be at least 1")
        if self.generators > 1 and self.executor != "ray":
            raise UserError(f"--executor {self.executor} has only one generator, in this process")
        if self.retries < 0:
            raise UserError("--retries must not be negative")
        if self.metrics_port is not None and not 0 < self.metrics_port < 65536:
            raise UserError("--metrics-port must be 1 to 65535")
        if not 0 < self.cpus_per_eval < math.inf:
            raise UserError("--cpus-per-eval must be more than 0")
        for name in ("gpus_per_eval", "generator_gpus"):
            share = getattr(self, name)
            if share not in (None, "auto"):
                check_gpus(name.replace("_", "-"), share)
        if not is_device(self.eval_device):
            raise UserError(f"--eval-device {self.eval_device!r} must be auto, cpu, cuda or cuda:N")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UserError("--timeout must be more than 0 seconds")
        if self.patience is not None and self.patience < 1:
            raise UserError("--patience must be at least 1")
        if self.max_hours is not None and not 0 < self.max_hours < math.inf:
            raise UserError("--max-hours must be more than 0")


def check_gpus(option: str, share: float) -> None:
    """Raise UserError for a share of GPUs that Ray does not reserve."""
    if not (0 <= share <= 1 or (1 < share < math.inf and share % 1 == 0)):
        raise UserError(f"--{option} must be 0 to 1 or a whole number")


def place_of(runtime: Runtime) -> Place:
    """Where networks are trained and measured; checkpoints are kept with the run.

    A task that reserves no GPU sees all GPUs of its machine, including those of the generator and
    other tasks: it runs on the CPU unless the user names a device.
    """
    out = runtime.out
    unreserved = runtime.executor != "local" and not runtime.gpus_per_eval
    return Place(
        device="cpu" if unreserved and runtime.eval_device == "auto" else runtime.eval_device,
        workers=max(1, int(runtime.cpus_per_eval))
        if runtime.image_workers is None
        else runtime.image_workers,
        cache=runtime.cache and runtime.cache.resolve(),
        checkpoints=out.resolve() / "checkpoints" if isinstance(out, Path) else None,
    )


def wants_gpu(device: str) -> bool:
    """Whether the generator should use a GPU of the cluster, if there is one."""
    return device == "auto" or device.startswith("cuda")


def is_own(runtime: Runtime) -> bool:
    """Whether a run starts a local Ray instead of joining a cluster."""
    return (runtime.address or os.environ.get("RAY_ADDRESS") or "local") == "local"
