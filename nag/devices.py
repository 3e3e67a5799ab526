"""Devices by name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nag.errors import UserError


def is_device(name: str) -> bool:
    """Whether some machine may have a device of this name: auto, cpu, cuda or cuda:N."""
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def resolve_device(name: str) -> torch.device:
    """The local device called `name`; auto means the GPU if there is one.

    `cuda` without a number means the GPU of this process: processes that train together each have
    their own. Raises UserError for an unknown kind of device and for one that does not exist.
    """
    refusal = f"device {name!r} is not available: use cpu, cuda or auto"
    if not is_device(name):
        raise UserError(refusal)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{refusal} ({gpu_reason(error)})") from error
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def gpu_reason(error: Exception) -> str:
    """What an error of the GPU says first; the rest is advice for debugging."""
    return str(error).partition("\n")[0]


@contextmanager
def gpu_failures(whose: str) -> Iterator[None]:
    """In this block, a GPU that fails or has no memory left is a UserError."""
    try:
        yield
    except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
        raise UserError(
            f"the GPU of {whose} failed ({gpu_reason(error)}): repeat the command"
        ) from error
