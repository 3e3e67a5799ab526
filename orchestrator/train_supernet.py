"""Train a supernet on a cluster: `python -m orchestrator.train_supernet --help`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from nag.cli import WholeNumber, command_line, plain_console, run
from nag.errors import UserError
from nag.spaces.mobilenetv3 import MOBILENETV3
from orchestrator.runtime import Auth, Runtime, check_gpus, wants_gpu
from trainers.train_supernet import (
    SupernetImages,
    SupernetOptions,
    how_made,
    is_there,
    train_supernet,
)
from trainers.training import parallel
from trainers.training.task import ImageTask, Machine

app = command_line(
    "python -m orchestrator.train_supernet",
    "python -m orchestrator.train_supernet --workers 32 --gpus-per-worker 1 --data DIR "
    "--batch-size 8192 --out W.pt",
)


@app.default
def main(
    options: SupernetOptions,
    images: SupernetImages,
    place: Machine = Machine(),
    *,
    workers: WholeNumber = 1,
    gpus_per_worker: float = 0.0,
    cpus_per_worker: float = 1.0,
    address: str | None = None,
    auth: Auth | None = None,
) -> None:
    """Train a once-for-all supernet in several processes on a cluster, with Ray Train.

    Works like python -m trainers.train_supernet; see its help. Every batch is divided among the
    workers. Images and the folder of OUT must be at the same path on all machines. A lost worker is
    replaced, and training resumes from the last checkpoint.

    Parameters
    ----------
    workers
        Number of worker processes.
    gpus_per_worker
        GPUs that each worker reserves, usually 1; with 0 they train on CPUs.
    cpus_per_worker
        CPUs that each worker reserves.
    address
        Ray cluster to join: host:port or auto; by default RAY_ADDRESS, else start a local Ray.
    auth
        Ray's token authentication; by default RAY_AUTH_MODE, else token.
    """
    if workers < 1:
        raise UserError("--workers must be at least 1")
    if not 0 < cpus_per_worker < math.inf:
        raise UserError("--cpus-per-worker must be more than 0")
    check_gpus("gpus-per-worker", gpus_per_worker)
    if workers > 1 and gpus_per_worker % 1 and place.device != "cpu":
        raise UserError("--gpus-per-worker must be whole: NCCL refuses processes that share a GPU")
    if not gpus_per_worker and place.device.startswith("cuda"):
        raise UserError(f"--device {place.device} needs GPUs: set --gpus-per-worker 1")
    if not gpus_per_worker and place.device == "auto":
        place = replace(place, device="cpu")  # else workers would see all GPUs of their machine
    images = replace(images, data=images.data.resolve())
    options = replace(options, out=options.out.resolve())
    place = replace(place, cache=place.cache and place.cache.resolve())
    options.recipe_in(workers)  # finds bad settings now
    # nothing is trained here: this machine need not have the devices of the workers
    here = replace(place, device="cpu") if wants_gpu(place.device) else place
    task = ImageTask(images, MOBILENETV3, here)
    if is_there(options.out, how_made(options, task, workers), plain_console()):
        return
    fit(
        {"options": options, "images": images, "place": place},
        workers=workers,
        request={"CPU": cpus_per_worker, **({"GPU": gpus_per_worker} if gpus_per_worker else {})},
        runtime=Runtime(address=address, auth=auth, dashboard=False),
        storage=options.out.with_name(options.out.name + ".ray"),
    )


def fit(
    settings: dict[str, Any],
    *,
    workers: int,
    request: dict[str, float],
    runtime: Runtime,
    storage: Path,
) -> None:
    """Run `_work` in `workers` processes; raises UserError if they give up."""
    from ray import train  # Ray is slow to import
    from ray.train.torch import TorchConfig, TorchTrainer

    from orchestrator.executors.cluster import connect

    connect(runtime)
    backend = parallel.backend(settings["place"].device, gpus="GPU" in request)
    trainer = TorchTrainer(
        _work,
        train_loop_config=settings,
        torch_config=TorchConfig(backend=backend, timeout_s=int(parallel.TIMEOUT.total_seconds())),
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu="GPU" in request, resources_per_worker=request
        ),
        run_config=train.RunConfig(
            storage_path=str(storage.parent),
            name=storage.name,
            failure_config=train.FailureConfig(max_failures=runtime.retries),
        ),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        raise UserError(f"the training failed: {str(error).strip().splitlines()[-1]}") from error


def _work(settings: dict[str, Any]) -> None:
    """Runs in every process; Ray Train has set up their process group."""
    console = plain_console(quiet=parallel.rank() > 0)
    train_supernet(settings["options"], settings["images"], settings["place"], console)


if __name__ == "__main__":
    run(app)
