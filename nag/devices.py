"""Devices by name."""

import re

import torch

from nag.errors import UserError


def is_device(name: str) -> bool:
    """Whether there may be such a device somewhere: auto, cpu, cuda or cuda:N."""
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def resolve_device(name: str) -> torch.device:
    """The device of that name here, where auto is the GPU if there is one.

    The GPU without a number is that of this process: of several that train together, each has its
    own. Raises UserError for a device of another kind, and for one that is not there.
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
        raise UserError(refusal) from error
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device
