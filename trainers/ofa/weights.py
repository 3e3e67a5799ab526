"""Supernets on disk: the official once-for-all checkpoints, and our own. Nothing is unpickled.

Both hold the tensors of `Supernet` by name. Official files use names from an earlier version of
that code, and may be wrapped: in a mapping, as an average, or by parallel training.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from nag.checkpoint import save_tensors
from nag.errors import UserError
from nag.files import write_bytes
from trainers.ofa.supernet import Supernet
from trainers.plans import mobilenetv3_plan

_WRAPPERS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of parallel training and averages, of torch.compile
_RENAMED = (
    (".mobile_inverted_conv.", ".conv."),
    (".conv.conv.", ".conv."),
    (".bn.bn.", ".bn."),
    (".linear.linear.", ".linear."),
)
_EXPECTED = "expected a once-for-all MobileNetV3 supernet such as ofa_mbv3_d234_e346_k357_w1.0"


def load_supernet(path: Path) -> Supernet:
    """The supernet in a file, in evaluation mode; its tensors determine width and classes.

    If a file has both, averaged weights are used. `meta` is what `save_supernet` recorded. Raises
    UserError for any other file.
    """
    found, meta = _read(path)
    if not isinstance(meta, dict) or not all(
        isinstance(meta.get(name, 0), int) for name in ("resolution", "held_out")
    ):
        raise UserError(f"{path} is damaged: its metadata is not a valid record")
    tensors = {_canonical(name): tensor for name, tensor in _unwrap(found).items()}
    try:
        classes, features = tensors["classifier.linear.weight"].shape
    except (KeyError, ValueError):
        raise UserError(
            f"{path} holds {len(tensors)} tensors but no classifier.linear.weight: {_EXPECTED}"
        ) from None
    with torch.device("meta"):
        supernet = Supernet(classes, width=round(features / mobilenetv3_plan().features, 2))
    needed = supernet.state_dict()
    for name, tensor in needed.items():
        if name.endswith(".num_batches_tracked"):  # not in every file, and not needed
            tensors.setdefault(name, torch.zeros_like(tensor, device="cpu"))
    if problem := _difference(tensors, needed):
        raise UserError(f"{path} holds another network ({problem}): {_EXPECTED}")
    supernet.load_state_dict({k: v.to(needed[k].dtype) for k, v in tensors.items()}, assign=True)
    supernet.meta = meta
    return supernet.eval()


def save_supernet(supernet: Supernet, path: Path, meta: Mapping[str, Any]) -> None:
    """Write the weights and how they were trained (`meta`, for JSON) atomically; raises OSError.

    The format is safetensors if `path` has that suffix, else PyTorch's, as in official checkpoints.
    """
    tensors = {
        name: tensor.detach().contiguous().cpu() for name, tensor in supernet.state_dict().items()
    }
    record = json.dumps(dict(meta))
    if path.suffix == ".safetensors":
        save_tensors(tensors, path, {"meta": record})
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = BytesIO()  # on a full disk, torch.save's own error is about file positions
    torch.save({"state_dict": tensors, "meta": record}, file)
    write_bytes(path, file.getvalue())


def _read(path: Path) -> tuple[Any, Any]:
    """The content of a file, with tensors on the CPU, and its metadata."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                record = (file.metadata() or {}).get("meta", "{}")
            return load_file(path), json.loads(record)
        found = torch.load(path, map_location="cpu", weights_only=True)
        meta = found.get("meta") if isinstance(found, Mapping) else None
        return found, json.loads(meta) if isinstance(meta, str) else {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a file that is no pickle can raise nearly anything
        raise UserError(
            f"{path} is damaged, or not a file of plain tensors (PyTorch or .safetensors): "
            f"{_EXPECTED}"
        ) from error


def _unwrap(found: Any) -> dict[str, Tensor]:
    """The tensors by name, without their wrappers; empty if there are none."""
    while isinstance(found, Mapping):
        inner = next((name for name in _WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            return {
                str(name): tensor
                for name, tensor in found.items()
                if isinstance(tensor, Tensor) and name != "n_averaged"
            }
        found = found[inner]
    return {}


def _canonical(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def _difference(found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str:
    """Describe what is wrong with the tensors found; empty if nothing is."""
    if missing := [name for name in needed if name not in found]:
        return f"{len(missing)} tensors are missing, such as {missing[0]}"
    if surplus := [name for name in found if name not in needed]:
        return f"{len(surplus)} tensors are unexpected, such as {surplus[0]}"
    for name, tensor in needed.items():
        if found[name].shape != tensor.shape:
            return f"{name} has shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
    return ""
