"""Data-parallel training in several processes, which share each batch.

They are started by torchrun or Ray Train (orchestrator/train_supernet.py); any default process
group of torch.distributed is used. Gradients are averaged after every step; batch norms see only
the part of their process.
"""

import os
from datetime import timedelta
from functools import cache

import torch
from torch import distributed as dist
from torch import nn

TIMEOUT = timedelta(hours=2)  # for collectives: the others wait while one process measures


def backend(device: str, gpus: bool) -> str:
    """Backend for processes that compute on `device`; gpus: whether there are any.

    NCCL does not support CPU tensors.
    """
    return "nccl" if gpus and device != "cpu" else "gloo"


def join(device: str) -> None:
    """Join the other processes, if torchrun started this one.

    device: where they compute; if it is a GPU, each process gets its own.
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
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@cache
def _by_cpu() -> dist.ProcessGroup | None:
    """A group of the same processes whose communication does not wait for their GPUs."""
    return dist.new_group(timeout=TIMEOUT, backend="gloo")


def largest(number: int) -> int:
    """The largest of the numbers that the processes pass."""
    if world() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX, _by_cpu())
    return int(found)


def average(network: nn.Module, loss: torch.Tensor) -> None:
    """Average the gradients and the loss over all processes.

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
