"""Training in several processes at a time, which have each batch between them.

They are started by torchrun, or by Ray Train (orchestrator/train_supernet.py): wherever a default
process group of torch.distributed is. Gradients are averaged after every step; batch norms see the
part of a process.
"""

import os
from datetime import timedelta
from functools import cache

import torch
from torch import distributed as dist
from torch import nn

TIMEOUT = timedelta(hours=2)  # of waiting for each other: others wait while one measures


def backend(device: str, gpus: bool) -> str:
    """By which processes talk that compute on a device of that name; gpus: whether there are any.

    NCCL knows no tensors on a CPU.
    """
    return "nccl" if gpus and device != "cpu" else "gloo"


def join(device: str) -> None:
    """Join the processes that torchrun has started, if it was that.

    device: what they compute on; where that is a GPU, each gets its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        found = backend(device, torch.cuda.is_available())
        if found == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group(found, timeout=TIMEOUT)


def rank() -> int:
    """Number of this process; 0 saves and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@cache
def _by_cpu() -> dist.ProcessGroup | None:
    """The same processes; what they say to each other there does not wait for their GPUs."""
    return dist.new_group(timeout=TIMEOUT, backend="gloo")


def largest(number: int) -> int:
    """Of the numbers that the processes give."""
    if world() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX, _by_cpu())
    return int(found)


def average(network: nn.Module, loss: torch.Tensor) -> None:
    """Make gradients, and the loss, the means over all processes.

    All must have gradients of the same parameters.
    """
    if world() == 1:
        return
    tensors = [p.grad for p in network.parameters() if p.grad is not None] + [loss]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world()
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(mean.view_as(tensor))
