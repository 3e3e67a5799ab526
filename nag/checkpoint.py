"""Score networks on disk: weights as safetensors, everything else as JSON next to them.

W.safetensors holds the EMA weights; W.json holds the space, SDE, network configuration, how the
weights were trained, and their SHA-256. Loading never unpickles anything.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nag.errors import UserError
from nag.files import sha256_of, write_bytes, write_json
from nag.score_net import ScoreNetConfig, ScoreNetwork
from nag.sde import VESDE
from nag.spaces import SearchSpace

FORMAT = 1
_WEIGHTS = Path(__file__).parent / "weights"


class CheckpointError(UserError):
    """The weights cannot be used: they are missing, damaged, or for something else."""


def shipped_weights(space: SearchSpace) -> Path:
    """Path of the weights shipped with the package."""
    path = _WEIGHTS / f"{space.name}.safetensors"
    if not path.exists():
        raise CheckpointError(
            f"no trained weights ship for space {space.name!r}: train some with 'python -m "
            f"nag.train --space {space.name} --out W.safetensors' and pass the file (--weights, or "
            "--score-weights for a search), or use --score exact"
        )
    return path


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, metadata))


def save_network(
    network: ScoreNetwork, path: Path, training: dict[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Save the network; `training` records how it was trained (seed, steps, command, ...).

    The weights come last: where they are, so is their record, even if this process is killed.

    dtype: storage type, e.g. float16 for half the size; loading converts back to float32.
    """
    weights = save(
        {k: v.to(dtype or v.dtype).contiguous().cpu() for k, v in network.state_dict().items()}
    )
    record = {
        "format": FORMAT,
        "space": network.space.name,
        "parameters": network.num_parameters(),
        "network": network.config.to_json(),
        "sde": network.sde.to_json(),
        "training": training,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), record)
    write_bytes(path, weights)


def load_network(
    path: Path,
    space: SearchSpace,
    sigmas: tuple[float, float] | None = None,
    device: str | torch.device = "cpu",
) -> ScoreNetwork:
    """Load a network in evaluation mode; raises CheckpointError if it does not fit.

    sigmas: expected noise levels, smallest and largest; None accepts any.
    """
    record = _read_record(path)
    if record["space"] != space.name:
        raise CheckpointError(
            f"{path} holds weights of space {record['space']!r}, not {space.name!r}"
        )
    stored: VESDE = record["sde"]
    if sigmas is not None and sigmas != (stored.sigma_min, stored.sigma_max):
        raise CheckpointError(
            f"{path} was trained with sigma {stored.sigma_min:g}..{stored.sigma_max:g}, but sigma "
            f"{sigmas[0]:g}..{sigmas[1]:g} is asked for: see --sigma-min, --sigma-max"
        )
    if sha256_of(path) != record["sha256"]:
        raise CheckpointError(f"{path} does not match the hash in {path.with_suffix('.json')}")
    try:
        network = ScoreNetwork(space, stored, record["network"])
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights its JSON describes") from error
    return network.to(torch.device(device)).eval().requires_grad_(False)


def _read_record(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    if not beside.is_file():
        raise CheckpointError(f"no such file: {beside}, which nag.train writes next to {path.name}")
    try:
        record = json.loads(beside.read_text())
        found = record["format"]
        if found == FORMAT:
            return {
                "space": record["space"],
                "network": ScoreNetConfig.from_json(record["network"]),
                "sde": VESDE.from_json(record["sde"]),
                "sha256": record["sha256"],
            }
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{beside} is not the record of a score network") from error
    raise CheckpointError(f"{beside} has format {found}, expected {FORMAT}")
